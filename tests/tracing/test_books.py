"""What callers do for the thread that settles."""

from __future__ import annotations

import time

import pytest

from otel_llm_energy.ledger.ledger import Ledger
from otel_llm_energy.tracing.books import Books
from otel_llm_energy.tracing.claims import Claim
from tests.tracing.fakes import ManualClock


def test_callers_let_others_have_the_interpreter_when_nothing_is_entered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only then: an app may keep our threads from it for seconds, and what is not settled must not grow for ever."""
    clock, slept_seconds = ManualClock(), list[float]()
    books = Books(Ledger(0), clock_ns=clock, unix_clock_ns=clock)
    monkeypatch.setattr(time, "sleep", slept_seconds.append)

    def call(times: int) -> None:
        for _ in range(times):
            claim = Claim()
            books.open(claim, "server", "")
            books.close(claim, None)

    call(300)
    assert not slept_seconds  # much is waiting, but not for long
    clock.advance(2.0)
    call(2)
    assert slept_seconds == [0.0005, 0.0005]
    books.settle()
    slept_seconds.clear()
    clock.advance(2.0)
    call(2)
    assert not slept_seconds  # nothing happened for long, but not much is waiting

"""The threads that do one thing again and again, and what they wait at."""

from __future__ import annotations

import queue
import threading
from typing import Any

import pytest

from otel_llm_energy.tracing.forks import rest_for_ever
from otel_llm_energy.tracing.pollers import Poller


def test_poller_waits_at_the_queue_of_now_when_it_was_replaced_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """As gevent does, with threads: in a worker of gunicorn that loaded the app before it was forked."""
    waited: list[object] = []

    class Replacement(queue.Queue[Any]):
        def get(self, block: bool = True, timeout: float | None = None) -> Any:
            waited.append(self)
            return super().get(block, timeout)

    rounds = threading.Semaphore(0)

    def work() -> float:
        rounds.release()
        return 60.0

    poller = Poller("playing", work)
    monkeypatch.setattr(queue, "SimpleQueue", Replacement)
    poller.start()
    assert rounds.acquire(timeout=10)
    poller.wake()
    assert rounds.acquire(timeout=10)
    poller.stop()
    assert waited


def test_poller_of_the_parent_does_nothing_more_in_a_forked_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where gevent plays threads it lives on there, and would read the parent's meters a second time."""
    rounds, rests = threading.Semaphore(0), threading.Event()
    monkeypatch.setattr("otel_llm_energy.tracing.pollers.rest_for_ever", lambda: (rests.set(), rest_for_ever()))

    def work() -> float:
        rounds.release()
        return 60.0

    poller = Poller("living on", work)
    poller.start()
    assert rounds.acquire(timeout=10)
    poller.forget_in_child()
    poller.wake()
    assert rests.wait(10)
    assert not rounds.acquire(blocking=False)

"""Where a process sits at the board, when taking its place fails."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from otel_llm_energy.host.wire import State
from otel_llm_energy.ledger.ledger import Ledger
from otel_llm_energy.tracing.accounts import Accounts
from otel_llm_energy.tracing.books import Books
from otel_llm_energy.tracing.seat import Seat
from otel_llm_energy.tracing.sharing import Rules

PATIENCE_SECONDS = 3.0  # less than a holder that does not answer is waited for


class BooksThatFailOnce(Books):
    """Their first change of ledger raises, as where a journal cannot be read."""

    failed = False

    def change_ledger(self, change: Callable[[Accounts], Accounts]) -> None:
        if not self.failed:
            self.failed = True
            raise OSError("Input/output error")
        super().change_ledger(change)


class Meters:
    """Metering that only says who reads."""

    def __init__(self) -> None:
        self.books = BooksThatFailOnce(Ledger(0))
        self.leads = False

    def lead(self, not_before_ns: int = 0) -> None:
        self.leads = True

    def rest(self) -> None:
        self.leads = False

    def follow(self, state: State) -> None: ...

    def state(self) -> State:
        return State((), (), None, 1.0, 1.0)

    def server_key(self, address: str) -> str:
        return address

    def hasten(self) -> None: ...

    def wake(self) -> None: ...


def test_board_is_held_at_the_next_try_when_the_first_change_of_ledger_fails(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The first try lets go of its turn and its socket: else the process would wait for itself to answer."""
    meters = Meters()
    rules = Rules(tmp_path / "board", "local", "0.1.0", "same")
    seat = Seat(rules, meters, Ledger, settle=lambda: None, records=lambda: True)
    seat.start()
    try:
        deadline_seconds = time.monotonic() + PATIENCE_SECONDS
        while not meters.leads and time.monotonic() < deadline_seconds:
            time.sleep(0.01)
        assert meters.leads
        assert seat.status.role == "holder"
    finally:
        seat.stop()
    assert "Sharing the metering failed and is tried again." in caplog.text

"""What a member does about its calls with the holder, and without one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from otel_llm_energy.host.remote import RemoteLedger
from otel_llm_energy.host.wire import Force, Message

LONGER_THAN_THE_TEST_SECONDS = 600.0


class Forcing:
    """A thread that has the one call of a member billed now, and waits for the holder as long as it takes."""

    def __init__(self, send: Callable[[Sequence[Message]], None] | None = None) -> None:
        self.ledger = RemoteLedger(clock_ns=lambda: 0, patience_seconds=LONGER_THAN_THE_TEST_SECONDS)
        if send is not None:
            self.ledger.connected(send)
        call = self.ledger.open("server", 0, "chat")
        self.ledger.close(call, (), reported=False)
        self._thread = threading.Thread(target=self.ledger.force, args=([call], "max-hold"), daemon=True)
        self._thread.start()

    def ends(self) -> bool:
        self._thread.join(20)
        return not self._thread.is_alive()


def test_forced_call_waits_for_nobody_when_there_is_no_holder() -> None:
    """Each would take half a second of the thread that hands spans on."""
    assert Forcing().ends()


def test_forced_call_waits_no_longer_when_the_holder_goes_away() -> None:
    """Whoever holds the board next has not heard that the call is to be billed now."""
    asked = threading.Event()

    def hear(messages: Sequence[Message]) -> None:
        if any(isinstance(message, Force) for message in messages):
            asked.set()

    forcing = Forcing(hear)
    assert asked.wait(20)
    forcing.ledger.disconnected()
    assert forcing.ends()

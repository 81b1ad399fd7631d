"""One ledger for the calls of several processes, and what the next holder makes of its journal."""

from __future__ import annotations

from otel_llm_energy.host.rounds import Rounds
from otel_llm_energy.host.shared import Register, SharedLedger
from otel_llm_energy.host.wire import Billed, Closed, Message, Opened, Until
from otel_llm_energy.ledger.bill import Window
from otel_llm_energy.ledger.ledger import Ledger
from otel_llm_energy.quantities import NS_PER_SECOND, Channel, Reading

MS = NS_PER_SECOND // 1000
SERVER = "127.0.0.1:8080"


class Board:
    """A holder without calls of its own, and what it tells its members."""

    def __init__(self, members: str) -> None:
        self.now_ns = 0
        self.told: dict[tuple[str, int], str | None] = {}
        register = Register(Ledger, Ledger(0), 0)
        self.ledger = SharedLedger(register, "holder", Rounds(), self._send, lambda: self.now_ns)
        self.ledger.add_channel(Channel("package-0", "cpu", "rapl", idle_watts=20.0))
        for member in members:
            self.ledger.joined(member, ())

    def _send(self, member: str, message: Message) -> None:
        if isinstance(message, Billed):
            self.told[member, message.call] = message.bill["reason"]

    def says(self, member: str, until_ms: int, *messages: Message) -> None:
        """One member's answer."""
        self.now_ns = until_ms * MS
        for message in (*messages, Until(until_ms * MS)):
            self.ledger.said(member, message)

    def settle(self, now_ms: int) -> None:
        """There is a reading of this instant, of a package that draws 100 W."""
        self.now_ns = now_ms * MS
        self.ledger.read(Reading("package-0", now_ms * 100_000, self.now_ns, self.now_ns))
        self.ledger.settle(self.now_ns)


def opened(call: int, at_ms: int) -> Opened:
    """A call to a server that reports timings."""
    return Opened(call, SERVER, "chat", True, at_ms * MS)


def closed(call: int, start_ms: int, end_ms: int) -> Closed:
    """It was at work for all this time."""
    return Closed(call, [Window(start_ms * MS, end_ms * MS, "decode")], True)


def test_calls_are_waited_for_when_a_later_one_of_another_process_was_entered_first() -> None:
    """Whoever answers first: nothing is settled past the oldest open call of all, and no bill is late."""
    board = Board("ab")
    for now_ms in (0, 150):
        board.settle(now_ms)
    for member, at_ms in (("b", 190), ("a", 100)):
        board.says(member, 200, opened(1, at_ms))
    board.settle(200)
    board.says("a", 400, closed(1, 150, 290))
    board.says("b", 400, closed(1, 290, 400))
    for now_ms in (290, 400):
        board.settle(now_ms)
    assert board.told == {("a", 1): None, ("b", 1): None}

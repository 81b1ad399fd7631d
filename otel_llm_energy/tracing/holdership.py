"""One turn of this process at holding the board: it reads the meters, and settles its members' calls too."""

from __future__ import annotations

import logging
import os
import threading
from contextlib import suppress
from functools import partial

from otel_llm_energy.host.folder import BoardError
from otel_llm_energy.host.hub import Hub
from otel_llm_energy.host.shared import SharedLedger
from otel_llm_energy.host.turns import Turn
from otel_llm_energy.host.wire import Hasten, Hello, Message, Opened, Relieve, State
from otel_llm_energy.ledger.ledger import Ledger
from otel_llm_energy.quantities import NS_PER_SECOND
from otel_llm_energy.syscalls import monotonic_ns
from otel_llm_energy.tracing.handover import LedgerHandover
from otel_llm_energy.tracing.sharing import Participant

_SAME_CLOCK_NS = 60 * NS_PER_SECOND

_logger = logging.getLogger(__name__)


class Holdership:
    """Holds the board until `close`; `serve` is for the seat's thread, which tells it what members say.

    Its ledger stays the process's own until the first member comes.

    Args:
        participant: this process.
        handover: makes the ledger for several processes.
        turn: by which right; it ends with this.

    Attributes:
        refusal: what the last process that cannot be a member was told, while one is there; else empty.
        is_relieved: a member is to hold the board.
        closed: set once somebody else may hold it.

    Raises:
        BoardError: nobody can be heard in the folder.
    """

    def __init__(self, participant: Participant, handover: LedgerHandover, turn: Turn) -> None:
        self.refusal = ""
        self.is_relieved = False
        self.closed = threading.Event()
        self._participant = participant
        self._books = participant.books
        self._handover = handover
        self._turn = turn
        self._refused: set[tuple[str, str]] = set()  # by version and settings: a pool has new processes all the time
        self._informed_ns = 0
        try:
            self._hub = Hub(turn.folder, turn.name, self)
        except BoardError:
            turn.end()
            raise

    def serve(self) -> None:
        """Serve the members until `stop`, or until this process is no more to hold the board."""
        self._hub.serve()

    def stop(self) -> None:
        """Have `serve` return; for any thread."""
        self._hub.stop()

    def make_room(self) -> None:
        """A member is to hold the board; for any thread."""
        self.is_relieved = True
        self.stop()

    def close(self) -> None:
        """Give back all descriptors: somebody else may hold the board."""
        with suppress(OSError):
            self._hub.close()
        self._turn.end()
        self.closed.set()

    def close_in_child(self) -> None:
        """`close` in a forked child: the board stays its parent's."""
        self._hub.close_in_child()
        self._turn.end()

    @property
    def members(self) -> int:
        """How many processes are settled for, besides this one."""
        ledger = self._books.ledger
        return len(ledger.here) if isinstance(ledger, SharedLedger) else 0

    def may_read(self) -> bool:
        """False if this process was stopped for so long that another reads the meters by now."""
        if not self._turn.is_over:
            return True
        self.stop()
        return False

    def begin_round(self) -> None:
        """There are new readings: settle as soon as all members have said what they know."""
        ledger = self._books.ledger
        if not isinstance(ledger, SharedLedger):
            self._participant.settle()
            return
        self._inform(ledger)
        self._hub.ask(ledger.ask())
        if ledger.patience_seconds() is None:
            self._participant.settle()

    def say(self, member: str, message: Message) -> None:
        """Say something to one member, if it is there; for any thread."""
        self._hub.send(member, message)

    # What the hub tells

    def examine(self, hello: Hello) -> str | None:
        """Why this process cannot be a member; ``None`` if it can."""
        rules = self._participant.rules
        if hello.version != rules.protocol:
            what = f"has version {hello.version!r} of otel-llm-energy, the one that reads the meters {rules.protocol!r}"
        elif hello.settings != rules.settings:
            what = "has other options of metering, or another network namespace, than the one that reads the meters"
        elif abs(monotonic_ns() - hello.now_ns) > _SAME_CLOCK_NS:
            what = "has another clock than the one that reads the meters"
        else:
            return None
        refusal = (
            f"Process {hello.pid} {what} (process {os.getpid()}). Give all processes of this host the same, or boards"
            " of their own by OTEL_LLM_ENERGY_BOARD if they call different servers."
        )
        if hello.calls_servers:
            self.refusal = refusal
            if (hello.version, hello.settings) not in self._refused:
                self._refused.add((hello.version, hello.settings))
                _logger.warning("Process %d %s: neither sees the other's calls.", hello.pid, what)
        return refusal

    def joined(self, hello: Hello) -> None:
        if isinstance(self._books.ledger, Ledger):
            self._books.change_ledger(partial(self._handover.shared, turn=self._turn))
        ledger = self._books.ledger
        if isinstance(ledger, SharedLedger):
            ledger.joined(hello.member, hello.calls)
            self.say(hello.member, self._state())
            self.begin_round()

    def said(self, member: str, message: Message) -> None:
        ledger = self._books.ledger
        if isinstance(message, Hasten):
            self._participant.metering.hasten()
        elif isinstance(message, Relieve):
            if not self._participant.records():
                self.make_room()
        elif isinstance(ledger, SharedLedger):
            if isinstance(message, Opened):
                message = message._replace(server=self._participant.metering.server_key(message.server))
                self._participant.metering.wake()
            if ledger.said(member, message):
                self._participant.settle()

    def left(self, member: str) -> None:
        ledger = self._books.ledger
        if isinstance(ledger, SharedLedger):
            ledger.left(member)
            self._participant.settle()

    def estranged(self, strangers: int) -> None:
        self._books.caution = "board-mismatch" if strangers else None
        if not strangers:
            self.refusal = ""

    def patience_seconds(self) -> float | None:
        ledger = self._books.ledger
        return ledger.patience_seconds() if isinstance(ledger, SharedLedger) else None

    def patience_ended(self) -> None:
        self._participant.settle()

    def _inform(self, ledger: SharedLedger) -> None:
        """Let the members know what is read, now and then."""
        now_ns = monotonic_ns()
        if now_ns - self._informed_ns > NS_PER_SECOND:
            self._informed_ns = now_ns
            state = self._state()
            for member in ledger.here:
                self.say(member, state)

    def _state(self) -> State:
        return self._participant.metering.state()._replace(is_recorded=self._participant.records())

"""This process's seat at the board: it holds the board, is a member, or works alone.

The holder's ledger stays its own until the first member comes, so that a process without others pays for nothing but
a lock and a thread that sleeps.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

from opentelemetry.instrumentation.utils import suppress_instrumentation

from otel_llm_energy.host.folder import BoardError, Folder
from otel_llm_energy.host.hub import Hub
from otel_llm_energy.host.link import PATIENCE_SECONDS, Link, LinkError, StuckError
from otel_llm_energy.host.remote import RemoteLedger
from otel_llm_energy.host.shared import SharedLedger
from otel_llm_energy.host.turns import Turn, newest, overtake, succeed, turn_name
from otel_llm_energy.host.wire import (
    PROTOCOL,
    Billed,
    Hasten,
    Hello,
    Message,
    Opened,
    Read,
    Relieve,
    State,
    bill_from_json,
)
from otel_llm_energy.ledger.ledger import Ledger
from otel_llm_energy.quantities import NS_PER_SECOND
from otel_llm_energy.syscalls import monotonic_ns
from otel_llm_energy.tracing.books import Books
from otel_llm_energy.tracing.inheritance import Inheritance, close_journal, remote
from otel_llm_energy.troubles import Troubles

_RETRY_SECONDS = 0.02
_ALONE_SECONDS = 30.0
_STAYS_AFTER_NS = 5 * NS_PER_SECOND  # a member that is younger may be a short job, and soon leave the board again
_ROOM_SECONDS = 1.0  # for the others to take the board from a holder that is relieved of it
_SAME_CLOCK_NS = 60 * NS_PER_SECOND

_logger = logging.getLogger(__name__)

Role = Literal["holder", "member", "alone"]


@dataclass(frozen=True, slots=True)
class Rules:
    """What all processes at a board must agree on.

    Attributes:
        folder: where they meet.
        board: name of the board in it; a machine's meters have one.
        version: of the package.
        settings: a hash of the options that decide how energy is shared.
        calls_servers: False if this process only looks.
    """

    folder: Path
    board: str
    version: str
    settings: str
    calls_servers: bool = True

    @property
    def protocol(self) -> str:
        return f"{PROTOCOL} {self.version}"

    def __str__(self) -> str:
        return f"{self.protocol} {self.settings}"


@dataclass(frozen=True, slots=True)
class SeatStatus:
    """Where this process sits.

    Attributes:
        role: it reads the meters for all (``"holder"``), is a ``"member"``, or works ``"alone"``.
        folder: where the board is.
        holder_pid: the process that holds the board; ``None`` while there is none, or when alone.
        members: how many processes the holder settles for, besides itself.
        message: why it works alone, or another process does, and what to do.
    """

    role: Role
    folder: Path
    holder_pid: int | None
    members: int
    message: str

    def __str__(self) -> str:
        if self.role == "alone":
            return f"works alone. {self.message}"
        if self.role == "holder":
            others = {0: "no other process", 1: "1 other process"}.get(self.members, f"{self.members} other processes")
            trouble = f". {self.message}" if self.message else ""
            return f"reads the meters, for {others} too ({self.folder}){trouble}"
        holder = "a process that is being looked for" if self.holder_pid is None else f"process {self.holder_pid}"
        return f"is metered by {holder} ({self.folder})"


class Metering(Protocol):
    """What is shared: one machine's meters (`otel_llm_energy.tracing.station.Station`)."""

    @property
    def books(self) -> Books: ...

    def lead(self, not_before_ns: int = 0) -> None:
        """Find the meters and servers and read them, from now on or ``not_before_ns``."""

    def rest(self) -> None:
        """Read them no more."""

    def follow(self, state: State) -> None:
        """Another process reads these; read what is cheap at calls' edges."""

    def state(self) -> State:
        """What is read."""

    def server_key(self, address: str) -> str:
        """The books' name for the server at host:port, which is looked up if that is new."""

    def hasten(self) -> None:
        """Read now what may be read now."""

    def wake(self) -> None:
        """Calls are open."""


class Seat:
    """Takes part in the board from `start` to `stop`.

    Args:
        rules: what all must agree on.
        metering: what is shared.
        make_ledger: a new ledger that starts at a time of the monotonic clock.
        settle: have the books settled soon; for any thread.
        records: whether this process's metrics are recorded. A holder whose are not, such as the parent of workers that
            makes no call itself and so has no tracing of its own, is relieved by a member whose are.
    """

    def __init__(
        self,
        rules: Rules,
        metering: Metering,
        make_ledger: Callable[[int], Ledger],
        settle: Callable[[], None],
        records: Callable[[], bool],
    ) -> None:
        self._rules = rules
        self._metering = metering
        self._books = metering.books
        self._settle = settle
        self._records = records
        self._own = f"{os.getpid()}-{secrets.token_hex(6)}"
        self._inheritance = Inheritance(self._own, str(rules), make_ledger, self._say, lambda: metering.books.reason)
        self._folder: Folder | None = None
        self._turn: Turn | None = None
        self._hub: Hub | None = None
        self._link: Link | None = None
        self._leading = False
        self._informed_ns = 0
        self._welcomed_ns = 0
        self._relieved = False
        self._holder_pid: int | None = None
        self._error: BoardError | None = None
        self._refusal = ""  # what the last process that cannot be a member was told, while one is there
        self._refused: set[int] = set()  # processes, to say it of each once
        self._pause_ns = 0
        self._searching_since_ns = monotonic_ns()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="otel-llm-energy board", daemon=True)
        self._troubles = Troubles(_logger)

    # What the owner calls

    def start(self) -> None:
        """Hold the board if nobody does, else look for the holder in the background."""
        try:
            self._sit_down()
        except BoardError as error:
            self._work_alone(error)
        self._thread.start()

    def stop(self) -> None:
        """Stand up: somebody else may hold the board."""
        self._stopping.set()
        for end in (self._hub, self._link):
            if end is not None:
                end.stop()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join(1.0)
        self._hand_over()

    def _hand_over(self) -> None:
        """What is settled from now on, the next holder settles."""
        if isinstance(self._books.ledger, SharedLedger):
            self._books.change_ledger(remote)
        self._let_go()

    def forget_in_child(self) -> None:
        """In a forked child: the parent alone sits here. Nothing is said, only our copies of descriptors are closed."""
        self._stopping = threading.Event()
        self._stopping.set()
        for end in (self._hub, self._link):
            if end is not None:
                end.close_in_child()
        self._hub = self._link = None
        self._let_go()

    @property
    def status(self) -> SeatStatus:
        """Where this process sits now."""
        hub, ledger, error = self._hub, self._books.ledger, self._error
        if error is not None:
            return SeatStatus("alone", self._rules.folder, None, 0, str(error))
        if hub is not None:
            members = len(ledger.here) if isinstance(ledger, SharedLedger) else 0
            return SeatStatus("holder", self._rules.folder, os.getpid(), members, self._refusal)
        return SeatStatus("member", self._rules.folder, self._holder_pid, 0, "")

    @property
    def leads(self) -> bool:
        """This process reads the meters."""
        return self._leading

    def may_read(self) -> bool:
        """False if this process was stopped for so long that another reads the meters by now."""
        turn, hub = self._turn, self._hub
        if turn is None or hub is None or not turn.is_over:
            return True
        hub.stop()
        return False

    def begin_round(self) -> None:
        """There are new readings: settle as soon as all members have said what they know."""
        hub, ledger = self._hub, self._books.ledger
        if hub is None or not isinstance(ledger, SharedLedger):
            self._settle()
            return
        self._inform(hub, ledger)
        hub.ask(ledger.ask())
        if ledger.patience_seconds() is None:
            self._settle()

    def hasten(self) -> None:
        """Ask the holder to read now what may be read now."""
        link = self._link
        if link is not None:
            link.send(Hasten())
        self._settle()

    # The thread

    def _run(self) -> None:
        with suppress_instrumentation():
            while not self._stopping.is_set():
                try:
                    self._sit()
                except BoardError as error:
                    self._work_alone(error)
                except Exception:  # noqa: BLE001 - the thread must outlive whatever goes wrong
                    self._troubles.warn("seat", "Sharing the metering failed and is tried again.", exc_info=True)
                    self._stopping.wait(PATIENCE_SECONDS)
        self._hand_over()

    def _sit(self) -> None:
        if self._hub is not None:
            self._hub.serve()
            if not self._stopping.is_set():
                self._give_way()
        elif self._error is not None:
            self._stopping.wait(_ALONE_SECONDS)
            self._try_again()
        else:
            self._attend()

    def _sit_down(self) -> None:
        self._folder = self._folder or Folder(self._rules.folder)
        turn = succeed(self._folder, self._rules.board)
        if turn is not None:
            self._hold(turn)
        elif self._error is None:
            self._become_member()

    def _attend(self) -> None:
        """Be a member for as long as there is a holder; then hold the board, or look for the next one."""
        assert self._folder is not None
        number = newest(self._folder, self._rules.board)
        error: LinkError | None = None
        try:
            name = turn_name(self._rules.board, number)
            is_over = partial(self._folder.has, f"{turn_name(self._rules.board, number + 1)}.lock")
            self._link = Link(self._folder, name, self, is_over)
            self._link.serve(self._hello())
        except LinkError as broken:
            error = broken
        # One that was refused hangs up only when it tries again: the holder is to know that there is a stranger.
        self._hang_up()
        if error is None:
            return
        turn = self._overtake(number) if isinstance(error, StuckError) else succeed(self._folder, self._rules.board)
        turn = turn or self._overtake_if_late(number)
        if turn is not None:
            self._hold(turn)
        else:
            self._stopping.wait(_RETRY_SECONDS)

    def _overtake_if_late(self, number: int) -> Turn | None:
        """A holder that has the lock but does not listen is just starting, unless that takes too long."""
        if monotonic_ns() - self._searching_since_ns < PATIENCE_SECONDS * NS_PER_SECOND:
            return None
        return self._overtake(number)

    def _overtake(self, number: int) -> Turn | None:
        assert self._folder is not None
        turn = overtake(self._folder, self._rules.board, number)
        if turn is not None:
            self._troubles.warn(
                "overtaken",
                "The process that reads the meters does not answer (is it stopped?): this one reads them now.",
            )
        return turn

    def _hang_up(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.close()
        if self._holder_pid is not None:
            self._holder_pid = None
            self._searching_since_ns = monotonic_ns()
        ledger = self._books.ledger
        if isinstance(ledger, RemoteLedger):
            ledger.disconnected()

    def _try_again(self) -> None:
        """What kept this process from sharing may have been mended, or have ended."""
        if self._stopping.is_set():
            return
        self._hang_up()
        self._folder, folder = None, self._folder
        if folder is not None:
            folder.close()
        self._sit_down()
        if self._hub is None:
            self._attend()

    def _hello(self) -> Hello:
        ledger = self._books.ledger
        calls = list(ledger.calls) if isinstance(ledger, RemoteLedger) else []
        rules, now_ns = self._rules, monotonic_ns()
        return Hello(rules.protocol, rules.settings, self._own, os.getpid(), now_ns, calls, rules.calls_servers)

    def _let_go(self) -> None:
        """Give back all descriptors."""
        hub, link, turn, folder = self._hub, self._link, self._turn, self._folder
        self._hub = self._link = self._turn = self._folder = None
        close_journal(self._books.ledger)
        for each in (hub, link, folder):
            if each is not None:
                with suppress(OSError):
                    each.close()
        if turn is not None:
            turn.end()

    # Changing places

    def _hold(self, turn: Turn) -> None:
        """Read the meters for all, and go on where the holder before us stopped."""
        folder = self._folder
        assert folder is not None
        try:
            hub = Hub(folder, turn.name, self)
        except BoardError:
            turn.end()
            raise
        self._turn = turn
        if self._leading:
            self._books.change_ledger(partial(self._inheritance.with_journal, folder=folder, turn=turn))
        else:
            board = self._rules.board
            self._books.change_ledger(partial(self._inheritance.continued, folder=folder, board=board, turn=turn))
            if isinstance(self._books.ledger, SharedLedger):
                self._books.metered_elsewhere()
        turn.clear_earlier()
        self._error = None
        self._books.caution = None
        self._hub = hub
        ledger = self._books.ledger
        if isinstance(ledger, SharedLedger):
            for server in ledger.register.servers:  # under the names that the ledger has for them
                self._metering.server_key(server)
        self._lead()
        self._settle()

    def _lead(self) -> None:
        if not self._leading:
            self._leading = True
            # An exporter that was asked by the holder before us just now must not be asked too soon again.
            self._metering.lead(self._last_reading_ns() + self._pause_ns)

    def _last_reading_ns(self) -> int:
        ledger = self._books.ledger
        if not isinstance(ledger, SharedLedger):
            return 0
        return max((Read(*read[1:]).latest_ns for read in ledger.register.last_readings.values()), default=0)

    def _become_member(self) -> None:
        """Another process reads the meters; it hears of our calls as soon as it is found."""
        self._searching_since_ns = monotonic_ns()
        self._books.change_ledger(remote)
        self._books.metered_elsewhere()

    def _give_way(self) -> None:
        """This process was stopped, and another has taken the next turn meanwhile; or it is relieved."""
        self._rest()
        self._become_member()
        self._let_go_of_turn()
        if self._relieved:
            self._relieved = False
            self._stopping.wait(_ROOM_SECONDS)

    def _rest(self) -> None:
        self._leading = False
        self._metering.rest()

    def _let_go_of_turn(self) -> None:
        hub, turn = self._hub, self._turn
        self._hub = self._turn = None
        if hub is not None:
            hub.close()
        if turn is not None:
            turn.end()

    def _work_alone(self, error: BoardError) -> None:
        """Read the meters for this process alone, and have its bills say so."""
        if str(error) != str(self._error):  # it is tried again and again
            self._troubles.warn(error.reason, "%s", error)
        self._let_go_of_turn()
        self._error = error
        if isinstance(self._books.ledger, RemoteLedger):
            self._books.change_ledger(self._inheritance.alone)
        self._books.caution = error.reason
        self._lead()

    # The holder's side: what the hub tells

    def examine(self, hello: Hello) -> str | None:
        """Why this process cannot be a member; ``None`` if it can."""
        rules = self._rules
        if hello.version != rules.protocol:
            what = f"has version {hello.version!r} of otel-llm-energy, the one that reads the meters {rules.protocol!r}"
        elif hello.settings != rules.settings:
            what = "has other options of metering, or another network namespace, than the one that reads the meters"
        elif abs(monotonic_ns() - hello.now_ns) > _SAME_CLOCK_NS:
            what = "has another clock than the one that reads the meters"
        else:
            return None
        if hello.pid not in self._refused:
            self._refused.add(hello.pid)
            self._troubles.warn("stranger", "Process %d %s: neither sees the other's calls.", hello.pid, what)
        refusal = (
            f"Process {hello.pid} {what} (process {os.getpid()}). Give all processes of this host the same, or boards"
            " of their own by OTEL_LLM_ENERGY_BOARD if they call different servers."
        )
        if hello.calls_servers:
            self._refusal = refusal
        return refusal

    def joined(self, hello: Hello) -> None:
        if isinstance(self._books.ledger, Ledger):
            assert self._folder is not None
            assert self._turn is not None
            self._books.change_ledger(partial(self._inheritance.shared, folder=self._folder, turn=self._turn))
        ledger = self._books.ledger
        if isinstance(ledger, SharedLedger):
            ledger.joined(hello.member, hello.calls)
            self._say(hello.member, self._state())
            self.begin_round()

    def said(self, member: str, message: Message) -> None:
        ledger = self._books.ledger
        if isinstance(message, Hasten):
            self._metering.hasten()
        elif isinstance(message, Relieve):
            self._make_room()
        elif isinstance(ledger, SharedLedger):
            if isinstance(message, Opened):
                message = message._replace(server=self._metering.server_key(message.server))
                self._metering.wake()
            if ledger.said(member, message):
                self._settle()

    def _make_room(self) -> None:
        hub = self._hub
        if hub is not None and not self._records():
            self._relieved = True
            hub.stop()

    def left(self, member: str) -> None:
        ledger = self._books.ledger
        if isinstance(ledger, SharedLedger):
            ledger.left(member)
            self._settle()

    def estranged(self, strangers: int) -> None:
        self._books.caution = "board-mismatch" if strangers else None
        if not strangers:
            self._refusal = ""

    def patience_seconds(self) -> float | None:
        ledger = self._books.ledger
        return ledger.patience_seconds() if isinstance(ledger, SharedLedger) else None

    def patience_ended(self) -> None:
        self._settle()

    def _inform(self, hub: Hub, ledger: SharedLedger) -> None:
        """Let the members know what is read, now and then."""
        now_ns = monotonic_ns()
        if now_ns - self._informed_ns > NS_PER_SECOND:
            self._informed_ns = now_ns
            state = self._state()
            for member in ledger.here:
                hub.send(member, state)

    def _state(self) -> State:
        return self._metering.state()._replace(is_recorded=self._records())

    def _say(self, member: str, message: Message) -> None:
        hub = self._hub
        if hub is not None:
            hub.send(member, message)

    # A member's side: what the link tells

    def welcomed(self, pid: int) -> None:
        if self._leading:  # it has worked alone until now
            self._rest()
            self._become_member()
        self._error = None
        self._holder_pid = pid
        self._welcomed_ns = monotonic_ns()
        link, ledger = self._link, self._books.ledger
        if link is not None and isinstance(ledger, RemoteLedger):
            ledger.connected(lambda messages: link.send(*messages))
        self._settle()

    def informed(self, state: State) -> None:
        self._pause_ns = int(state.pause_seconds * NS_PER_SECOND)
        self._metering.follow(state)
        link, stays = self._link, monotonic_ns() - self._welcomed_ns > _STAYS_AFTER_NS
        if link is not None and stays and not state.is_recorded and self._records():
            link.send(Relieve())

    def asked(self) -> None:
        ledger = self._books.ledger
        if isinstance(ledger, RemoteLedger):
            ledger.asked()
        self._settle()

    def billed(self, message: Billed) -> None:
        ledger = self._books.ledger
        if isinstance(ledger, RemoteLedger):
            ledger.billed(message.call, bill_from_json(message.bill))
            self._settle()

    def waits(self) -> bool:
        ledger = self._books.ledger
        return isinstance(ledger, RemoteLedger) and bool(ledger.calls)

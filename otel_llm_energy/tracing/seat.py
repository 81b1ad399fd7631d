"""This process's seat at the board: it holds the board, is a member, or works alone.

The holder's ledger stays its own until the first member comes, so that a process without others pays for nothing but
a lock and a thread that sleeps.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from opentelemetry.instrumentation.utils import suppress_instrumentation

from otel_llm_energy.host.folder import BoardError, Folder
from otel_llm_energy.host.link import PATIENCE_SECONDS, LinkError, StuckError
from otel_llm_energy.host.remote import RemoteLedger
from otel_llm_energy.host.shared import SharedLedger
from otel_llm_energy.host.turns import Turn, newest, overtake, succeed
from otel_llm_energy.host.wire import Message
from otel_llm_energy.ledger.ledger import Ledger
from otel_llm_energy.quantities import NS_PER_SECOND
from otel_llm_energy.syscalls import monotonic_ns
from otel_llm_energy.tracing.forks import rest_for_ever
from otel_llm_energy.tracing.handover import LedgerHandover, close_journal, remote
from otel_llm_energy.tracing.holdership import Holdership
from otel_llm_energy.tracing.membership import Membership
from otel_llm_energy.tracing.sharing import Metering, Participant, Rules
from otel_llm_energy.troubles import Troubles

_RETRY_SECONDS = 0.02
_ALONE_SECONDS = 30.0
_RESIGN_SECONDS = 1.0
_ROOM_SECONDS = 1.0  # for the others to take the board from a holder that is relieved of it

_logger = logging.getLogger(__name__)

Role = Literal["holder", "member", "alone"]


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
            others = "1 other process" if self.members == 1 else f"{self.members} other processes"
            whom = f"for itself and {others}" if self.members else "for itself alone so far"
            trouble = f". {self.message}" if self.message else ""
            return f"reads the meters {whom} ({self.folder}){trouble}"
        holder = "a process that is being looked for" if self.holder_pid is None else f"process {self.holder_pid}"
        return f"is metered by {holder} ({self.folder})"


class Seat:
    """Takes part in the board from `start` to `stop`, in a thread of its own.

    One after the other it holds the board (`Holdership`), is a member (`Membership`), or works alone; whichever it is,
    its ledger is made from the one before (`LedgerHandover`).

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
        name = f"{os.getpid()}-{secrets.token_hex(6)}"
        self._participant = Participant(name, rules, metering, settle, records)
        self._rules = rules
        self._metering = metering
        self._books = metering.books
        self._settle = settle
        self._handover = LedgerHandover(self._participant, make_ledger, self._say)
        self._folder: Folder | None = None
        self._holdership: Holdership | None = None
        self._membership: Membership | None = None
        self._error: BoardError | None = None  # why this process works alone
        self._told: set[str] = set()
        self._leading = self._is_parents = self._resigned = False
        self._pause_ns = 0
        self._searching_since_ns = monotonic_ns()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="otel-llm-energy board", daemon=True)
        self._troubles = Troubles(_logger)

    # What the owner calls

    def start(self) -> None:
        """Hold the board if nobody does, else look for the holder in the background."""
        try:
            self._hold_or_join()
        except BoardError as error:
            self._work_alone(error)
        except RuntimeError:  # a thread cannot be started: none of ours will try again
            raise
        except Exception:  # noqa: BLE001 - the thread tries again; nothing of ours raises into the app
            self._warn_of_failure()
        self._thread.start()

    def stop(self) -> None:
        """Stand up: somebody else may hold the board."""
        self._stopping.set()
        for place in (self._holdership, self._membership):
            if place is not None:
                place.stop()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join(1.0)
        self._hand_over()

    def resign(self) -> None:
        """This process is about to end, and no more to read the meters where another one can."""
        self._resigned = True
        holdership = self._holdership
        if holdership is not None and holdership.members:
            holdership.make_room()
            holdership.closed.wait(_RESIGN_SECONDS)

    def _hand_over(self) -> None:
        """What is settled from now on, the next holder settles."""
        if isinstance(self._books.ledger, SharedLedger):
            self._books.change_ledger(remote)
        self._close()

    def forget_in_child(self) -> None:
        """In a forked child: the parent alone sits here. Nothing is said, only our copies of descriptors are closed."""
        self._is_parents = True
        self._stopping = threading.Event()
        self._stopping.set()
        for place in (self._holdership, self._membership):
            if place is not None:
                place.close_in_child()
        self._holdership = self._membership = None
        self._close()

    @property
    def status(self) -> SeatStatus:
        """Where this process sits now."""
        holdership, membership, error = self._holdership, self._membership, self._error
        if error is not None:
            return SeatStatus("alone", self._rules.folder, None, 0, str(error))
        if holdership is not None:
            return SeatStatus("holder", self._rules.folder, os.getpid(), holdership.members, holdership.refusal)
        holder_pid = None if membership is None else membership.holder_pid
        return SeatStatus("member", self._rules.folder, holder_pid, 0, "")

    @property
    def leads(self) -> bool:
        """This process reads the meters."""
        return self._leading

    def may_read(self) -> bool:
        """False if this process was stopped for so long that another reads the meters by now."""
        holdership = self._holdership
        return holdership is None or holdership.may_read()

    def begin_round(self) -> None:
        """There are new readings: settle as soon as all members have said what they know."""
        holdership = self._holdership
        if holdership is None:
            self._settle()
        else:
            holdership.begin_round()

    def hasten(self) -> None:
        """Ask the holder to read now what may be read now."""
        membership = self._membership
        if membership is not None:
            membership.hasten()
        self._settle()

    # The thread

    def _run(self) -> None:
        with suppress_instrumentation():
            while not self._stopping.is_set():
                try:
                    self._share()
                except Exception:  # noqa: BLE001 - the thread must outlive whatever goes wrong
                    if not self._is_parents:  # else what it waited at was closed
                        self._warn_of_failure()
                        self._stopping.wait(PATIENCE_SECONDS)
        if self._is_parents:
            rest_for_ever()
        self._hand_over()

    def _warn_of_failure(self) -> None:
        self._troubles.warn("seat", "Sharing the metering failed and is tried again.", exc_info=True)

    def _share(self) -> None:
        """Take part in the board for a while, or work alone where that cannot be."""
        try:
            self._serve_in_place()
        except (BoardError, OSError) as error:
            folder = self._folder
            if folder is not None and not folder.is_ours:
                return  # a daemon has closed all just now: the next try opens the folder anew
            if not isinstance(error, BoardError):
                raise
            self._work_alone(error)

    def _serve_in_place(self) -> None:
        """Hold the board, be a member, or work alone, until that is over or is to be tried anew."""
        holdership = self._holdership
        if holdership is not None or self._error is not None:
            self._lead()  # if no thread could be started when it took this place
        if holdership is not None:
            holdership.serve()
            if not self._stopping.is_set():
                self._step_down(holdership)
        elif self._error is not None:
            self._stopping.wait(_ALONE_SECONDS)
            self._share_again()
        else:
            self._serve_as_member()

    def _hold_or_join(self) -> None:
        """Hold the board if nobody does, else become a member; who works alone does so when a holder accepts it."""
        turn = self._succeed()
        if turn is not None:
            self._hold(turn)
        elif self._error is None:
            self._become_member()

    def _serve_as_member(self) -> None:
        """Be a member for as long as there is a holder; then hold the board, or look for the next one."""
        folder = self._board()
        number = newest(folder, self._rules.board)
        error: LinkError | None = None
        try:
            self._membership = Membership(self._participant, self._accepted, folder, number)
            if not self._stopping.is_set():  # or whoever set it may have looked for a membership before there was one
                self._membership.serve()
        except LinkError as broken:
            error = broken
        # One that was refused hangs up only when it tries again: the holder is to know that there is a stranger.
        self._end_membership()
        if error is None:
            return
        turn = self._overtake(number) if isinstance(error, StuckError) else self._succeed()
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

    def _board(self) -> Folder:
        """The folder, opened anew if a daemon has closed all that it had inherited."""
        if self._folder is None or not self._folder.is_ours:
            self._folder = None  # also if it cannot be opened again
            self._folder = Folder(self._rules.folder)
        return self._folder

    def _succeed(self) -> Turn | None:
        folder = self._board()
        return None if self._resigned else succeed(folder, self._rules.board)

    def _overtake(self, number: int) -> Turn | None:
        if self._resigned:
            return None
        turn = overtake(self._board(), self._rules.board, number)
        if turn is not None:
            self._troubles.warn(
                "overtaken",
                "The process that reads the meters does not answer (is it stopped?): this one reads them now.",
            )
        return turn

    def _end_membership(self) -> None:
        """Hang up. The pause between readings that the holder told is kept: it counts if this process reads next."""
        membership, self._membership = self._membership, None
        if membership is not None:
            membership.close()
            if membership.holder_pid is not None:
                self._searching_since_ns = monotonic_ns()
            if membership.pause_ns is not None:
                self._pause_ns = membership.pause_ns
        ledger = self._books.ledger
        if isinstance(ledger, RemoteLedger):
            ledger.disconnected()

    def _share_again(self) -> None:
        """What kept this process from sharing may have been mended, or have ended."""
        if self._stopping.is_set():
            return
        self._end_membership()
        self._folder, folder = None, self._folder
        if folder is not None:
            folder.close()
        self._hold_or_join()
        if self._holdership is None:
            self._serve_as_member()

    def _close(self) -> None:
        """Give back all descriptors."""
        holdership, membership, folder = self._holdership, self._membership, self._folder
        self._holdership = self._membership = self._folder = None
        close_journal(self._books.ledger)
        for each in (holdership, membership, folder):
            if each is not None:
                with suppress(OSError):
                    each.close()

    def _say(self, member: str, message: Message) -> None:
        """For the ledger that this process shares."""
        holdership = self._holdership
        if holdership is not None:
            holdership.say(member, message)

    # Changing places

    def _hold(self, turn: Turn) -> None:
        """Read the meters for all, and go on where the holder before us stopped."""
        holdership = Holdership(self._participant, self._handover, turn)
        try:
            self._take_ledger(turn)
        except BaseException:
            holdership.close()  # or nobody else could hold the board, nor this process at its next try
            raise
        self._error = None
        self._books.caution = None
        self._holdership = holdership
        ledger = self._books.ledger
        if isinstance(ledger, SharedLedger):
            for server in ledger.register.servers:  # under the names that the ledger has for them
                self._metering.server_key(server)
        self._lead()
        self._settle()
        turn.clear_earlier()

    def _take_ledger(self, turn: Turn) -> None:
        """Go on with this process's ledger if it has read the meters until now, else with that of the holder before."""
        if self._leading:
            self._books.change_ledger(partial(self._handover.with_journal, turn=turn))
            return
        self._books.change_ledger(partial(self._handover.continued, turn=turn))
        if isinstance(self._books.ledger, SharedLedger):
            self._books.metered_elsewhere()

    def _lead(self) -> None:
        if not self._leading:
            ledger = self._books.ledger
            last_read_ns = ledger.register.last_read_ns if isinstance(ledger, SharedLedger) else 0
            # An exporter that was asked by the holder before us just now must not be asked too soon again.
            self._metering.lead(last_read_ns + self._pause_ns)
            self._leading = True

    def _become_member(self) -> None:
        """Another process reads the meters; it hears of our calls as soon as it is found."""
        self._searching_since_ns = monotonic_ns()
        self._books.change_ledger(remote)
        self._books.metered_elsewhere()

    def _accepted(self) -> None:
        """A holder takes this process as a member."""
        if self._leading:  # it has worked alone until now
            self._stop_leading()
        if not isinstance(self._books.ledger, RemoteLedger):  # or could not hold the board when it was free
            self._become_member()
        self._error = None

    def _step_down(self, holdership: Holdership) -> None:
        """This process was stopped, and another has taken the next turn meanwhile; or it is relieved."""
        self._stop_leading()
        self._become_member()
        self._end_holdership()
        if holdership.is_relieved:
            self._stopping.wait(_ROOM_SECONDS)

    def _stop_leading(self) -> None:
        self._leading = False
        self._metering.rest()

    def _end_holdership(self) -> None:
        holdership, self._holdership = self._holdership, None
        if holdership is not None:
            holdership.close()

    def _work_alone(self, error: BoardError) -> None:
        """Read the meters for this process alone, and have its bills say so."""
        self._tell(error)
        self._end_holdership()
        self._error = error
        if isinstance(self._books.ledger, RemoteLedger):
            self._books.change_ledger(self._handover.alone)
        self._books.caution = error.reason
        self._lead()

    def _tell(self, error: BoardError) -> None:
        """Each trouble once, though it is tried again and again, and others of a pool come to read the meters."""
        trouble = re.sub(r"\d+", "", str(error))
        if trouble not in self._told:
            self._told.add(trouble)
            _logger.warning("%s", error)

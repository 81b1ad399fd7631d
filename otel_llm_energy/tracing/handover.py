"""The ledger that fits where a process sits at the board, made from the one that it had before."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from otel_llm_energy.host.journal import Entered, Journal, Written, entered_in, newest_journal, read_journal
from otel_llm_energy.host.register import Call, Register
from otel_llm_energy.host.remote import RemoteLedger
from otel_llm_energy.host.rounds import Rounds
from otel_llm_energy.host.shared import SharedLedger
from otel_llm_energy.host.turns import Turn
from otel_llm_energy.host.wire import Message
from otel_llm_energy.ledger.bill import Bill
from otel_llm_energy.ledger.ledger import Ledger
from otel_llm_energy.quantities import NS_PER_SECOND
from otel_llm_energy.syscalls import monotonic_ns
from otel_llm_energy.tracing.accounts import Accounts
from otel_llm_energy.tracing.sharing import Participant
from otel_llm_energy.troubles import Troubles

# A journal that is older was left by processes that have long ended.
_CONTINUED_WITHIN_NS = 30 * NS_PER_SECOND

_logger = logging.getLogger(__name__)


class _Earlier(NamedTuple):
    """What the holder before us has left: its ledger, the bills that it may not have sent, and its journal."""

    register: Register
    bills: Mapping[Call, Bill]
    journal: Written


class LedgerHandover:
    """What a process enters its calls in as it becomes the holder, or is alone; no call is lost in between.

    Args:
        participant: this process. A journal of other rules than its own is not continued.
        make_ledger: a new ledger that starts at a time of the monotonic clock.
        say: tells a member.
    """

    def __init__(
        self, participant: Participant, make_ledger: Callable[[int], Ledger], say: Callable[[str, Message], None]
    ) -> None:
        self._member = participant.name
        self._rules = str(participant.rules)
        self._books = participant.books
        self._make_ledger = make_ledger
        self._say = say
        self._troubles = Troubles(_logger)

    def continued(self, ledger: Accounts, turn: Turn) -> Accounts:
        """The ledger of the holder before us, with our own calls; what we had, if there is nothing to go on with."""
        earlier = self._left_by_the_holder_before(turn)
        if earlier is not None:
            shared = self._shared(earlier.register)
            shared.remember(earlier.bills)
        elif isinstance(ledger, RemoteLedger):
            shared = self._shared(self._fresh(ledger, monotonic_ns()))
        else:
            return ledger
        journal = None if earlier is None else earlier.journal
        shared.journal = Journal(turn.folder, turn.name, self._rules, shared.register.snapshot, earlier=journal)
        shared.follow_on(monotonic_ns())  # patience with the members begins only now that the journal is read
        if isinstance(ledger, RemoteLedger):
            shared.take_up(ledger)
        return shared

    def shared(self, ledger: Accounts, turn: Turn) -> Accounts:
        """The holder's own, now that the first member has come."""
        if not isinstance(ledger, Ledger):
            return ledger
        register = Register(self._make_ledger, ledger, monotonic_ns())
        register.adopt(self._member)
        return self.with_journal(self._shared(register), turn)

    def with_journal(self, ledger: Accounts, turn: Turn) -> Accounts:
        """What is entered from now on the next holder can enter again; that of one process alone needs none."""
        if isinstance(ledger, SharedLedger):
            ledger.register.holder = self._member
            ledger.journal = Journal(turn.folder, turn.name, self._rules, ledger.register.snapshot)
        return ledger

    def alone(self, ledger: Accounts) -> Accounts:
        """A member's calls in a ledger of its own."""
        if not isinstance(ledger, RemoteLedger):
            return ledger
        shared = self._shared(self._fresh(ledger, monotonic_ns()))
        shared.take_up(ledger)
        return shared

    def _left_by_the_holder_before(self, turn: Turn) -> _Earlier | None:
        """What its journal gives; ``None`` if there is none, or none that can be continued."""
        name = newest_journal(turn.folder, turn.board)
        if name is None:
            return None
        journal = read_journal(turn.folder, name)
        entered = entered_in(journal, self._rules)
        now_ns = monotonic_ns()
        register = Register(self._make_ledger, self._make_ledger(now_ns), now_ns)
        try:
            if not 0 <= now_ns - _last_settled_ns(entered) < _CONTINUED_WITHIN_NS:
                return None
            bills = _enter_all(entered, register)
        except Exception:  # noqa: BLE001 - a journal that is broken may be wrong in any way
            self._troubles.warn("journal", "The journal of the shared metering makes no sense.", exc_info=True)
            return None
        return _Earlier(register, bills, journal)

    def _fresh(self, ledger: RemoteLedger, now_ns: int) -> Register:
        start_ns = min([now_ns, *(entry.opened_ns for entry in ledger.calls.values())])
        return Register(self._make_ledger, self._make_ledger(start_ns), start_ns)

    def _shared(self, register: Register) -> SharedLedger:
        return SharedLedger(register, self._member, Rounds(), self._say, monotonic_ns, lambda: self._books.reason)


def _last_settled_ns(entered: Sequence[Entered]) -> int:
    """Up to when the holder had settled; to enter all of a long journal, which tells that too, takes a second."""
    return max((each[1] for each in entered if each[0] == "settle"), default=0)


def _enter_all(entered: Sequence[Entered], register: Register) -> dict[Call, Bill]:
    """Enter one thing after the other; the bills that come of it. Raises what `Register.enter` does."""
    bills: dict[Call, Bill] = {}
    for each in entered:
        bills.update(register.enter(each))
    return bills


def remote(ledger: Accounts) -> Accounts:
    """What a member has: its calls, which the holder settles."""
    if not isinstance(ledger, (Ledger, SharedLedger)):
        return ledger
    close_journal(ledger)
    return RemoteLedger(ledger.unsettled(), by_weight=ledger.by_weight)


def close_journal(ledger: Accounts) -> None:
    """It is entered in no more."""
    if isinstance(ledger, SharedLedger) and ledger.journal is not None:
        ledger.journal.close()

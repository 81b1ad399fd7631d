"""The ledger that fits where a process sits at the board, made from the one that it had before."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from otel_llm_energy.host.folder import Folder
from otel_llm_energy.host.journal import Entered, Journal, entered_in, newest_journal, read_journal
from otel_llm_energy.host.register import Call, Register
from otel_llm_energy.host.remote import RemoteLedger
from otel_llm_energy.host.rounds import Rounds
from otel_llm_energy.host.shared import SharedLedger
from otel_llm_energy.host.turns import Turn
from otel_llm_energy.host.wire import Message, WireError
from otel_llm_energy.ledger.bill import Bill
from otel_llm_energy.ledger.ledger import Ledger
from otel_llm_energy.quantities import NS_PER_SECOND
from otel_llm_energy.syscalls import monotonic_ns
from otel_llm_energy.tracing.accounts import Accounts
from otel_llm_energy.troubles import Troubles

# A journal that is older was left by processes that have long ended.
_CONTINUED_WITHIN_NS = 30 * NS_PER_SECOND

_logger = logging.getLogger(__name__)


class Inheritance:
    """What a process enters its calls in as it becomes the holder, or is alone; no call is lost in between.

    Args:
        member: this process's name at the board.
        rules: what all at the board have agreed on; a journal of other rules is nobody's to go on with.
        make_ledger: a new ledger that starts at a time of the monotonic clock.
        say: tells a member.
        reason: why nothing is metered; ``None`` if something is.
    """

    def __init__(
        self,
        member: str,
        rules: str,
        make_ledger: Callable[[int], Ledger],
        say: Callable[[str, Message], None],
        reason: Callable[[], str | None],
    ) -> None:
        self._member = member
        self._rules = rules
        self._make_ledger = make_ledger
        self._say = say
        self._reason = reason
        self._troubles = Troubles(_logger)

    def continued(self, ledger: Accounts, folder: Folder, board: str, turn: Turn) -> Accounts:
        """The ledger of the holder before us, with our own calls; what we had, if there is nothing to go on with."""
        earlier = newest_journal(folder, board)
        written = None if earlier is None else read_journal(folder, earlier)
        entered = [] if written is None else entered_in(written, self._rules)
        now_ns = monotonic_ns()
        register, bills = self._entered(entered, now_ns)
        if register is None:
            written = None
            if not isinstance(ledger, RemoteLedger):
                return ledger
            register = self._fresh(ledger, now_ns)
        shared = self._shared(register)
        shared.journal = Journal(
            folder, turn.name, self._rules, register.beginning, earlier=written if entered else None
        )
        shared.remember(bills)
        shared.follow_on(monotonic_ns())  # patience with the members begins only now that the journal is read
        if isinstance(ledger, RemoteLedger):
            shared.take_up(ledger)
        return shared

    def shared(self, ledger: Accounts, folder: Folder, turn: Turn) -> Accounts:
        """The holder's own, now that the first member has come."""
        if not isinstance(ledger, Ledger):
            return ledger
        register = Register(self._make_ledger, ledger, monotonic_ns())
        register.adopt(self._member)
        return self.with_journal(self._shared(register), folder, turn)

    def with_journal(self, ledger: Accounts, folder: Folder, turn: Turn) -> Accounts:
        """What is entered from now on the next holder can enter again; that of one process alone needs none."""
        if isinstance(ledger, SharedLedger):
            ledger.register.holder = self._member
            ledger.journal = Journal(folder, turn.name, self._rules, ledger.register.beginning)
        return ledger

    def alone(self, ledger: Accounts) -> Accounts:
        """A member's calls in a ledger of its own."""
        if not isinstance(ledger, RemoteLedger):
            return ledger
        shared = self._shared(self._fresh(ledger, monotonic_ns()))
        shared.take_up(ledger)
        return shared

    def _entered(self, entered: Sequence[Entered], now_ns: int) -> tuple[Register | None, dict[Call, Bill]]:
        register = Register(self._make_ledger, self._make_ledger(now_ns), now_ns)
        bills: dict[Call, Bill] = {}
        try:
            for each in entered:
                bills.update(register.enter(each))
        except (WireError, KeyError, TypeError, ValueError):
            self._troubles.warn("journal", "The journal of the shared metering makes no sense.", exc_info=True)
            return None, {}
        if not 0 <= now_ns - register.until_ns < _CONTINUED_WITHIN_NS:
            return None, {}
        return register, bills

    def _fresh(self, ledger: RemoteLedger, now_ns: int) -> Register:
        start_ns = min([now_ns, *(entry.opened_ns for entry in ledger.calls.values())])
        return Register(self._make_ledger, self._make_ledger(start_ns), start_ns)

    def _shared(self, register: Register) -> SharedLedger:
        return SharedLedger(register, self._member, Rounds(), self._say, monotonic_ns, self._reason)


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

"""The ledger of a holder: its own calls and those of its members, entered in the order of time and written down."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from heapq import heappop, heappush
from typing import NamedTuple

from otel_llm_energy.host.journal import Entered, Journal
from otel_llm_energy.host.register import Call, Register
from otel_llm_energy.host.remote import RemoteLedger
from otel_llm_energy.host.rounds import Rounds
from otel_llm_energy.host.wire import (
    Billed,
    Closed,
    Disown,
    Force,
    Interrupted,
    Message,
    Opened,
    Read,
    Until,
    WireError,
    bill_to_json,
    channel_to_json,
    reading_from_wire,
    reading_to_wire,
    sample_to_json,
)
from otel_llm_energy.ledger.bill import Bill, Window, unavailable
from otel_llm_energy.ledger.entry import Entry
from otel_llm_energy.ledger.idle import Baseline
from otel_llm_energy.ledger.ledger import Balance
from otel_llm_energy.quantities import NS_PER_SECOND, ActivitySample, Channel, IdlePower, Reading
from otel_llm_energy.troubles import Troubles

_logger = logging.getLogger(__name__)


class _Joined(NamedTuple):
    calls: Sequence[int]


class _Left(NamedTuple):
    pass


_FromMember = Message | _Joined | _Left


class SharedLedger:
    """Has the interface of `otel_llm_energy.ledger.ledger.Ledger` for the holder's calls, and enters the members' too.

    What members say is posted by the thread that serves them and entered when it is settled. Nothing is settled past
    the time up to which all members that answer have said everything.

    Args:
        register: the ledger and whose calls are in it.
        own: the name of this process.
        rounds: who has said what until when.
        send: sends a message to a member.
        clock_ns: the monotonic clock.
        why_unmetered: why there is no meter, ``None`` if there is one.
    """

    def __init__(
        self,
        register: Register,
        own: str,
        rounds: Rounds,
        send: Callable[[str, Message], None],
        clock_ns: Callable[[], int],
        why_unmetered: Callable[[], str | None] = lambda: None,
    ) -> None:
        self.register = register
        self.journal: Journal | None = None
        self._own = own
        self._rounds = rounds
        self._rounds_lock = threading.Lock()
        self._troubles = Troubles(_logger, clock_ns=clock_ns)
        self._send = send
        self._clock_ns = clock_ns
        self._why_unmetered = why_unmetered
        self._inbox: deque[tuple[str, _FromMember]] = deque()
        self._here: set[str] = set()
        self._handles: dict[Entry, int] = {}  # of this process's calls: what the books hold -> number
        self._mine: dict[int, Entry] = {}
        self._last = 0
        self._postponed: list[tuple[int, int, Entered]] = []  # a heap: by time, then by the order of coming
        self._order = 0
        self._unclaimed: dict[Call, Bill] = {}  # of members that may come back, and of this process
        for (member, number), entry in register.calls.items():
            if member == own:
                self._handle(number, entry)

    @property
    def here(self) -> list[str]:
        """The members."""
        return list(self._here)

    # What members do, as the thread that serves them tells

    def joined(self, member: str, calls: Sequence[int]) -> None:
        """A process is a member now, and these are its calls without a bill: they began before we heard of it."""
        with self._rounds_lock:
            self._rounds.expect(member, self.register.until_ns, self._clock_ns())
        self._inbox.append((member, _Joined(tuple(calls))))

    def left(self, member: str) -> None:
        """A member's process has ended, or hung up."""
        with self._rounds_lock:
            self._rounds.leave(member)
        self._inbox.append((member, _Left()))

    def said(self, member: str, message: Message) -> bool:
        """Take what a member says; whether all that are waited for have answered now."""
        if not isinstance(message, Until):
            self._inbox.append((member, message))
            return isinstance(message, Force)
        with self._rounds_lock:
            self._rounds.heard(member, message.at_ns)
            return self._rounds.deadline_ns(self._clock_ns()) is None

    def ask(self) -> list[str]:
        """A round begins: the members to ask."""
        with self._rounds_lock:
            return self._rounds.ask(self._clock_ns())

    def patience_seconds(self) -> float | None:
        """How long the next member that has not answered is still waited for; ``None`` if all have."""
        now_ns = self._clock_ns()
        with self._rounds_lock:
            deadline_ns = self._rounds.deadline_ns(now_ns)
        return None if deadline_ns is None else max(deadline_ns - now_ns, 0) / NS_PER_SECOND

    # The books' side

    @property
    def busy_elsewhere(self) -> bool:
        """Members have calls that are open or not settled."""
        return len(self.register.calls) > len(self._handles) or bool(self._inbox)

    @property
    def caution(self) -> str | None:
        return self.register.ledger.caution

    @caution.setter
    def caution(self, reason: str | None) -> None:
        self.register.ledger.caution = reason

    @property
    def by_weight(self) -> bool:
        """See `otel_llm_energy.ledger.ledger.Ledger`."""
        return self.register.ledger.by_weight

    @property
    def channels(self) -> list[Channel]:
        return self.register.ledger.channels

    def add_channel(self, channel: Channel, remembered: Sequence[IdlePower] = ()) -> None:
        """A channel that the holder before us read goes on where it stood."""
        if channel not in self.channels:
            self._enter(("channel", channel_to_json(channel), [asdict(idle) for idle in remembered]))

    def read(self, reading: Reading) -> None:
        """Readings of several processes are entered in the order of their times."""
        self._postpone((reading.earliest_ns + reading.latest_ns) // 2, ("read", *reading_to_wire(reading)))

    def interrupt(self, reason: str) -> None:
        """Time jumped, between the readings before now and those to come."""
        self._postpone(self._clock_ns(), ("interrupt", reason))

    def _postpone(self, at_ns: int, entered: Entered) -> None:
        """Enter it once all that happened before is known of all members."""
        self._order += 1
        heappush(self._postponed, (at_ns, self._order, entered))

    def sample(self, sample: ActivitySample, *, final: bool = False) -> None:
        self._enter(("sample", sample_to_json(sample), final))

    def add_server(
        self, server: str, *, slots: int | None = None, reports: bool | None = None, caution: str | None = None
    ) -> None:
        if server not in self.register.servers or (slots, reports, caution) != (None, None, None):
            self._enter(("server", server, slots, reports, caution))

    def open(self, server: str, at_ns: int, route: str = "") -> Entry:
        number = self._last + 1
        self._enter(("open", self._own, number, server, at_ns, route))
        return self._handle(number, self.register.calls[self._own, number])

    def close(self, entry: Entry, windows: Sequence[Window], *, reported: bool) -> None:
        number = self._handles.get(entry)
        if number is None:
            return
        if self.register.calls.get((self._own, number)) is not entry:
            entry.close(tuple(windows), ())
        self._close(self._own, Closed(number, windows, reported))

    def settle(self, now_ns: int, breathe: Callable[[], None] = lambda: None) -> list[Entry]:
        """Settle what is complete of all processes; this one's entries that have a bill now."""
        with self._rounds_lock:
            until_ns = self._rounds.until_ns(now_ns)
        bills = self._take_in()
        while self._postponed and self._postponed[0][0] <= until_ns:
            self._enter(heappop(self._postponed)[2])
        bills += self._enter(("settle", until_ns), breathe)
        self._give_up_on_the_missing(now_ns)
        return self._write_and_hand_out(bills)

    def force(self, entries: Iterable[Entry], reason: str) -> list[Entry]:
        numbers = [self._handles[entry] for entry in entries if entry in self._handles]
        bills = self._take_in()
        bills += self._enter(("force", self._own, numbers, reason))
        return self._write_and_hand_out(bills)

    def disown(self, entry: Entry) -> None:
        number = self._handles.pop(entry, None)
        if number is not None:
            del self._mine[number]
            self._enter(("disown", self._own, [number]))

    def balance(self) -> dict[str, Balance]:
        return self.register.ledger.balance()

    def baselines(self) -> dict[str, Baseline]:
        return self.register.ledger.baselines()

    def learned_idle(self, least_seconds: float) -> dict[str, list[IdlePower]]:
        return self.register.ledger.learned_idle(least_seconds)

    def forget_idle(self) -> None:
        self._enter(("forget-idle",))

    def unsettled(self) -> list[Entry]:
        """This process's calls without a bill, as the books know them."""
        return list(self._handles)

    # Entering

    def take_up(self, remote: RemoteLedger) -> None:
        """This process was a member until now, with these calls."""
        for read in remote.readings:
            self._enter_message(self._own, read)
        calls = remote.calls
        self._handles.clear()
        self._mine.clear()
        for number, entry in calls.items():
            self._handle(number, entry)
        self._rejoin(self._own, list(calls))
        for number in calls:
            for message in remote.messages_of(number):
                self._enter_message(self._own, message)

    def follow_on(self, now_ns: int) -> None:
        """Another process held the board until now. Its members may come back; it is dead, or does not answer."""
        if self.register.holder:
            self._abandon(self.register.holder)
        self._enter(("holder", self._own))
        self._enter(("new-sampler",))
        with self._rounds_lock:
            for member in self.register.members - {self._own}:
                self._rounds.expect(member, self.register.until_ns, now_ns)

    def remember(self, bills: Mapping[Call, Bill]) -> None:
        """Bills that the holder before us may not have sent."""
        self._unclaimed.update(bills)

    def _handle(self, number: int, entry: Entry) -> Entry:
        self._last = max(self._last, number)
        self._handles[entry] = number
        self._mine[number] = entry
        return entry

    def _enter(self, entered: Entered, breathe: Callable[[], None] = lambda: None) -> list[tuple[Call, Bill]]:
        bills = self.register.enter(entered, breathe)
        if self.journal is not None:
            self.journal.note(entered)
        return bills

    def _take_in(self) -> list[tuple[Call, Bill]]:
        bills: list[tuple[Call, Bill]] = []
        while self._inbox:
            member, message = self._inbox.popleft()
            try:
                bills += self._enter_message(member, message)
            except (WireError, KeyError, TypeError, ValueError) as error:
                self._troubles.warn(
                    "said", "What process %s of the shared metering said cannot be entered: %r", member, error
                )
        return bills

    def _enter_message(self, member: str, message: _FromMember) -> list[tuple[Call, Bill]]:
        if isinstance(message, Opened):
            self._open(member, message)
        elif isinstance(message, Closed):
            self._close(member, message)
        elif isinstance(message, Read):
            if any(channel.id == message.channel for channel in self.channels):
                self.read(reading_from_wire(message))
        elif isinstance(message, Interrupted):
            self._postpone(message.at_ns, ("interrupt", message.reason))
        elif isinstance(message, Force):
            return self._enter(("force", member, message.calls, message.reason))
        elif isinstance(message, Disown):
            self._enter(("disown", member, message.calls))
        elif isinstance(message, _Joined):
            self._here.add(member)
            self._enter(("member", member))
            self._rejoin(member, message.calls)
        elif isinstance(message, _Left):
            self._here.discard(member)
            self._abandon(member)
        return []

    def _open(self, member: str, opened: Opened) -> None:
        call = (member, opened.call)
        if call in self.register.calls or call in self._unclaimed:
            return
        self.add_server(opened.server, reports=opened.reports)
        self._enter(("open", *call, opened.server, opened.at_ns, opened.route))

    def _close(self, member: str, closed: Closed) -> None:
        call = (member, closed.call)
        if call in self.register.calls and call not in self.register.closed:
            self._enter(("close", *call, [list(window) for window in closed.windows], closed.reported))

    def _rejoin(self, member: str, calls: Sequence[int]) -> None:
        """What a process does not ask for any more is nobody's; what is billed already it gets at once."""
        gone = [number for _, number in self.register.of(member) if number not in calls]
        if gone:
            self._enter(("disown", member, gone))
        bills = {call: bill for call, bill in self._unclaimed.items() if call[0] == member}
        for call in bills.keys() - {(member, number) for number in calls}:
            del self._unclaimed[call]
        self._hand_out((call, bill) for call, bill in bills.items() if call in self._unclaimed and member != self._own)

    def _abandon(self, member: str) -> None:
        self._enter(("gone", member))
        for call in [call for call in self._unclaimed if call[0] == member]:
            del self._unclaimed[call]

    def _give_up_on_the_missing(self, now_ns: int) -> None:
        """Members of the holder before us that have not come."""
        with self._rounds_lock:
            missing = [member for member in self._rounds.overdue(now_ns) if member not in self._here]
            for member in missing:
                self._rounds.leave(member)
        for member in missing:
            self._abandon(member)

    def _write_and_hand_out(self, bills: Iterable[tuple[Call, Bill]]) -> list[Entry]:
        if self.journal is not None:
            self.journal.write()  # first: a bill that has been seen is never made again
        own = {call: bill for call, bill in self._unclaimed.items() if call[0] == self._own}
        for call in own:
            del self._unclaimed[call]
        return self._hand_out([*own.items(), *bills])

    def _hand_out(self, bills: Iterable[tuple[Call, Bill]]) -> list[Entry]:
        """Send the members' bills; this process's entries."""
        mine = []
        for (member, number), bill in bills:
            if member == self._own:
                entry = self._mine.pop(number, None)
                if entry is not None:
                    del self._handles[entry]
                    entry.bill = bill
                    mine.append(entry)
            elif member in self._here:
                why = self._why_unmetered()
                self._send(member, Billed(number, bill_to_json(bill if why is None else unavailable(why))))
            else:
                self._unclaimed[member, number] = bill
        return mine

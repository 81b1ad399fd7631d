"""The ledger of a member: what happens to its calls goes to the holder, bills come back."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence

from otel_llm_energy.host.wire import (
    Closed,
    Disown,
    Force,
    Interrupted,
    Message,
    Opened,
    Read,
    Until,
    reading_to_wire,
)
from otel_llm_energy.ledger.bill import Bill, Window
from otel_llm_energy.ledger.entry import Entry
from otel_llm_energy.ledger.idle import Baseline
from otel_llm_energy.ledger.ledger import Balance
from otel_llm_energy.quantities import NS_PER_SECOND, ActivitySample, Channel, IdlePower, Reading

_MOST_READINGS = 4096
_EDGE_NS = NS_PER_SECOND // 10
# Reasons for which the app itself would have to wait for the answer.
_IN_THE_APPS_THREAD = frozenset({"not-held", "queue-full"})

Send = Callable[[Sequence[Message]], None]


class RemoteLedger:
    """Has the interface of `otel_llm_energy.ledger.ledger.Ledger`, and keeps every call until its bill has come.

    So a holder that dies takes nothing with it: what is not settled is said again to the next one (`connected`).

    Args:
        unsettled: calls of this process that another ledger was keeping, open or closed.
        by_weight: windows are to tell their weight.
        clock_ns: the monotonic clock.
        patience_seconds: how long `force` waits for a holder at most.
    """

    busy_elsewhere = False
    caution: str | None = None

    def __init__(
        self,
        unsettled: Iterable[Entry] = (),
        *,
        by_weight: bool = False,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        patience_seconds: float = 0.5,
    ) -> None:
        self._clock_ns = clock_ns
        self._patience_seconds = patience_seconds
        self.by_weight = by_weight
        self._lock = threading.Condition(threading.RLock())
        self._calls: dict[int, Entry] = {}
        self._numbers: dict[Entry, int] = {}
        self._closed: dict[int, Closed] = {}
        self._reports: dict[str, bool] = {}
        self._bills: dict[int, Bill] = {}
        self._out: list[Message] = []
        self._readings: deque[Read] = deque(maxlen=_MOST_READINGS)  # since the oldest call without a bill
        self._send: Send | None = None
        self._asked = False
        self._last = 0
        for entry in unsettled:
            self._keep(entry)
            if entry.closed:
                self._close(entry, entry.windows, entry.reported)

    # The connection's side

    @property
    def calls(self) -> Mapping[int, Entry]:
        """The calls without a bill, by number."""
        with self._lock:
            return dict(self._calls)

    @property
    def readings(self) -> Sequence[Read]:
        """The readings that matter to them."""
        with self._lock:
            return tuple(self._readings)

    def messages_of(self, call: int) -> list[Message]:
        """What the holder has to be told of a call: that it was opened, and how it was closed if it was."""
        with self._lock:
            closed = self._closed.get(call)
            return [self._opened(call)] if closed is None else [self._opened(call), closed]

    def connected(self, send: Send) -> None:
        """There is a holder that knows nothing of our calls, or has heard of them from the one before it."""
        with self._lock:
            self._send = send
            self._asked = True
            self._out = [*self._readings, *(message for call in self._calls for message in self.messages_of(call))]

    def disconnected(self) -> None:
        """The holder is gone; what happens is kept for the next one."""
        with self._lock:
            self._send = None
            self._out = []
            self._lock.notify_all()  # nobody answers whoever waits for it

    def asked(self) -> None:
        """The holder wants to know all until now."""
        self._asked = True

    def billed(self, call: int, bill: Bill) -> None:
        """A bill has come. Of two the first stands: a new holder may have billed the call before it is said again."""
        with self._lock:
            self._bills.setdefault(call, bill)
            self._lock.notify_all()

    # The books' side

    @property
    def channels(self) -> list[Channel]:
        return []

    def add_channel(self, channel: Channel, remembered: Sequence[IdlePower] = ()) -> None: ...

    def interrupt(self, reason: str) -> None:
        """Time jumped, as this process has noticed first."""
        with self._lock:
            if self._send is not None:
                self._out.append(Interrupted(reason, self._clock_ns()))

    def sample(self, sample: ActivitySample, *, final: bool = False) -> None: ...

    def add_server(
        self, server: str, *, slots: int | None = None, reports: bool | None = None, caution: str | None = None
    ) -> None:
        if reports is not None:
            self._reports[server] = reports

    def read(self, reading: Reading) -> None:
        """A reading at a call's edge."""
        message = reading_to_wire(reading)
        with self._lock:
            self._readings.append(message)
            if self._send is not None and len(self._out) < _MOST_READINGS:
                self._out.append(message)

    def open(self, server: str, at_ns: int, route: str = "") -> Entry:
        entry = Entry(server, route, at_ns)
        with self._lock:
            call = self._keep(entry)
            if self._send is not None:
                self._out.append(self._opened(call))
        return entry

    def close(self, entry: Entry, windows: Sequence[Window], *, reported: bool) -> None:
        entry.close(tuple(windows), ())
        with self._lock:
            closed = self._close(entry, windows, reported)
            if closed is not None and self._send is not None:
                self._out.append(closed)

    def settle(self, now_ns: int, breathe: Callable[[], None] = lambda: None) -> list[Entry]:
        """Say what has happened before ``now_ns``; the entries whose bills have come."""
        with self._lock:
            if self._send is not None and (self._out or self._asked):
                self._asked = False
                out, self._out = self._out, []
                self._send([*out, Until(now_ns)])
            self._forget_readings(now_ns)
            return self._take_bills()

    def force(self, entries: Iterable[Entry], reason: str) -> list[Entry]:
        """Have these calls billed now; those for which the holder does not answer at once are left out."""
        with self._lock:
            wanted = {self._numbers[entry]: entry for entry in entries if entry in self._numbers}
            if wanted and reason not in _IN_THE_APPS_THREAD:
                self._say(Force(list(wanted), reason))
                self._lock.wait_for(
                    lambda: self._send is None or self._bills.keys() >= wanted.keys(), self._patience_seconds
                )
            settled = self._take_bills()
            self._give_up([call for call, entry in wanted.items() if entry.bill is None])
            return settled

    def disown(self, entry: Entry) -> None:
        with self._lock:
            call = self._numbers.get(entry)
            self._give_up([] if call is None else [call])

    def _give_up(self, calls: Sequence[int]) -> None:
        if calls:
            self._say(Disown(calls))
        for call in calls:
            self._forget(call)

    def _say(self, message: Message) -> None:
        if self._send is not None:
            out, self._out = self._out, []
            self._send([*out, message])

    def balance(self) -> dict[str, Balance]:
        """Nothing: the holder alone accounts for what is metered."""
        return {}

    def baselines(self) -> dict[str, Baseline]:
        return {}

    def learned_idle(self, least_seconds: float) -> dict[str, list[IdlePower]]:
        return {}

    def forget_idle(self) -> None: ...

    def _keep(self, entry: Entry) -> int:
        self._last += 1
        self._calls[self._last] = entry
        self._numbers[entry] = self._last
        return self._last

    def _close(self, entry: Entry, windows: Sequence[Window], reported: bool) -> Closed | None:
        call = self._numbers.get(entry)
        if call is None:
            return None
        self._closed[call] = Closed(call, windows, reported)
        return self._closed[call]

    def _opened(self, call: int) -> Opened:
        entry = self._calls[call]
        return Opened(call, entry.server, entry.route, self._reports.get(entry.server), entry.opened_ns)

    def _take_bills(self) -> list[Entry]:
        bills, self._bills = self._bills, {}
        settled = []
        for call, bill in bills.items():
            entry = self._calls.get(call)
            if entry is not None:
                entry.bill = bill
                self._forget(call)
                settled.append(entry)
        return settled

    def _forget_readings(self, now_ns: int) -> None:
        # The reading at a call's edge was taken just before the call was noted.
        oldest_ns = min((entry.opened_ns for entry in self._calls.values()), default=now_ns) - _EDGE_NS
        while self._readings and self._readings[0].latest_ns < oldest_ns:
            self._readings.popleft()

    def _forget(self, call: int) -> None:
        entry = self._calls.pop(call)
        del self._numbers[entry]
        self._closed.pop(call, None)

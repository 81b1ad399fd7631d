"""The ledger of one machine: readings and calls go in, bills come out, and every joule is accounted for.

It is told everything, the time included, and is not thread-safe: its owner is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from otel_llm_energy.ledger.activity import ActivityLog
from otel_llm_energy.ledger.bill import Window, unavailable
from otel_llm_energy.ledger.billing import Biller, Sharing, charge_nj
from otel_llm_energy.ledger.closed_calls import ClosedCalls
from otel_llm_energy.ledger.counter import Bucket, Counter
from otel_llm_energy.ledger.entry import Charged, Entry
from otel_llm_energy.ledger.idle import ENOUGH_SECONDS, Baseline, Learning
from otel_llm_energy.ledger.slots import admit
from otel_llm_energy.ledger.sweep import BatchSharing, IdleSharing, Sweep
from otel_llm_energy.ledger.timeline import Timeline
from otel_llm_energy.quantities import NS_PER_SECOND, ActivitySample, Channel, IdlePower, Reading

# All that is metered from a call's beginning on is kept until it ends, some 100 MB an hour.
_ABANDONED_AFTER_NS = 3600 * NS_PER_SECOND
_KEEP_FREE_NS = 2 * NS_PER_SECOND
_BILLS_AT_ONCE = 8
_FORGET_EACH_NS = NS_PER_SECOND // 2
# A counter that said nothing new for so long, while others of its meter did, is waited for no more.
_SILENT_NS = 5 * NS_PER_SECOND


@dataclass(slots=True)
class _Server:
    """What is known of a server, and its calls that are open."""

    timeline: Timeline
    by_weight: bool = False  # what a call weighs is known at its end only
    slots: int | None = None
    caution: str | None = None
    reports: dict[str, bool] = field(default_factory=dict)  # by route: its answers carry the server's timings
    open: dict[Entry, None] = field(default_factory=dict)  # a set, in the order of opening once `put_in_order`
    in_order: bool = True
    newest_ns: int = 0  # when the last call was opened that may be there
    sampled_ns: int | None = None  # when what it does was sampled last

    def opened(self, entry: Entry) -> None:
        """Those of another process, or of a span that was noticed late, may have been opened before the last one."""
        if entry.opened_ns < self.newest_ns:
            self.in_order = False
        else:
            self.newest_ns = entry.opened_ns
        self.open[entry] = None

    def put_in_order(self) -> None:
        """The oldest call first."""
        if not self.in_order:
            self.open = dict.fromkeys(sorted(self.open, key=lambda entry: entry.opened_ns))
            self.in_order = True

    def was_left(self, before_ns: int) -> bool:
        """It was sampled, called and at work before then, but not since."""
        was_sampled = self.sampled_ns is not None and self.sampled_ns < before_ns
        return was_sampled and not self.open and self.timeline.rests_since(before_ns)

    def may_report(self, entry: Entry) -> bool:
        """The call's window is not known while it is open."""
        return entry.counted_from_ns is None and (self.by_weight or self.reports.get(entry.route, True))

    def slot_limit(self) -> int | None:
        if self.slots is not None:
            return self.slots
        return max(self.timeline.peak, 1) if any(self.reports.values()) else None


@dataclass(slots=True)
class _Account:
    """Of one channel; ``pending`` are the buckets that are not swept yet."""

    counter: Counter
    sweep: Sweep
    pending: deque[Bucket] = field(default_factory=deque)
    silent: bool = False


@dataclass(frozen=True, slots=True)
class Balance:
    """Where the metered energy of one channel went, nanojoules; it adds up exactly.

    ``metered = billed + pending + sum(unattributed)``; ``pending`` is charged to calls that have no bill yet.
    """

    metered_nj: int
    billed_nj: int
    pending_nj: int
    unattributed_nj: Mapping[str, int]


class Ledger:
    """Where the energy of one machine goes, call by call.

    Args:
        start_ns: nothing happened before (monotonic clock).
        idle: how idle energy is shared: ``"time"``, ``"activity"`` or ``"none"``.
        share: how calls at work at the same instant share the rest: ``"equal-time"``, or by ``"phase-tokens"``, the
            weight of their windows, where that is known of all of them.
        max_wait_ns: how long the sweep waits for a window that is not known yet.
        newcomers_ns: so much is left unswept while there are no calls: the first of a process that has just started
            may have begun before this ledger hears of it.

    Attributes:
        caution: why all bills are degraded, whatever their server; ``None`` if they are not.
        busy_elsewhere: other processes have calls in this ledger (see `otel_llm_energy.host`).
    """

    busy_elsewhere = False

    def __init__(
        self,
        start_ns: int,
        *,
        idle: IdleSharing = "time",
        share: BatchSharing = "equal-time",
        max_wait_ns: int = 30 * NS_PER_SECOND,
        newcomers_ns: int = 0,
    ) -> None:
        self.caution: str | None = None
        self._start_ns = start_ns
        self._idle = idle
        self._share = share
        self._max_wait_ns = max_wait_ns
        self._newcomers_ns = newcomers_ns
        self._servers: dict[str, _Server] = {}
        self._accounts: dict[str, _Account] = {}
        self._activity: dict[str, ActivityLog] = {}
        self._closed = ClosedCalls()
        self._billed_nj: dict[str, int] = {}
        self._late_nj: dict[str, int] = {}
        self._forced: dict[Entry, Mapping[str, int]] = {}  # what entries billed ahead of the sweep were billed
        self._forgotten_ns = start_ns

    @property
    def by_weight(self) -> bool:
        """Windows are to tell their weight, where it is known."""
        return self._share == "phase-tokens"

    # Meters' side

    @property
    def channels(self) -> list[Channel]:
        """Those of which there are, or were, readings."""
        return [account.sweep.channel for account in self._accounts.values()]

    def add_channel(self, channel: Channel, remembered: Sequence[IdlePower] = ()) -> None:
        """From now on there are readings of this channel; one that was there before is interrupted.

        ``remembered`` is what an earlier run learned of its idle power.
        """
        if channel.id in self._accounts:
            self._accounts[channel.id].counter.interrupt("reopened")
            return
        account = self._accounts[channel.id] = _Account(Counter(channel), Sweep(channel, self._idle))
        account.sweep.idle.remember(remembered)
        self._activity.setdefault(channel.resource, ActivityLog())
        self._billed_nj[channel.id] = self._late_nj[channel.id] = 0

    def read(self, reading: Reading) -> None:
        """Take a reading. Repeats and readings that were overtaken by a later one are ignored."""
        account = self._accounts[reading.channel_id]
        bucket = account.counter.read(reading)
        if bucket is not None:
            account.pending.append(bucket)

    def interrupt(self, reason: str) -> None:
        """Time jumped (suspend, clock step): no channel's next reading can be joined to its last."""
        for account in self._accounts.values():
            account.counter.interrupt(reason)

    def interrupt_activity(self) -> None:
        """Samples come from another sampler from now on."""
        for log in self._activity.values():
            log.interrupt()

    def sample(self, sample: ActivitySample, *, final: bool = False) -> None:
        """Take a sample of activity; ``final``: however short the time since the last one."""
        log = self._activity.setdefault(sample.resource, ActivityLog())
        log.add(sample, final=final)
        if log.last is sample:
            for name in sample.by_server_ns.keys() & self._servers.keys():
                self._servers[name].sampled_ns = sample.at_ns

    def idle_learning(self) -> dict[str, Mapping[str, Learning]]:
        """What each channel's idle power is learned from, by state: for another ledger to `go_on_learning` from."""
        return {name: account.sweep.idle.learning() for name, account in self._accounts.items()}

    def go_on_learning(self, channel_id: str, state: str, learning: Learning) -> None:
        """Go on from what another ledger has learned of a channel's idle power; it must be new."""
        self._accounts[channel_id].sweep.idle.go_on(state, learning)

    def forget_idle(self) -> None:
        """Learn idle power anew, from now on."""
        for account in self._accounts.values():
            account.sweep.idle.forget()

    # Calls' side

    def add_server(
        self, server: str, *, slots: int | None = None, reports: bool | None = None, caution: str | None = None
    ) -> None:
        """Open an account for a server; a repeat only adds to what is known.

        Args:
            server: its id, as in `ActivitySample.by_server_ns`.
            slots: how many calls it works on at once, if known.
            reports: it is known beforehand whether its answers carry timings (Ollama's do).
            caution: why the process that is known is not all that works, e.g. ``"relay"``; degrades its bills.
        """
        known = self._servers.get(server)
        if known is None:
            known = self._servers[server] = _Server(Timeline(self._frozen_ns()), self.by_weight)
        if slots is not None:
            known.slots = slots
        if caution is not None:
            known.caution = caution
        if reports is not None:
            known.reports.setdefault("", reports)

    def open(self, server: str, at_ns: int, route: str = "") -> Entry:
        """A call to ``server`` begins."""
        known = self._servers[server]
        entry = Entry(server, route, at_ns)
        known.opened(entry)
        if not known.may_report(entry):
            self._count_from_start(entry, known)
        return entry

    def close(self, entry: Entry, windows: Sequence[Window], *, reported: bool) -> None:
        """A call ends; ``windows`` are in order and do not overlap. Nothing happens if it was given up before.

        Args:
            entry: from `open`.
            windows: its work windows (`otel_llm_energy.ledger.windows.work_windows`).
            reported: they come from the server's own timings.
        """
        if entry.closed:
            return
        server = self._servers[entry.server]
        server.open.pop(entry, None)
        entry.close(tuple(windows), _place(entry, windows, server))
        if windows and server.reports.get(entry.route) is None:
            self._learn_route(server, entry.route, reported)
        elif reported:
            server.reports[entry.route] = True
        self._closed.add(entry)

    def _learn_route(self, server: _Server, route: str, reported: bool) -> None:
        server.reports[route] = reported
        if not reported and not server.by_weight:
            for other in server.open:
                if other.route == route and other.counted_from_ns is None:
                    self._count_from_start(other, server)

    def _count_from_start(self, entry: Entry, server: _Server) -> None:
        entry.counted_from_ns = max(entry.opened_ns, server.timeline.frozen_ns)
        server.timeline.add(entry.counted_from_ns)

    # Settling

    def settle(self, now_ns: int, breathe: Callable[[], None] = lambda: None) -> list[Entry]:
        """Sweep all that is complete; the entries that have a bill now and had none before.

        ``breathe`` is called between two pieces of work of some 50 us, or of a few bills.
        """
        until_ns = now_ns if self._has_calls else now_ns - self._newcomers_ns
        self._freeze(until_ns)
        self._find_silent()
        for account in self._accounts.values():
            # What a silent channel has left waits for no activity, and bills wait for it.
            for _ in self._sweep(account, until_ns, now_ns if account.silent else now_ns - self._max_wait_ns):
                breathe()
        settled: list[Entry] = []
        for entry in self._due():
            settled.append(entry)
            if not len(settled) % _BILLS_AT_ONCE:
                breathe()
        self._forget()
        return settled

    def force(self, entries: Iterable[Entry], reason: str) -> list[Entry]:
        """Bill closed entries now from what is swept, degraded or unavailable for ``reason``.

        What the sweep charges to them afterwards is ``late``.
        """
        forced = [entry for entry in entries if entry.bill is None]
        billers: dict[str, Biller] = {}
        for entry in forced:
            self._forced[entry] = self._bill(entry, billers, reason)
        return forced

    def disown(self, entry: Entry) -> None:
        """Nobody takes a closed entry's bill (its process has ended): what it is charged is ``late``."""
        for channel_id, energy_nj in self._forced.get(entry, {}).items():
            self._billed_nj[channel_id] -= energy_nj
        if entry.bill is None or entry in self._forced:
            self._forced[entry] = {}
            entry.bill = unavailable("ended")

    # What is known now

    @property
    def last_readings(self) -> list[Reading]:
        """Of each channel, the reading that its next bucket begins with."""
        return [account.counter.last for account in self._accounts.values() if account.counter.last is not None]

    @property
    def last_samples(self) -> list[ActivitySample]:
        """Of each resource, the sample that its next cell begins with."""
        return [log.last for log in self._activity.values() if log.last is not None]

    @property
    def servers(self) -> dict[str, tuple[int | None, str | None]]:
        """Slots and caution of the servers that have an account."""
        return {name: (server.slots, server.caution) for name, server in self._servers.items()}

    def unsettled(self) -> list[Entry]:
        """The entries without a bill, open and closed, in the order of opening or closing."""
        entries = [entry for server in self._servers.values() for entry in server.open]
        entries += self._closed
        return [entry for entry in entries if entry.bill is None]

    def balance(self) -> dict[str, Balance]:
        """Where each channel's energy went."""
        return {channel_id: self._balance(channel_id, account) for channel_id, account in self._accounts.items()}

    def baselines(self) -> dict[str, Baseline]:
        """What is known of the idle power of each channel."""
        return {name: account.sweep.idle.baseline() for name, account in self._accounts.items()}

    def learned_idle(self, least_seconds: float = ENOUGH_SECONDS) -> dict[str, list[IdlePower]]:
        """What this run has learned of each channel's idle power, by state, from so much time without calls."""
        return {name: account.sweep.idle.learned(least_seconds) for name, account in self._accounts.items()}

    def _balance(self, channel_id: str, account: _Account) -> Balance:
        sweep = account.sweep
        billed_nj, late_nj = self._billed_nj[channel_id], self._late_nj[channel_id]
        unattributed = {reason: energy_nj for reason, energy_nj in sweep.unattributed_nj.items() if energy_nj}
        if late_nj:
            unattributed["late"] = late_nj
        return Balance(sweep.metered_nj, billed_nj, sweep.charged_nj - billed_nj - late_nj, unattributed)

    @property
    def _has_calls(self) -> bool:
        """There are calls that are open or have no bill."""
        return bool(self._closed) or any(server.open for server in self._servers.values())

    def _frozen_ns(self) -> int:
        """Before then no call can be entered any more: without servers, where buckets are swept."""
        swept_ns = max((account.sweep.swept_ns for account in self._accounts.values()), default=0)
        without_servers_ns = max(self._start_ns, swept_ns)
        return min((server.timeline.frozen_ns for server in self._servers.values()), default=without_servers_ns)

    # The steps of settling

    def _freeze(self, now_ns: int) -> None:
        """Make the timelines final up to the oldest window that may still come, or the longest wait."""
        forced_ns = now_ns - self._max_wait_ns
        held_ns = now_ns
        for server in self._servers.values():
            server.put_in_order()
            oldest = next(filter(server.may_report, server.open), None)
            if oldest is not None:
                held_ns = min(held_ns, oldest.opened_ns)
        until_ns = max(held_ns, forced_ns)
        for server in self._servers.values():
            if until_ns > server.timeline.frozen_ns:
                self._freeze_server(server, until_ns)

    def _freeze_server(self, server: _Server, until_ns: int) -> None:
        oldest = next(iter(server.open), None)
        if oldest is not None and until_ns - oldest.opened_ns > _ABANDONED_AFTER_NS:
            oldest.abandoned = True
            self.close(oldest, (), reported=False)
        opened = takewhile(lambda entry: entry.opened_ns < until_ns, server.open)
        waiting = [entry for entry in opened if server.may_report(entry)]
        admit(server.timeline, waiting, server.slot_limit(), until_ns)

    def _sweep(self, account: _Account, until_ns: int, overdue_ns: int) -> Iterator[Bucket]:
        """Sweep the buckets that are complete; those older than ``overdue_ns`` wait for no activity any more."""
        activity = self._activity[account.sweep.channel.resource]
        frozen_ns = min((server.timeline.frozen_ns for server in self._servers.values()), default=until_ns)
        timelines = {name: server.timeline for name, server in self._servers.items()}
        while account.pending:
            needed_ns = activity.needed_until(account.pending[0].end_ns)
            if needed_ns is None and account.pending[0].end_ns < overdue_ns:
                needed_ns = account.pending[0].end_ns
            if needed_ns is None or needed_ns > frozen_ns:
                return
            bucket = account.pending.popleft()
            account.sweep.sweep(bucket, timelines, activity, account.pending)
            yield bucket

    def _find_silent(self) -> None:
        """One counter of several that stands still, or is not to be read any more, holds nothing up for long."""
        heard_ns: dict[str, int] = {}
        for account in self._accounts.values():
            meter, last_ns = account.sweep.channel.meter, account.counter.heard_ns
            if last_ns is not None:
                heard_ns[meter] = max(heard_ns.get(meter, last_ns), last_ns)
        for account in self._accounts.values():
            last_ns = account.counter.heard_ns
            was_silent = account.silent
            account.silent = last_ns is not None and heard_ns[account.sweep.channel.meter] - last_ns >= _SILENT_NS
            if account.silent and not was_silent:
                account.counter.silence()

    def _swept_ns(self) -> int | None:
        """Up to where all is swept that is waited for."""
        waited_for = [each for each in self._accounts.values() if each.pending or not each.silent]
        return min((each.sweep.swept_ns for each in waited_for), default=None)

    def _due(self) -> Iterator[Entry]:
        swept_ns = self._swept_ns()
        billers: dict[str, Biller] = {}
        for entry in self._closed.take(swept_ns):
            if entry.bill is not None:
                self._correct(entry, self._forced.pop(entry, {}))
                continue
            billed_nj = self._bill(entry, billers, None)
            if not (len(billed_nj) == len(self._accounts) and entry.charged_exactly):
                self._correct(entry, billed_nj)
            yield entry

    def _bill(self, entry: Entry, billers: dict[str, Biller], reason: str | None) -> Mapping[str, int]:
        """Bill an entry; its energy by channel, nanojoules. ``billers`` are those made since anything was swept."""
        entry.caution = self._servers[entry.server].caution or self.caution
        biller = billers.get(entry.server)
        if biller is None:
            biller = billers[entry.server] = self._biller(entry.server)
        entry.bill, by_channel = biller.bill(entry, reason)
        for channel_id, energy_nj in by_channel.items():
            self._billed_nj[channel_id] += energy_nj
        return by_channel

    def _biller(self, server: str) -> Biller:
        accounts = self._accounts.values()
        sweeps = [account.sweep for account in accounts if not account.silent]
        silent = [each.sweep for each in accounts if each.silent and (each.counter.has_moved or each.sweep.is_main)]
        timeline = self._servers[server].timeline
        return Biller(server, sweeps, silent, timeline, Sharing(self._idle, self._share))

    def _correct(self, entry: Entry, billed_nj: Mapping[str, int]) -> None:
        """All that was charged for an entry is known now; what it was not billed is late."""
        for channel_id, account in self._accounts.items():
            self._late_nj[channel_id] += charge_nj(entry, account.sweep) - billed_nj.get(channel_id, 0)

    def _forget(self) -> None:
        """Drop what no bill and no cell will ask for any more."""
        swept_ns = self._swept_ns()
        oldest_ns = self._frozen_ns() if swept_ns is None else swept_ns
        if oldest_ns - self._forgotten_ns < _FORGET_EACH_NS:
            return  # it takes a look at every open and closed call
        self._forgotten_ns = oldest_ns
        steps_ns = oldest_ns - _KEEP_FREE_NS
        for server in self._servers.values():
            oldest = next(iter(server.open), None)
            if oldest is not None:
                oldest_ns = min(oldest_ns, oldest.opened_ns)
        oldest_ns = min([oldest_ns, *(entry.start_ns for entry in self._closed)])
        for server in self._servers.values():
            server.timeline.forget_before(steps_ns, oldest_ns - _KEEP_FREE_NS)
        self._forget_servers(oldest_ns - _KEEP_FREE_NS)
        for account in self._accounts.values():
            account.sweep.forget_before(oldest_ns)
        for log in self._activity.values():
            log.forget_before(steps_ns)

    def _forget_servers(self, before_ns: int) -> None:
        """Drop those whose activity is sampled no more; one that comes back begins anew.

        These are apps' own processes that have ended, of which there may be thousands.
        """
        if any(log.ever_sampled and log.last is None for log in self._activity.values()):
            return  # the next sampler has not said yet whom it knows
        known = {name for sample in self.last_samples for name in sample.by_server_ns}
        gone = {name for name, server in self._servers.items() if name not in known and server.was_left(before_ns)}
        if not gone:
            return  # to look at the closed calls takes sorting them
        for name in gone.difference(entry.server for entry in self._closed):
            del self._servers[name]
            for account in self._accounts.values():
                account.sweep.forget_server(name)


def _joined(windows: Sequence[Window], *, by_weight: bool) -> list[tuple[int, int, int, int]]:
    """Adjoining windows as one stretch of work: (start, end, slots held, weight if that counts)."""
    stretches: list[tuple[int, int, int, int]] = []
    since_ns = until_ns = held = weighs = -1
    for start_ns, end_ns, phase, own_weight in windows:
        slots, weight = 0 if phase == "load" else 1, own_weight if by_weight else 0
        if start_ns != until_ns or slots != held or weight != weighs:
            if until_ns >= 0:
                stretches.append((since_ns, until_ns, held, weighs))
            since_ns, held, weighs = start_ns, slots, weight
        until_ns = end_ns
    if until_ns >= 0:
        stretches.append((since_ns, until_ns, held, weighs))
    return stretches


def _place(entry: Entry, windows: Sequence[Window], server: _Server) -> tuple[Charged, ...]:
    """Enter the windows into the timeline, as far as it is still open, and end what was counted for the call.

    Returns the stretches of time in which the timeline counts it.
    """
    timeline = server.timeline
    frozen_ns = timeline.frozen_ns
    charged: list[Charged] = []
    if entry.counted_from_ns is not None:
        counted_until_ns = max(frozen_ns, entry.counted_from_ns)
        timeline.end(counted_until_ns)
        charged.append((entry.counted_from_ns, counted_until_ns, 0))
        frozen_ns = counted_until_ns
    for start_ns, end_ns, slots, weight in _joined(windows, by_weight=server.by_weight):
        if end_ns > frozen_ns:
            timeline.add(max(start_ns, frozen_ns), end_ns, slots=slots, weight=weight)
            charged.append((max(start_ns, frozen_ns), end_ns, weight))
    return tuple(charged)

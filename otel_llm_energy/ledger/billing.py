"""From an entry and the clocks to its bill."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from otel_llm_energy.ledger.bill import Bill, Quality, Scope, Window, unavailable
from otel_llm_energy.ledger.entry import Entry, Stretch, length_ns
from otel_llm_energy.ledger.shares import ServerChannel, Sums
from otel_llm_energy.ledger.sweep import BatchSharing, IdleSharing, Sweep
from otel_llm_energy.ledger.timeline import Timeline
from otel_llm_energy.quantities import NS_PER_SECOND

_LEAST_COVERAGE: Final = 0.9
_WHOLE: Final = 0.98
_SHARED_ABOVE: Final = 1.05
_COARSE_WIDTH: Final = 0.5
_MOST_UNKNOWN: Final = 0.1
# A phase's edge may lie this part of the shorter phase away from a bucket's edge.
_PARTED_WITHIN: Final = 0.1
# In a shorter time a CPU's clock hardly tells whether a server worked.
_SHORTEST_REST_NS: Final = NS_PER_SECOND // 5
_SILENT: Final = "counter-silent"


class Sharing(NamedTuple):
    """How calls share: idle energy, and what is above it with others that are at work at the same instant."""

    idle: IdleSharing
    batch: BatchSharing


class Biller:
    """Makes the bills of one server's calls, as long as nothing changes in what it draws from.

    Args:
        server: its id.
        sweeps: of all channels that it draws from.
        silent: those whose counters stand still. Without its memory's energy a bill is degraded, without that of a
            CPU, a GPU or the host there would be little in it: then there is none.
        timeline: of the server.
        sharing: how calls share.
    """

    def __init__(
        self, server: str, sweeps: Sequence[Sweep], silent: Sequence[Sweep], timeline: Timeline, sharing: Sharing
    ) -> None:
        self._drawn = _Channels([ServerChannel(server, sweep) for sweep in sweeps])
        # Missed only by who drew from it at last: not every server works on the GPU that is lost.
        missed = [sweep for sweep in silent if not sweep.unused_of_late_by(server)]
        self._silent = _Channels([ServerChannel(server, sweep) for sweep in missed])
        self._timeline = timeline
        self._sharing = sharing

    def bill(self, entry: Entry, reason: str | None) -> tuple[Bill, dict[str, int]]:
        """The bill of a closed entry, and its energy by channel in nanojoules.

        ``reason`` is why it is billed ahead of the sweep; ``None`` if all is swept.
        """
        if not self._drawn.each:
            return unavailable(reason or "no-meter"), {}
        work_ns = entry.work_ns
        if not work_ns:
            return unavailable("too-long" if entry.abandoned else reason or "no-work"), {}
        stretches = entry.stretches()
        channels, missing = self._drawn.used(stretches), self._silent.used(stretches)
        if missing.has_main:
            return unavailable(_SILENT), {}
        if not channels.each:
            return unavailable(reason or "not-on-gpu"), {}
        if missing.each:
            reason = reason or _SILENT
        coverage = channels.covered_ns(stretches) / work_ns
        if coverage < _LEAST_COVERAGE:
            return unavailable(reason or _why_not_covered(entry, channels)), {}
        return self._bill(entry, stretches, channels, reason, coverage, is_whole=not missing.each)

    def _bill(
        self,
        entry: Entry,
        stretches: Sequence[Stretch],
        channels: _Channels,
        reason: str | None,
        coverage: float,
        *,
        is_whole: bool,
    ) -> tuple[Bill, dict[str, int]]:
        """The bill of an entry whose stretches lie in readings of these channels.

        ``reason`` is why it is degraded, as far as that is known; ``is_whole``: no channel's energy is missing.
        """
        work_ns = entry.work_ns
        sums = Sums(parted=_parted(entry.windows, channels.each))
        by_channel = {channel.id: channel.add(sums, stretches) for channel in channels.each}
        # Work by hand has no route, and may wait.
        passed_on = bool(entry.route) and work_ns > _SHORTEST_REST_NS and channels.rested_throughout(stretches)
        if passed_on:
            reason = reason or "relay"
        energy_nj = sums.energy_nj
        concurrency = _concurrency(stretches, self._timeline)
        lower_nj, upper_nj = min(int(sums.lower_nj), energy_nj), max(int(sums.upper_nj) + 1, energy_nj)
        if channels.estimated:
            reason = None
        else:
            reason = reason or entry.caution or _weakness(entry, sums, coverage, upper_nj - lower_nj)
        lower_nj = max(lower_nj - sums.unknown_nj, 0)
        missed_nj = channels.most_missed_nj(stretches, work_ns) if coverage < 1 else 0
        is_whole = is_whole and missed_nj is not None and not passed_on
        bill = Bill(
            energy_nj=energy_nj,
            quality=_quality(reason, concurrency, estimated=channels.estimated),
            reason=reason,
            above_idle_nj=sums.dyn_nj if sums.baseline else None,
            lower_nj=lower_nj,
            upper_nj=upper_nj + (missed_nj or 0) if is_whole else None,
            phases_nj=sums.phases_nj,
            components_nj=sums.components_nj,
            meter=channels.meter,
            scope="process" if sums.known else channels.scope,
            method=_method(sums, self._sharing, concurrency),
            coverage=coverage,
            concurrency=concurrency,
            work_ns=work_ns,
            queue_ns=_queue_ns(entry),
        )
        return bill, by_channel


class _Channels:
    """Some of a server's channels, as long as nothing more is swept.

    Attributes:
        each: the channels.
        meter: names of their meters.
        scope: what they cover together.
        estimated: there is a power model among them.
        has_main: there is one among them from which most is drawn.
    """

    def __init__(self, channels: Sequence[ServerChannel]) -> None:
        self.each = channels
        self.meter = "+".join(dict.fromkeys([each.sweep.channel.meter for each in channels]))
        self.scope: Scope = "host" if any(each.sweep.channel.resource == "cpu" for each in channels) else "device"
        self.estimated = any(each.sweep.channel.estimated for each in channels)
        self.has_main = any(each.sweep.is_main for each in channels)
        self._has_gpu = any(each.sweep.channel.component == "gpu" for each in channels)
        self._always_used = not any(each.sweep.ever_unused_by(each.server) for each in channels)
        # There is no gap in any of them in between.
        self._whole_from_ns = max([each.sweep.whole_from_ns for each in channels], default=0)
        self._whole_to_ns = min([each.sweep.swept_ns for each in channels], default=0)

    def used(self, stretches: Sequence[Stretch]) -> _Channels:
        """Those from which the server drew at all."""
        if self._always_used or not stretches:
            return self
        start_ns, end_ns = stretches[0][0], stretches[-1][1]
        return _Channels([each for each in self.each if not each.sweep.unused_by(each.server, start_ns, end_ns)])

    def rested_throughout(self, stretches: Sequence[Stretch]) -> bool:
        """The server hardly did anything in these stretches, and works on no GPU."""
        if self._has_gpu:
            return False
        return all(
            each.sweep.rested_throughout(each.server, start, end) for each in self.each for start, end, _ in stretches
        )

    def covered_ns(self, stretches: Sequence[Stretch]) -> int:
        """How much of these stretches lies in buckets, of every channel."""
        if stretches and self._whole_from_ns <= stretches[0][0] and stretches[-1][1] <= self._whole_to_ns:
            return length_ns(stretches)
        return min([each.covered_ns(stretches) for each in self.each])

    def most_missed_nj(self, stretches: Sequence[Stretch], work_ns: int) -> int | None:
        """The most that can have been drawn in so much work where it is in no reading, or was charged to others.

        ``None`` where it is not known how much can be drawn.
        """
        missed_nj = 0.0
        for each in self.each:
            missed_ns = work_ns - each.covered_ns(stretches)
            most_watts = each.sweep.idle.baseline().highest_watts
            if missed_ns and most_watts is None:
                return None
            missed_nj += missed_ns * (most_watts or 0.0)
        return int(missed_nj)


def _why_not_covered(entry: Entry, channels: _Channels) -> str:
    """There is no reading of the call's time; or there is, but others were charged for it before it was known."""
    windows: list[Stretch] = [(window.start_ns, window.end_ns, (window,)) for window in entry.windows]
    return "no-reading" if channels.covered_ns(windows) < _LEAST_COVERAGE * entry.work_ns else "late"


def charge_nj(entry: Entry, sweep: Sweep) -> int:
    """All that the sweep charged for an entry on one channel, nanojoules, right or wrong."""
    clocks = sweep.clocks(entry.server)
    charged_nj = sum([clocks.dyn.between(s, e) + clocks.idle.between(s, e) for s, e, _ in entry.charged])
    return charged_nj + sum([weight * clocks.weighed.between(s, e) for s, e, weight in entry.charged if weight])


def _parted(windows: Sequence[Window], channels: Sequence[ServerChannel]) -> bool:
    """Whether bucket edges lie near enough to the edges between phases to tell the phases' energy apart."""
    before: Window | None = None
    for window in windows:
        if before is not None and not _parted_at(before, window, channels):
            return False
        before = window
    return True


def _parted_at(before: Window, after: Window, channels: Sequence[ServerChannel]) -> bool:
    start_ns, edge_ns, _, _ = before
    next_edge_ns, end_ns, _, _ = after
    within_ns = _PARTED_WITHIN * min(edge_ns - start_ns, end_ns - next_edge_ns)
    for channel in channels:
        if not channel.has_edge(edge_ns, within_ns):
            return False
        if next_edge_ns != edge_ns and not channel.has_edge(next_edge_ns, within_ns):
            return False
    return True


def _concurrency(stretches: Sequence[Stretch], timeline: Timeline) -> float:
    at_work_ns, load_ns = length_ns(stretches), 0
    for start_ns, end_ns, _ in stretches:
        load_ns += timeline.load.between(start_ns, end_ns)
    return max(load_ns / at_work_ns, 1.0) if at_work_ns else 1.0


def _queue_ns(entry: Entry) -> int:
    load_ns = 0
    for start_ns, end_ns, phase, _ in entry.windows:
        if phase != "load":
            return max(start_ns - entry.opened_ns - load_ns, 0)
        load_ns += end_ns - start_ns
    return 0


def _quality(reason: str | None, concurrency: float, *, estimated: bool) -> Quality:
    """``reason`` is why the bill is degraded; ``None`` if it is not."""
    if estimated:
        return Quality.ESTIMATED
    if reason is not None:
        return Quality.DEGRADED
    return Quality.SHARED if concurrency > _SHARED_ABOVE else Quality.MEASURED


def _weakness(entry: Entry, sums: Sums, coverage: float, width_nj: int) -> str | None:
    if not entry.charged_exactly and entry.within_ns < _WHOLE * max(entry.work_ns, entry.charged_ns):
        return "late"
    if coverage < _WHOLE:
        return "gap"
    if not sums.baseline:
        return "no-idle-baseline"
    if "under-load" in sums.origins:
        return "idle-under-load"
    if width_nj > _COARSE_WIDTH * sums.energy_nj:
        return "coarse-meter"
    if sums.unknown_nj > _MOST_UNKNOWN * sums.energy_nj:
        return "part-unknown"
    return None


def _method(sums: Sums, sharing: Sharing, concurrency: float) -> str:
    """How idle and overlap were shared."""
    if not sums.baseline:
        return "by-time/equal-time"
    batch = sharing.batch if sums.by_weight or concurrency <= 1 else "equal-time"
    shared = f"above-idle/{batch}" if sharing.idle == "time" else f"above-idle/{batch}/idle-{sharing.idle}"
    return f"{shared}/cached-idle" if "cached" in sums.origins else shared

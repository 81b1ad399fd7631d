"""From an entry and the clocks to its bill."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from otel_llm_energy.ledger.bill import Bill, Phase, Quality, Scope, Window, unavailable
from otel_llm_energy.ledger.clocks import Given
from otel_llm_energy.ledger.entry import Entry, Stretch
from otel_llm_energy.ledger.idle import Origin
from otel_llm_energy.ledger.sweep import BatchSharing, IdleSharing, Sweep
from otel_llm_energy.ledger.swept import ServerBucket
from otel_llm_energy.ledger.timeline import Timeline

_LEAST_COVERAGE = 0.9
_WHOLE = 0.98
_SHARED_ABOVE = 1.05
_COARSE_WIDTH = 0.5
# A phase's edge may lie this part of the shorter phase away from a bucket's edge.
_PARTED_WITHIN = 0.1
_SILENT = "counter-silent"


class Sharing(NamedTuple):
    """How calls share: idle energy, and what is above it with others that are at work at the same instant."""

    idle: IdleSharing
    batch: BatchSharing


class _Sums:
    """What one call was given, over its stretches and over channels; ``phases_nj`` only if its phases are parted."""

    __slots__ = (
        "baseline",
        "by_weight",
        "components_nj",
        "dyn_nj",
        "idle_nj",
        "known",
        "lower_nj",
        "origins",
        "parted",
        "phases_nj",
        "upper_nj",
    )

    def __init__(self, *, parted: bool) -> None:
        self.parted = parted
        self.idle_nj = self.dyn_nj = 0
        self.lower_nj = self.upper_nj = 0.0
        self.known = self.baseline = True
        self.by_weight = False
        self.origins: set[Origin] = set()
        self.components_nj: dict[str, int] = {}
        self.phases_nj: dict[Phase, int] = {}


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
        self._drawn = _Channels([_ServerChannel(server, sweep) for sweep in sweeps])
        self._silent = _Channels([_ServerChannel(server, sweep) for sweep in silent])
        self._timeline = timeline
        self._sharing = sharing

    def bill(self, entry: Entry, reason: str | None) -> tuple[Bill, dict[str, int]]:
        """The bill of a closed entry, and its energy by channel in nanojoules.

        ``reason`` is why it is billed ahead of the sweep; ``None`` if all is swept.
        """
        if not self._drawn.each:
            return unavailable(reason or "no-meter"), {}
        work_ns, stretches = entry.work_ns, entry.stretches
        if not work_ns:
            return unavailable(reason or "no-work"), {}
        channels, missing = self._drawn.used(stretches), self._silent.used(stretches)
        if missing.has_main:
            return unavailable(_SILENT), {}
        if not channels.each:
            return unavailable(reason or "not-on-gpu"), {}
        if missing.each:
            reason = reason or _SILENT
        coverage = channels.covered_ns(stretches) / work_ns
        if coverage < _LEAST_COVERAGE:
            return unavailable(reason or "no-reading"), {}
        sums = _Sums(parted=_parted(entry.windows, channels.each))
        by_channel = {channel.id: channel.add(sums, stretches) for channel in channels.each}
        energy_nj = sums.idle_nj + sums.dyn_nj
        concurrency = _concurrency(stretches, self._timeline)
        lower_nj, upper_nj = min(int(sums.lower_nj), energy_nj), max(int(sums.upper_nj) + 1, energy_nj)
        quality, why = _quality(entry, sums, channels, coverage, concurrency, upper_nj - lower_nj, reason)
        bill = Bill(
            energy_nj=energy_nj,
            quality=quality,
            reason=why,
            above_idle_nj=sums.dyn_nj if sums.baseline else None,
            lower_nj=lower_nj,
            upper_nj=None if missing.each else upper_nj,
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

    def __init__(self, channels: Sequence[_ServerChannel]) -> None:
        self.each = channels
        self.meter = "+".join(dict.fromkeys([each.sweep.channel.meter for each in channels]))
        self.scope: Scope = "host" if any(each.sweep.channel.resource == "cpu" for each in channels) else "device"
        self.estimated = any(each.sweep.channel.estimated for each in channels)
        self.has_main = any(each.sweep.is_main for each in channels)
        self._always_used = not any(each.sweep.ever_unused_by(each.server) for each in channels)
        # There is no gap in any of them in between.
        self._whole_from_ns = max([each.sweep.whole_from_ns for each in channels], default=0)
        self._whole_to_ns = min([each.sweep.swept_ns for each in channels], default=0)

    def used(self, stretches: Sequence[Stretch]) -> _Channels:
        """Those from which the server drew at all."""
        if self._always_used or not stretches:
            return self
        start_ns, end_ns = stretches[0].start_ns, stretches[-1].end_ns
        return _Channels([each for each in self.each if not each.sweep.unused_by(each.server, start_ns, end_ns)])

    def covered_ns(self, stretches: Sequence[Stretch]) -> int:
        """How much of these stretches lies in buckets, of every channel."""
        if stretches and self._whole_from_ns <= stretches[0].start_ns and stretches[-1].end_ns <= self._whole_to_ns:
            return sum([end_ns - start_ns for start_ns, end_ns, _ in stretches])
        return min([each.covered_ns(stretches) for each in self.each])


class _ServerChannel:
    """What the calls of one server are given on one channel."""

    __slots__ = ("clocks", "id", "server", "sweep")

    def __init__(self, server: str, sweep: Sweep) -> None:
        self.id = sweep.channel.id
        self.server = server
        self.sweep = sweep
        self.clocks = sweep.clocks(server)

    def covered_ns(self, stretches: Sequence[Stretch]) -> int:
        """How much of these stretches lies in buckets."""
        return sum([self.sweep.covered.between(start_ns, end_ns) for start_ns, end_ns, _ in stretches])

    def has_edge(self, time_ns: int, within_ns: float) -> bool:
        """There is a bucket's edge no further away than that."""
        swept = self.sweep.bucket_at(time_ns)
        if swept is None:
            return False
        return time_ns - swept.bucket.start_ns <= within_ns or swept.bucket.end_ns - time_ns <= within_ns

    def add(self, sums: _Sums, stretches: Sequence[Stretch]) -> int:
        """What this channel adds to the sums, nJ."""
        weighed = self.clocks.weighed
        total_nj = 0
        for stretch in stretches:
            start_ns, end_ns, windows = stretch
            if weighed.end_ns > start_ns and weighed.between(start_ns, end_ns):
                for window in windows:
                    total_nj += self._add_weighed(sums, window)
            else:
                total_nj += self._add(sums, stretch, 0)
        component = self.sweep.channel.component
        sums.components_nj[component] = sums.components_nj.get(component, 0) + total_nj
        return total_nj

    def _add_weighed(self, sums: _Sums, window: Window) -> int:
        """The same of one window of a stretch in which some energy is shared by weight: each has its own."""
        start_ns, end_ns, _, weight = window
        sums.by_weight = sums.by_weight or bool(weight and self.clocks.weighed.between(start_ns, end_ns))
        return self._add(sums, Stretch(start_ns, end_ns, (window,)), weight)

    def _add(self, sums: _Sums, stretch: Stretch, weight: int) -> int:
        """The same of a stretch of one weight."""
        start_ns, end_ns, windows = stretch
        first, last = self._bucket_at(start_ns + 1), self._bucket_at(end_ns)
        begin = (first or self.clocks).given(start_ns, weight)
        end = (last or self.clocks).given(end_ns, weight)
        idle_nj, dyn_nj = end[1] - begin[1], end[2] - begin[2]
        sums.idle_nj += idle_nj
        sums.dyn_nj += dyn_nj
        if sums.parted:
            self._add_phases(sums.phases_nj, windows, begin, end, weight)
        if first is None or last is None:
            sums.known = sums.baseline = False
        else:
            self._add_bounds(sums, first, last, begin, end, weight)
        return idle_nj + dyn_nj

    def _add_phases(
        self, phases_nj: dict[Phase, int], windows: Sequence[Window], begin: Given, end: Given, weight: int
    ) -> None:
        before_nj = begin[1] + begin[2]
        for _, until_ns, phase, _ in windows:
            _, idle_nj, dyn_nj = end if until_ns == end[0] else self.clocks.given(until_ns, weight)
            phases_nj[phase] = phases_nj.get(phase, 0) + idle_nj + dyn_nj - before_nj
            before_nj = idle_nj + dyn_nj

    def _bucket_at(self, time_ns: int) -> ServerBucket | None:
        swept = self.sweep.bucket_at(time_ns)
        return None if swept is None else swept.of(self.server, self.clocks)

    def _add_bounds(
        self, sums: _Sums, first: ServerBucket, last: ServerBucket, begin: Given, end: Given, weight: int
    ) -> None:
        """Bounds of a stretch: inner buckets from the clocks, the first and the last by how far they are covered."""
        start_ns, idle_start_nj, dyn_start_nj = begin
        end_ns, idle_end_nj, dyn_end_nj = end
        lower_nj, upper_nj = _spanning_nj(first, last, begin, end, weight)
        head_nj = tail_nj = dyn_end_nj - dyn_start_nj
        if first is not last:
            head_nj, tail_nj = first.at_end(weight)[2] - dyn_start_nj, dyn_end_nj - last.at_start(weight)[2]
        doubt_nj = first.doubt_nj(head_nj, first.start_error_ns, start_ns - first.start_ns)
        doubt_nj += last.doubt_nj(tail_nj, last.end_error_ns, last.end_ns - end_ns)
        idle_nj = idle_end_nj - idle_start_nj
        share_nj = idle_nj + dyn_end_nj - dyn_start_nj
        lower_nj, upper_nj = min(lower_nj, share_nj), max(upper_nj, share_nj)  # doubts add to the figure, not to less
        scale = self.sweep.channel.scale_error
        sums.lower_nj += max(lower_nj - doubt_nj, 0.0) * (1 - scale)
        sums.upper_nj += (upper_nj + doubt_nj + _drift_doubt_nj(first, last, idle_nj)) * (1 + scale)
        sums.known = sums.known and first.known and last.known
        sums.baseline = sums.baseline and first.has_baseline and last.has_baseline
        sums.origins.update((first.baseline.origin, last.baseline.origin))


def _spanning_nj(first: ServerBucket, last: ServerBucket, begin: Given, end: Given, weight: int) -> tuple[float, float]:
    """Bounds of a stretch that begins in one bucket and ends in the same or another."""
    from_start, to_end = first.start_ns >= begin[0], last.end_ns <= end[0]
    if first is last and not (from_start and to_end):
        return first.bounds_nj(begin, end, weight)
    lower_nj = upper_nj = 0.0
    since, until = first.before, last.after
    if not from_start:
        lower_nj, upper_nj = first.bounds_nj(begin, first.at_end(weight), weight)
        since = first.after
    if not to_end:
        tail_lower_nj, tail_upper_nj = last.bounds_nj(last.at_start(weight), end, weight)
        lower_nj, upper_nj = lower_nj + tail_lower_nj, upper_nj + tail_upper_nj
        until = last.before
    lower_nj += until.lower_nj - since.lower_nj
    upper_nj += until.upper_nj - since.upper_nj
    if weight:
        lower_nj += weight * (until.weighed_lower_nj - since.weighed_lower_nj)
        upper_nj += weight * (until.weighed_upper_nj - since.weighed_upper_nj)
    return lower_nj, upper_nj


def _drift_doubt_nj(first: ServerBucket, last: ServerBucket, idle_nj: int) -> float:
    """What a higher idle power would add to a share, nJ: a share has all of idle, and of the rest the server's part."""
    drift = max(first.baseline.drift, last.baseline.drift)
    return drift * idle_nj * (1 - min(first.portion, last.portion)) if drift else 0.0


def charge_nj(entry: Entry, sweep: Sweep) -> int:
    """All that the sweep charged for an entry on one channel, nanojoules, right or wrong."""
    clocks = sweep.clocks(entry.server)
    charged_nj = sum([clocks.dyn.between(s, e) + clocks.idle.between(s, e) for s, e, _ in entry.charged])
    return charged_nj + sum([weight * clocks.weighed.between(s, e) for s, e, weight in entry.charged if weight])


def _parted(windows: Sequence[Window], channels: Sequence[_ServerChannel]) -> bool:
    """Whether bucket edges lie near enough to the edges between phases to tell the phases' energy apart."""
    for (start_ns, edge_ns, *_), (next_edge_ns, end_ns, *_) in pairwise(windows):
        within_ns = _PARTED_WITHIN * min(edge_ns - start_ns, end_ns - next_edge_ns)
        for at_ns in (edge_ns,) if edge_ns == next_edge_ns else (edge_ns, next_edge_ns):
            for channel in channels:
                if not channel.has_edge(at_ns, within_ns):
                    return False
    return True


def _concurrency(stretches: Sequence[Stretch], timeline: Timeline) -> float:
    at_work_ns = load_ns = 0
    for start_ns, end_ns, _ in stretches:
        at_work_ns += end_ns - start_ns
        load_ns += timeline.load.between(start_ns, end_ns)
    return max(load_ns / at_work_ns, 1.0) if at_work_ns else 1.0


def _queue_ns(entry: Entry) -> int:
    load_ns = 0
    for start_ns, end_ns, phase, _ in entry.windows:
        if phase != "load":
            return max(start_ns - entry.opened_ns - load_ns, 0)
        load_ns += end_ns - start_ns
    return 0


def _quality(
    entry: Entry,
    sums: _Sums,
    channels: _Channels,
    coverage: float,
    concurrency: float,
    width_nj: int,
    reason: str | None,
) -> tuple[Quality, str | None]:
    if channels.estimated:
        return Quality.ESTIMATED, None
    why = reason or entry.caution or _weakness(entry, sums, coverage, width_nj)
    if why is not None:
        return Quality.DEGRADED, why
    return (Quality.SHARED if concurrency > _SHARED_ABOVE else Quality.MEASURED), None


def _weakness(entry: Entry, sums: _Sums, coverage: float, width_nj: int) -> str | None:
    if not entry.charged_exactly and entry.within_ns < _WHOLE * max(entry.work_ns, entry.charged_ns):
        return "late"
    if coverage < _WHOLE:
        return "gap"
    if not sums.baseline:
        return "no-idle-baseline"
    if "under-load" in sums.origins:
        return "idle-under-load"
    if width_nj > _COARSE_WIDTH * (sums.idle_nj + sums.dyn_nj):
        return "coarse-meter"
    return None


def _method(sums: _Sums, sharing: Sharing, concurrency: float) -> str:
    """How idle and overlap were shared."""
    if not sums.baseline:
        return "by-time/equal-time"
    batch = sharing.batch if sums.by_weight or concurrency <= 1 else "equal-time"
    shared = f"above-idle/{batch}" if sharing.idle == "time" else f"above-idle/{batch}/idle-{sharing.idle}"
    return f"{shared}/cached-idle" if "cached" in sums.origins else shared

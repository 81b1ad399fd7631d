"""From an entry and the clocks to its bill."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from otel_llm_energy.ledger.bill import Bill, Phase, Quality, Scope, Window, unavailable
from otel_llm_energy.ledger.clocks import Given
from otel_llm_energy.ledger.entry import Entry
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
        self._channels = [_ServerChannel(server, sweep) for sweep in sweeps]
        self._silent = [_ServerChannel(server, sweep) for sweep in silent]
        self._timeline = timeline
        self._sharing = sharing

    def bill(self, entry: Entry, reason: str | None) -> tuple[Bill, dict[str, int]]:
        """The bill of a closed entry, and its energy by channel in nanojoules.

        ``reason`` is why it is billed ahead of the sweep; ``None`` if all is swept.
        """
        if not self._channels:
            return unavailable(reason or "no-meter"), {}
        work_ns, stretches = entry.work_ns, entry.stretches
        if not work_ns:
            return unavailable(reason or "no-work"), {}
        channels, missing = _used(self._channels, stretches), _used(self._silent, stretches)
        if any(channel.sweep.is_main for channel in missing):
            return unavailable(_SILENT), {}
        if not channels:
            return unavailable(reason or "not-on-gpu"), {}
        if missing:
            reason = reason or _SILENT
        coverage = min([channel.covered_ns(stretches) for channel in channels]) / work_ns
        if coverage < _LEAST_COVERAGE:
            return unavailable(reason or "no-reading"), {}
        sums = _Sums(parted=_parted(entry.windows, channels))
        by_channel = {channel.sweep.channel.id: channel.add(sums, stretches) for channel in channels}
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
            upper_nj=None if missing else upper_nj,
            phases_nj=sums.phases_nj,
            components_nj=sums.components_nj,
            meter="+".join(dict.fromkeys([channel.sweep.channel.meter for channel in channels])),
            scope=_scope(sums, channels),
            method=_method(sums, self._sharing, concurrency),
            coverage=coverage,
            concurrency=concurrency,
            work_ns=work_ns,
            queue_ns=_queue_ns(entry),
        )
        return bill, by_channel


class _ServerChannel:
    """What the calls of one server are given on one channel."""

    __slots__ = ("clocks", "server", "sweep")

    def __init__(self, server: str, sweep: Sweep) -> None:
        self.server = server
        self.sweep = sweep
        self.clocks = sweep.clocks(server)

    def covered_ns(self, stretches: Sequence[Sequence[Window]]) -> int:
        """How much of these stretches lies in buckets."""
        sweep = self.sweep
        covered_ns = 0
        for windows in stretches:
            start_ns, end_ns = windows[0].start_ns, windows[-1].end_ns
            whole = sweep.whole_from_ns <= start_ns and end_ns <= sweep.swept_ns
            covered_ns += end_ns - start_ns if whole else sweep.covered.between(start_ns, end_ns)
        return covered_ns

    def add(self, sums: _Sums, stretches: Sequence[Sequence[Window]]) -> int:
        """What this channel adds to the sums, nJ."""
        weighed = self.clocks.weighed
        total_nj = 0
        for windows in stretches:
            start_ns, end_ns = windows[0].start_ns, windows[-1].end_ns
            if weighed.end_ns > start_ns and weighed.between(start_ns, end_ns):
                for window in windows:
                    total_nj += self._add_weighed(sums, window)
            else:
                total_nj += self._add(sums, windows, 0)
        component = self.sweep.channel.component
        sums.components_nj[component] = sums.components_nj.get(component, 0) + total_nj
        return total_nj

    def _add_weighed(self, sums: _Sums, window: Window) -> int:
        """The same of one window of a stretch in which some energy is shared by weight: each has its own."""
        start_ns, end_ns, _, weight = window
        sums.by_weight = sums.by_weight or bool(weight and self.clocks.weighed.between(start_ns, end_ns))
        return self._add(sums, (window,), weight)

    def _add(self, sums: _Sums, windows: Sequence[Window], weight: int) -> int:
        """The same of adjoining windows of one weight."""
        begin = end = self.clocks.given(windows[0].start_ns, weight)
        for _, end_ns, phase, _ in windows if sums.parted else windows[-1:]:
            _, idle_before_nj, dyn_before_nj = end
            end = _, idle_nj, dyn_nj = self.clocks.given(end_ns, weight)
            if sums.parted:
                phase_nj = idle_nj + dyn_nj - idle_before_nj - dyn_before_nj
                sums.phases_nj[phase] = sums.phases_nj.get(phase, 0) + phase_nj
        _, idle_start_nj, dyn_start_nj = begin
        idle_nj, dyn_nj = idle_nj - idle_start_nj, dyn_nj - dyn_start_nj
        sums.idle_nj += idle_nj
        sums.dyn_nj += dyn_nj
        self._add_bounds(sums, begin, end, weight)
        return idle_nj + dyn_nj

    def _add_bounds(self, sums: _Sums, begin: Given, end: Given, weight: int) -> None:
        """Bounds of a stretch: inner buckets from the clocks, the first and the last by how far they are covered."""
        start_ns, idle_start_nj, dyn_start_nj = begin
        end_ns, idle_end_nj, dyn_end_nj = end
        first, last = self.sweep.bucket_at(start_ns + 1), self.sweep.bucket_at(end_ns)
        if first is None or last is None:
            sums.known = sums.baseline = False
            return
        head, tail = first.of(self.server, self.clocks), last.of(self.server, self.clocks)
        head_end, tail_start = (end, begin) if first is last else (head.at_end(weight), tail.at_start(weight))
        lower_nj, upper_nj = _spanning_nj(head, tail, (begin, head_end), (tail_start, end), weight)
        doubt_nj = head.doubt_nj(head_end[2] - dyn_start_nj, head.start_error_ns, start_ns - head.start_ns)
        doubt_nj += tail.doubt_nj(dyn_end_nj - tail_start[2], tail.end_error_ns, tail.end_ns - end_ns)
        idle_nj = idle_end_nj - idle_start_nj
        share_nj = idle_nj + dyn_end_nj - dyn_start_nj
        lower_nj, upper_nj = min(lower_nj, share_nj), max(upper_nj, share_nj)  # doubts add to the figure, not to less
        scale = self.sweep.channel.scale_error
        sums.lower_nj += max(lower_nj - doubt_nj, 0.0) * (1 - scale)
        sums.upper_nj += (upper_nj + doubt_nj + _drift_doubt_nj(head, tail, idle_nj)) * (1 + scale)
        for bucket in (head, tail):
            sums.known = sums.known and bucket.known
            sums.baseline = sums.baseline and bucket.baseline.watts is not None
            sums.origins.add(bucket.baseline.origin)


def _spanning_nj(
    first: ServerBucket, last: ServerBucket, head: tuple[Given, Given], tail: tuple[Given, Given], weight: int
) -> tuple[float, float]:
    """Bounds of a stretch that begins in one bucket and ends in the same or another; the parts of it that lie there."""
    from_start, to_end = first.start_ns >= head[0][0], last.end_ns <= tail[1][0]
    if first is last and not (from_start and to_end):
        return first.bounds_nj(*head, weight)
    lower_nj = upper_nj = 0.0
    since, until = first.before, last.after
    if not from_start:
        lower_nj, upper_nj = first.bounds_nj(*head, weight)
        since = first.after
    if not to_end:
        tail_lower_nj, tail_upper_nj = last.bounds_nj(*tail, weight)
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


def _used(channels: Sequence[_ServerChannel], stretches: Sequence[Sequence[Window]]) -> Sequence[_ServerChannel]:
    """Those of the channels from which the server drew at all."""
    if not stretches:
        return channels
    start_ns, end_ns = stretches[0][0].start_ns, stretches[-1][-1].end_ns
    return [each for each in channels if not each.sweep.unused_by(each.server, start_ns, end_ns)]


def _parted(windows: Sequence[Window], channels: Sequence[_ServerChannel]) -> bool:
    """Whether bucket edges lie near enough to the edges between phases to tell the phases' energy apart."""
    for before, after in pairwise(windows):
        within_ns = _PARTED_WITHIN * min(before.end_ns - before.start_ns, after.end_ns - after.start_ns)
        edges_ns = (before.end_ns,) if before.end_ns == after.start_ns else (before.end_ns, after.start_ns)
        for edge_ns in edges_ns:
            for channel in channels:
                swept = channel.sweep.bucket_at(edge_ns)
                if swept is None:
                    return False
                if min(edge_ns - swept.bucket.start_ns, swept.bucket.end_ns - edge_ns) > within_ns:
                    return False
    return True


def _concurrency(stretches: Sequence[Sequence[Window]], timeline: Timeline) -> float:
    at_work_ns = load_ns = 0
    for windows in stretches:
        start_ns, end_ns = windows[0].start_ns, windows[-1].end_ns
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
    channels: Sequence[_ServerChannel],
    coverage: float,
    concurrency: float,
    width_nj: int,
    reason: str | None,
) -> tuple[Quality, str | None]:
    if any(each.sweep.channel.estimated for each in channels):
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


def _scope(sums: _Sums, channels: Sequence[_ServerChannel]) -> Scope:
    if sums.known:
        return "process"
    return "device" if all(each.sweep.channel.resource != "cpu" for each in channels) else "host"


def _method(sums: _Sums, sharing: Sharing, concurrency: float) -> str:
    """How idle and overlap were shared."""
    if not sums.baseline:
        return "by-time/equal-time"
    batch = sharing.batch if sums.by_weight or concurrency <= 1 else "equal-time"
    shared = f"above-idle/{batch}" if sharing.idle == "time" else f"above-idle/{batch}/idle-{sharing.idle}"
    return f"{shared}/cached-idle" if "cached" in sums.origins else shared

"""From an entry and the clocks to its bill."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from otel_llm_energy.ledger.bill import Bill, Phase, Quality, Scope, Window, unavailable
from otel_llm_energy.ledger.bounds import Worked, edge_bounds_nj, worked_bounds_nj
from otel_llm_energy.ledger.entry import Entry
from otel_llm_energy.ledger.idle import Origin
from otel_llm_energy.ledger.sweep import (
    BatchSharing,
    ClockReading,
    IdleSharing,
    ServerClocks,
    ServerPart,
    Sweep,
    Swept,
)
from otel_llm_energy.ledger.timeline import Timeline

_LEAST_COVERAGE = 0.9
_WHOLE = 0.98
_SHARED_ABOVE = 1.05
_COARSE_WIDTH = 0.5
_MOST_UNKNOWN = 0.1
# A phase's edge may lie this part of the shorter phase away from a bucket's edge.
_PARTED_WITHIN = 0.1
_SILENT = "counter-silent"


class Sharing(NamedTuple):
    """How calls share: idle energy, and what is above it with others that are at work at the same instant."""

    idle: IdleSharing
    batch: BatchSharing


@dataclass(slots=True)
class _Sums:
    """What one call was given, over its stretches and over channels.

    ``weighed_nj`` is the part by weight, ``unknown_nj`` what others may have drawn, see `_unknown_nj`.
    """

    idle_nj: int = 0
    dyn_nj: int = 0
    weighed_nj: int = 0
    unknown_nj: int = 0
    lower_nj: float = 0.0
    upper_nj: float = 0.0
    known: bool = True
    baseline: bool = True
    origins: set[Origin] = field(default_factory=set)
    components_nj: dict[str, int] = field(default_factory=dict)
    phases_nj: dict[Phase, int] = field(default_factory=dict)


def bill_for(
    entry: Entry,
    sweeps: Sequence[Sweep],
    timeline: Timeline,
    sharing: Sharing,
    reason: str | None,
    silent: Sequence[Sweep] = (),
) -> tuple[Bill, dict[str, int]]:
    """The bill of a closed entry, and its energy by channel in nanojoules.

    Args:
        entry: closed.
        sweeps: of all channels that its server draws from.
        timeline: of its server.
        sharing: how calls share.
        reason: why it is billed ahead of the sweep; ``None`` if all is swept.
        silent: channels whose counters stand still. Without its memory's energy a bill is degraded, without that of a
            CPU, a GPU or the host there would be little in it: then there is none.
    """
    if not sweeps:
        return unavailable(reason or "no-meter"), {}
    work_ns = entry.work_ns
    if not work_ns:
        return unavailable(reason or "no-work"), {}
    stretches = entry.stretches
    sweeps = _used(entry, sweeps)
    missing = _used(entry, silent)
    if any(sweep.is_main for sweep in missing):
        return unavailable(_SILENT), {}
    if not sweeps:
        return unavailable(reason or "not-on-gpu"), {}
    if missing:
        reason = reason or _SILENT
    coverage = min([_covered_ns(stretches, sweep) for sweep in sweeps]) / work_ns
    if coverage < _LEAST_COVERAGE:
        return unavailable(reason or "no-reading"), {}
    sums = _Sums()
    by_channel = {sweep.channel.id: _add_channel(sums, entry.server, stretches, sweep) for sweep in sweeps}
    energy_nj = sums.idle_nj + sums.dyn_nj
    concurrency = _concurrency(stretches, timeline)
    lower_nj, upper_nj = min(int(sums.lower_nj), energy_nj), max(int(sums.upper_nj) + 1, energy_nj)
    quality, why = _quality(entry, sums, sweeps, coverage, concurrency, (lower_nj, upper_nj), reason)
    lower_nj = max(lower_nj - sums.unknown_nj, 0)
    bill = Bill(
        energy_nj=energy_nj,
        quality=quality,
        reason=why,
        above_idle_nj=sums.dyn_nj if sums.baseline else None,
        lower_nj=lower_nj,
        upper_nj=None if missing else upper_nj,
        phases_nj=sums.phases_nj if all(_parted(entry, sweep) for sweep in sweeps) else {},
        components_nj=sums.components_nj,
        meter="+".join(dict.fromkeys(sweep.channel.meter for sweep in sweeps)),
        scope=_scope(sums, sweeps),
        method=_method(sums, sharing, concurrency),
        coverage=coverage,
        concurrency=concurrency,
        work_ns=work_ns,
        queue_ns=_queue_ns(entry),
    )
    return bill, by_channel


def _used(entry: Entry, sweeps: Sequence[Sweep]) -> Sequence[Sweep]:
    """Those of the channels from which the entry's server drew at all."""
    if not entry.stretches:
        return sweeps
    start_ns, end_ns = entry.stretches[0][0].start_ns, entry.stretches[-1][-1].end_ns
    return [sweep for sweep in sweeps if not sweep.unused_by(entry.server, start_ns, end_ns)]


def charge_nj(entry: Entry, sweep: Sweep) -> int:
    """All that the sweep charged for an entry on one channel, nanojoules, right or wrong."""
    clocks = sweep.clocks(entry.server)
    charged_nj = sum([clocks.dyn.between(s, e) + clocks.idle.between(s, e) for s, e, _ in entry.charged])
    return charged_nj + sum([weight * clocks.weighed.between(s, e) for s, e, weight in entry.charged if weight])


def _add_channel(sums: _Sums, server: str, stretches: Sequence[Sequence[Window]], sweep: Sweep) -> int:
    clocks = sweep.clocks(server)
    idle_at, dyn_at = clocks.idle.at, clocks.dyn.at
    phases_nj = sums.phases_nj
    total_nj = 0
    for windows in stretches:
        start_ns = windows[0].start_ns
        if clocks.weighed.end_ns > start_ns and clocks.weighed.between(start_ns, windows[-1].end_ns):
            total_nj += _add_weighed(sums, server, windows, sweep)
            continue
        idle_start_nj, dyn_start_nj = idle_at(start_ns), dyn_at(start_ns)
        idle_nj, dyn_nj = idle_start_nj, dyn_start_nj
        for _, end_ns, phase, _ in windows:
            before_nj = idle_nj + dyn_nj
            idle_nj, dyn_nj = idle_at(end_ns), dyn_at(end_ns)
            phases_nj[phase] = phases_nj.get(phase, 0) + idle_nj + dyn_nj - before_nj
        idle_nj, dyn_nj = idle_nj - idle_start_nj, dyn_nj - dyn_start_nj
        sums.idle_nj += idle_nj
        sums.dyn_nj += dyn_nj
        total_nj += idle_nj + dyn_nj
        share = _Share(start_ns, windows[-1].end_ns, idle_nj, dyn_nj)
        _add_bounds(sums, server, sweep, share, (idle_start_nj, dyn_start_nj))
    component = sweep.channel.component
    sums.components_nj[component] = sums.components_nj.get(component, 0) + total_nj
    return total_nj


def _add_weighed(sums: _Sums, server: str, windows: Sequence[Window], sweep: Sweep) -> int:
    """The same for a stretch of which some energy is shared by weight, one window at a time: each has its own."""
    clocks = sweep.clocks(server)
    total_nj = 0
    for start_ns, end_ns, phase, weight in windows:
        share = _part(clocks, start_ns, end_ns, weight)
        sums.idle_nj += share.idle_nj
        sums.dyn_nj += share.dyn_nj
        sums.weighed_nj += weight * clocks.weighed.between(start_ns, end_ns)
        sums.phases_nj[phase] = sums.phases_nj.get(phase, 0) + share.idle_nj + share.dyn_nj
        total_nj += share.idle_nj + share.dyn_nj
        _add_bounds(sums, server, sweep, share, (clocks.idle.at(start_ns), clocks.dyn.at(start_ns)))
    return total_nj


class _Share(NamedTuple):
    """What a call of some weight was given for a stretch of time, or a part of it."""

    start_ns: int
    end_ns: int
    idle_nj: int
    dyn_nj: int
    weight: int = 0


def _add_bounds(sums: _Sums, server: str, sweep: Sweep, share: _Share, start_nj: tuple[int, int]) -> None:
    """Bounds of a stretch: inner buckets from the clocks, the first and the last by how far they are covered.

    ``start_nj`` is what the clocks of idle energy and of the rest say at the stretch's start.
    """
    first, last = sweep.bucket_at(share.start_ns + 1), sweep.bucket_at(share.end_ns)
    if first is None or last is None:
        sums.known = sums.baseline = False
        return
    clocks = sweep.clocks(server)
    head, tail = _ends(server, clocks, first, last, share, start_nj)
    lower_nj, upper_nj = _spanning(server, clocks, (first, head), (last, tail), share)
    doubt_nj = _doubt(server, first, head, first.bucket.start_error_ns, share.start_ns - first.bucket.start_ns)
    doubt_nj += _doubt(server, last, tail, last.bucket.end_error_ns, last.bucket.end_ns - share.end_ns)
    scale = sweep.channel.scale_error
    share_nj = share.idle_nj + share.dyn_nj
    lower_nj, upper_nj = min(lower_nj, share_nj), max(upper_nj, share_nj)  # doubts add to the figure, not to less
    sums.unknown_nj += _unknown_nj(server, sweep, first, last, share)
    sums.lower_nj += max(lower_nj - doubt_nj, 0.0) * (1 - scale)
    sums.upper_nj += (upper_nj + doubt_nj + _drift_doubt(server, first, last, share)) * (1 + scale)
    for swept in (first, last):
        part = swept.parts.get(server)
        sums.known = sums.known and (part is None or part.known)
        sums.baseline = sums.baseline and swept.baseline.watts is not None
        sums.origins.add(swept.baseline.origin)


def _unknown_nj(server: str, sweep: Sweep, first: Swept, last: Swept, share: _Share) -> int:
    """Of a stretch's energy above idle, what was given while activity was known, but the server's part of it was not.

    A server is not known until it is found, or for as long as its user hides it.
    """
    if not (_hides(server, first) or _hides(server, last)):
        return 0
    clocks, unknown_nj = sweep.clocks(server), 0
    swept: Swept | None = first
    while swept is not None:
        if _hides(server, swept):
            start_ns, end_ns = max(swept.bucket.start_ns, share.start_ns), min(swept.bucket.end_ns, share.end_ns)
            unknown_nj += _part(clocks, start_ns, end_ns, share.weight).dyn_nj
        swept = sweep.bucket_at(swept.bucket.end_ns + 1) if swept is not last else None
    return unknown_nj


def _hides(server: str, swept: Swept) -> bool:
    part = swept.parts.get(server)
    return part is not None and not part.known and swept.busy_ns > 0


def _ends(
    server: str, clocks: ServerClocks, first: Swept, last: Swept, share: _Share, start_nj: tuple[int, int]
) -> tuple[_Share, _Share]:
    """The parts of a stretch that lie in its first and in its last bucket."""
    if first is last:
        return share, share
    head_end_ns, tail_start_ns = first.bucket.end_ns, last.bucket.start_ns
    if share.weight:
        return (
            _part(clocks, share.start_ns, head_end_ns, share.weight),
            _part(clocks, tail_start_ns, share.end_ns, share.weight),
        )
    idle_start_nj, dyn_start_nj = start_nj
    after, before = _after(server, clocks, first), _before(server, clocks, last)
    return (
        _Share(share.start_ns, head_end_ns, after.idle_nj - idle_start_nj, after.dyn_nj - dyn_start_nj),
        _Share(
            tail_start_ns,
            share.end_ns,
            idle_start_nj + share.idle_nj - before.idle_nj,
            dyn_start_nj + share.dyn_nj - before.dyn_nj,
        ),
    )


def _before(server: str, clocks: ServerClocks, swept: Swept) -> ClockReading:
    return swept.before.get(server) or clocks.at(swept.bucket.start_ns)


def _after(server: str, clocks: ServerClocks, swept: Swept) -> ClockReading:
    return swept.after.get(server) or clocks.at(swept.bucket.end_ns)


def _spanning(
    server: str, clocks: ServerClocks, head: tuple[Swept, _Share], tail: tuple[Swept, _Share], share: _Share
) -> tuple[float, float]:
    """Bounds of a stretch that begins in one bucket and ends in the same or another; the parts of it that lie there."""
    first, last = head[0], tail[0]
    from_start, to_end = first.bucket.start_ns >= share.start_ns, last.bucket.end_ns <= share.end_ns
    if first is last and not (from_start and to_end):
        return _edge(server, *head)
    lower_nj = upper_nj = 0.0
    begin, end = _before(server, clocks, first), _after(server, clocks, last)
    inner_start_ns, inner_end_ns = share.start_ns, share.end_ns
    if not from_start:
        lower_nj, upper_nj = _edge(server, *head)
        begin, inner_start_ns = _after(server, clocks, first), first.bucket.end_ns
    if not to_end:
        lower, upper = _edge(server, *tail)
        lower_nj, upper_nj = lower_nj + lower, upper_nj + upper
        end, inner_end_ns = _before(server, clocks, last), last.bucket.start_ns
    lower_nj += end.lower_nj - begin.lower_nj
    upper_nj += end.upper_nj - begin.upper_nj
    if share.weight:
        lower_nj += share.weight * clocks.weighed_lower.between(inner_start_ns, inner_end_ns)
        upper_nj += share.weight * clocks.weighed_upper.between(inner_start_ns, inner_end_ns)
    return lower_nj, upper_nj


def _part(clocks: ServerClocks, start_ns: int, end_ns: int, weight: int) -> _Share:
    dyn_nj = clocks.dyn.between(start_ns, end_ns)
    if weight:
        dyn_nj += weight * clocks.weighed.between(start_ns, end_ns)
    return _Share(start_ns, end_ns, clocks.idle.between(start_ns, end_ns), dyn_nj, weight)


def _edge(server: str, swept: Swept, share: _Share) -> tuple[float, float]:
    bucket = swept.bucket
    covered_ns = share.end_ns - share.start_ns
    idle_evenly_nj = (bucket.energy_nj - swept.dyn_nj) * covered_ns / bucket.length_ns
    idle_weight = min(share.idle_nj / idle_evenly_nj, 1.0) if idle_evenly_nj else 1.0
    part = swept.parts.get(server)
    if part is None or not part.dyn_nj:
        portion = 1.0 if part is None else part.portion
        return edge_bounds_nj(bucket, swept.baseline, covered_ns, portion, idle_weight, [])
    divisions = _divisions(part, share)
    if part.known and swept.baseline.watts is not None:
        within = min(share.dyn_nj / part.dyn_nj, 1.0)
        worked = Worked(swept.dyn_nj, part.portion, part.at_work_ns, part.most_watts, within)
        return worked_bounds_nj(bucket, swept.baseline, covered_ns, idle_weight, divisions, worked)
    return edge_bounds_nj(bucket, swept.baseline, covered_ns, part.portion, idle_weight, divisions)


def _divisions(part: ServerPart, share: _Share) -> list[tuple[int, float]]:
    """Into how many parts like the call's the server's energy is divided while it is at work: (length, parts).

    Where the calls change often, only the extremes, each for all of the time.
    """
    if len(part.steps) == len(part.extremes):
        overlaps = [(min(step.end_ns, share.end_ns) - max(step.start_ns, share.start_ns), step) for step in part.steps]
    else:
        overlaps = [(share.end_ns - share.start_ns, step) for step in part.extremes]
    return [
        (length_ns, step.weight / share.weight if step.weight and share.weight else float(step.calls))
        for length_ns, step in overlaps
        if length_ns > 0
    ]


def _doubt(server: str, swept: Swept, share: _Share, error_ns: int, distance_ns: int) -> float:
    """What is not known at one end of a stretch, nJ: when the counter was read, and what the activity counters say.

    The counter's time may lie to either side of the bucket's edge that we took. A call whose own edge lies there may
    have drawn what is on the other side; one whose edge is further away has only its part of the bucket's energy.
    Errors of activity do not add up over cells: a cell's end is the next one's start.

    Args:
        server: of the call.
        swept: the bucket at that end.
        share: what the call has of it.
        error_ns: of the time of the bucket's outer edge.
        distance_ns: between the edges of bucket and call.
    """
    part = swept.parts.get(server)
    reading_nj = error_ns * _most_watts(swept)
    if part is None or not part.dyn_nj or not swept.dyn_nj:
        return reading_nj
    portion, within = part.dyn_nj / swept.dyn_nj, min(share.dyn_nj / part.dyn_nj, 1.0)
    if distance_ns > error_ns:
        reading_nj *= portion * within
    if not part.known or not swept.busy_ns:
        return reading_nj
    activity_ns = swept.resolution_ns + swept.total_resolution_ns * portion
    return reading_nj + 0.5 * activity_ns * within * swept.dyn_nj / swept.busy_ns


def _most_watts(swept: Swept) -> float:
    return swept.baseline.highest_watts or swept.bucket.energy_nj / swept.bucket.length_ns


def _drift_doubt(server: str, first: Swept, last: Swept, share: _Share) -> float:
    """What a higher idle power would add to a share, nJ: a share has all of idle, and of the rest the server's part."""
    drift = max(first.baseline.drift, last.baseline.drift)
    if not drift:
        return 0.0
    parts = [(swept.parts.get(server), swept.dyn_nj) for swept in (first, last)]
    least = min(part.dyn_nj / dyn_nj if part and dyn_nj else 0.0 for part, dyn_nj in parts)
    return drift * share.idle_nj * (1 - least)


def _covered_ns(stretches: Sequence[Sequence[Window]], sweep: Sweep) -> int:
    covered_ns = 0
    for windows in stretches:
        start_ns, end_ns = windows[0].start_ns, windows[-1].end_ns
        whole = sweep.whole_from_ns <= start_ns and end_ns <= sweep.swept_ns
        covered_ns += end_ns - start_ns if whole else sweep.covered.between(start_ns, end_ns)
    return covered_ns


def _parted(entry: Entry, sweep: Sweep) -> bool:
    """Whether bucket edges lie near enough to the edges between phases to tell the phases' energy apart."""
    for before, after in pairwise(entry.windows):
        shorter_ns = min(before.end_ns - before.start_ns, after.end_ns - after.start_ns)
        edges_ns = (before.end_ns,) if before.end_ns == after.start_ns else (before.end_ns, after.start_ns)
        for edge_ns in edges_ns:
            swept = sweep.bucket_at(edge_ns)
            if swept is None:
                return False
            distance_ns = min(edge_ns - swept.bucket.start_ns, swept.bucket.end_ns - edge_ns)
            if distance_ns > _PARTED_WITHIN * shorter_ns:
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
    load_ns = sum(w.end_ns - w.start_ns for w in entry.windows if w.phase == "load")
    work = [w.start_ns for w in entry.windows if w.phase != "load"]
    return max(work[0] - entry.opened_ns - load_ns, 0) if work else 0


def _quality(
    entry: Entry,
    sums: _Sums,
    sweeps: Sequence[Sweep],
    coverage: float,
    concurrency: float,
    bounds_nj: tuple[int, int],
    reason: str | None,
) -> tuple[Quality, str | None]:
    if any(sweep.channel.estimated for sweep in sweeps):
        return Quality.ESTIMATED, None
    why = reason or entry.caution or _weakness(entry, sums, coverage, bounds_nj)
    if why is not None:
        return Quality.DEGRADED, why
    return (Quality.SHARED if concurrency > _SHARED_ABOVE else Quality.MEASURED), None


def _weakness(entry: Entry, sums: _Sums, coverage: float, bounds_nj: tuple[int, int]) -> str | None:
    if not entry.charged_exactly and entry.within_ns < _WHOLE * max(entry.work_ns, entry.charged_ns):
        return "late"
    if coverage < _WHOLE:
        return "gap"
    if not sums.baseline:
        return "no-idle-baseline"
    if "under-load" in sums.origins:
        return "idle-under-load"
    energy_nj = sums.idle_nj + sums.dyn_nj
    if bounds_nj[1] - bounds_nj[0] > _COARSE_WIDTH * energy_nj:
        return "coarse-meter"
    if sums.unknown_nj > _MOST_UNKNOWN * energy_nj:
        return "part-unknown"
    return None


def _scope(sums: _Sums, sweeps: Sequence[Sweep]) -> Scope:
    if sums.known:
        return "process"
    return "device" if all(sweep.channel.resource != "cpu" for sweep in sweeps) else "host"


def _method(sums: _Sums, sharing: Sharing, concurrency: float) -> str:
    """How idle and overlap were shared."""
    if not sums.baseline:
        return "by-time/equal-time"
    batch = sharing.batch if sums.weighed_nj or concurrency <= 1 else "equal-time"
    shared = f"above-idle/{batch}" if sharing.idle == "time" else f"above-idle/{batch}/idle-{sharing.idle}"
    return f"{shared}/cached-idle" if "cached" in sums.origins else shared

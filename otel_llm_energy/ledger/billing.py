"""From an entry and the clocks to its bill."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from otel_llm_energy.ledger.bill import Bill, Phase, Quality, Scope, unavailable
from otel_llm_energy.ledger.bounds import edge_bounds_nj
from otel_llm_energy.ledger.entry import Entry
from otel_llm_energy.ledger.sweep import IdleSharing, Sweep, Swept
from otel_llm_energy.ledger.timeline import Timeline

_LEAST_COVERAGE = 0.9
_WHOLE = 0.98
_SHARED_ABOVE = 1.05
_COARSE_WIDTH = 0.5
# A phase's edge may lie this part of the shorter phase away from a bucket's edge.
_PARTED_WITHIN = 0.1


@dataclass(slots=True)
class _Sums:
    """What one call was given, over its stretches and over channels."""

    idle_nj: int = 0
    dyn_nj: int = 0
    lower_nj: float = 0.0
    upper_nj: float = 0.0
    known: bool = True
    baseline: bool = True
    components_nj: dict[str, int] = field(default_factory=dict)
    phases_nj: dict[Phase, int] = field(default_factory=dict)


def bill_for(
    entry: Entry, sweeps: Sequence[Sweep], timeline: Timeline, idle: IdleSharing, reason: str | None
) -> tuple[Bill, dict[str, int]]:
    """The bill of a closed entry, and its energy by channel in nanojoules.

    Args:
        entry: closed.
        sweeps: of all channels that its server draws from.
        timeline: of its server.
        idle: how idle is shared.
        reason: why it is billed ahead of the sweep; ``None`` if all is swept.
    """
    if not sweeps:
        return unavailable(reason or "no-meter"), {}
    work_ns = entry.work_ns
    if not work_ns:
        return unavailable(reason or "no-work"), {}
    coverage = min(_covered_ns(entry, sweep) for sweep in sweeps) / work_ns
    if coverage < _LEAST_COVERAGE:
        return unavailable(reason or "no-reading"), {}
    sums = _Sums()
    by_channel = {sweep.channel.id: _add_channel(sums, entry, sweep) for sweep in sweeps}
    parted = all(_parted(entry, sweep) for sweep in sweeps)
    energy_nj = sums.idle_nj + sums.dyn_nj
    concurrency = _concurrency(entry, timeline)
    lower_nj, upper_nj = min(int(sums.lower_nj), energy_nj), max(int(sums.upper_nj) + 1, energy_nj)
    quality, why = _quality(entry, sums, sweeps, coverage, concurrency, (lower_nj, upper_nj), reason)
    bill = Bill(
        energy_nj=energy_nj,
        quality=quality,
        reason=why,
        above_idle_nj=sums.dyn_nj if sums.baseline else None,
        lower_nj=lower_nj,
        upper_nj=upper_nj,
        phases_nj=sums.phases_nj if parted else {},
        components_nj=sums.components_nj,
        meter="+".join(dict.fromkeys(sweep.channel.meter for sweep in sweeps)),
        scope=_scope(sums, sweeps),
        method=_method(sums, idle),
        coverage=coverage,
        concurrency=concurrency,
        work_ns=work_ns,
        queue_ns=_queue_ns(entry),
    )
    return bill, by_channel


def charge_nj(entry: Entry, sweep: Sweep) -> int:
    """All that the sweep charged for an entry on one channel, nanojoules, right or wrong."""
    clocks = sweep.clocks(entry.server)
    return sum(clocks.dyn.between(s, e) + clocks.idle.between(s, e) for s, e in entry.charged)


def _add_channel(sums: _Sums, entry: Entry, sweep: Sweep) -> int:
    clocks = sweep.clocks(entry.server)
    total_nj = 0
    for window in entry.windows:
        for start_ns, end_ns in entry.charged_within(window):
            idle_nj = clocks.idle.between(start_ns, end_ns)
            dyn_nj = clocks.dyn.between(start_ns, end_ns)
            sums.idle_nj += idle_nj
            sums.dyn_nj += dyn_nj
            sums.phases_nj[window.phase] = sums.phases_nj.get(window.phase, 0) + idle_nj + dyn_nj
            total_nj += idle_nj + dyn_nj
    for start_ns, end_ns in _stretches(entry):
        _add_bounds(sums, entry.server, sweep, start_ns, end_ns)
    component = sweep.channel.component
    sums.components_nj[component] = sums.components_nj.get(component, 0) + total_nj
    return total_nj


def _stretches(entry: Entry) -> list[tuple[int, int]]:
    """The charged parts of the windows, adjoining ones as one."""
    stretches: list[tuple[int, int]] = []
    for window in entry.windows:
        for start_ns, end_ns in entry.charged_within(window):
            if stretches and stretches[-1][1] == start_ns:
                stretches[-1] = (stretches[-1][0], end_ns)
            else:
                stretches.append((start_ns, end_ns))
    return stretches


def _add_bounds(sums: _Sums, server: str, sweep: Sweep, start_ns: int, end_ns: int) -> None:
    """Bounds of a stretch: inner buckets from the clocks, the first and the last by how far they are covered."""
    first, last = sweep.bucket_at(start_ns + 1), sweep.bucket_at(end_ns)
    if first is None or last is None:
        sums.known = sums.baseline = False
        return
    inner_start_ns, inner_end_ns = start_ns, end_ns
    edges: list[Swept] = []
    if first.bucket.start_ns < start_ns or first.bucket.end_ns > end_ns:
        edges.append(first)
        inner_start_ns = first.bucket.end_ns
    if last is not first and last.bucket.end_ns > end_ns:
        edges.append(last)
        inner_end_ns = last.bucket.start_ns
    lower_nj = upper_nj = 0.0
    if inner_end_ns > inner_start_ns:
        clocks = sweep.clocks(server)
        lower_nj += clocks.lower.between(inner_start_ns, inner_end_ns)
        upper_nj += clocks.upper.between(inner_start_ns, inner_end_ns)
    for edge in edges:
        lower, upper = _edge(sweep, server, edge, start_ns, end_ns)
        lower_nj, upper_nj = lower_nj + lower, upper_nj + upper
    doubt_nj = _reading_doubt(first, last) + _activity_doubt(server, first, last)
    scale = sweep.channel.scale_error
    sums.lower_nj += max(lower_nj - doubt_nj, 0.0) * (1 - scale)
    sums.upper_nj += (upper_nj + doubt_nj) * (1 + scale)
    for swept in (first, last):
        part = swept.parts.get(server)
        sums.known = sums.known and (part is None or part.known)
        sums.baseline = sums.baseline and swept.baseline.watts is not None


def _edge(sweep: Sweep, server: str, swept: Swept, start_ns: int, end_ns: int) -> tuple[float, float]:
    bucket = swept.bucket
    start_ns, end_ns = max(start_ns, bucket.start_ns), min(end_ns, bucket.end_ns)
    covered_ns = end_ns - start_ns
    clocks = sweep.clocks(server)
    idle_nj = bucket.energy_nj - swept.dyn_nj
    idle_evenly_nj = idle_nj * covered_ns / bucket.length_ns
    idle_weight = clocks.idle.between(start_ns, end_ns) / idle_evenly_nj if idle_evenly_nj else 1.0
    part = swept.parts.get(server)
    if part is None or not part.dyn_nj:
        return edge_bounds_nj(bucket, swept.baseline, covered_ns, 1.0, min(idle_weight, 1.0), 0.0)
    evenly_nj = part.dyn_nj * covered_ns / part.at_work_ns
    dyn_weight = clocks.dyn.between(start_ns, end_ns) / evenly_nj if evenly_nj else 0.0
    portion = part.dyn_nj / swept.dyn_nj
    return edge_bounds_nj(bucket, swept.baseline, covered_ns, portion, min(idle_weight, 1.0), min(dyn_weight, 1.0))


def _reading_doubt(first: Swept, last: Swept) -> float:
    """The counter's time may lie to either side of the edge that we took, nJ."""
    return first.bucket.start_error_ns * _most_watts(first) + last.bucket.end_error_ns * _most_watts(last)


def _most_watts(swept: Swept) -> float:
    return swept.baseline.highest_watts or swept.bucket.energy_nj / swept.bucket.length_ns


def _activity_doubt(server: str, first: Swept, last: Swept) -> float:
    """Errors of the activity counters, nJ. They do not add up over cells: a cell's end is the next one's start."""
    doubt_nj = 0.0
    for swept in (first, last):
        part = swept.parts.get(server)
        if part is None or not part.known or not swept.busy_ns or not swept.dyn_nj:
            continue
        portion = part.dyn_nj / swept.dyn_nj
        error_ns = swept.resolution_ns + swept.total_resolution_ns * portion
        doubt_nj += 0.5 * error_ns * swept.dyn_nj / swept.busy_ns
    return doubt_nj


def _covered_ns(entry: Entry, sweep: Sweep) -> int:
    return sum(sweep.covered.between(s, e) for window in entry.windows for s, e in entry.charged_within(window))


def _parted(entry: Entry, sweep: Sweep) -> bool:
    """Whether bucket edges lie near enough to the edges between phases to tell the phases' energy apart."""
    for before, after in zip(entry.windows, entry.windows[1:], strict=False):
        shorter_ns = min(before.end_ns - before.start_ns, after.end_ns - after.start_ns)
        for edge_ns in {before.end_ns, after.start_ns}:
            swept = sweep.bucket_at(edge_ns)
            if swept is None:
                return False
            distance_ns = min(edge_ns - swept.bucket.start_ns, swept.bucket.end_ns - edge_ns)
            if distance_ns > _PARTED_WITHIN * shorter_ns:
                return False
    return True


def _concurrency(entry: Entry, timeline: Timeline) -> float:
    stretches = _stretches(entry)
    at_work_ns = sum(end_ns - start_ns for start_ns, end_ns in stretches)
    if not at_work_ns:
        return 1.0
    return max(sum(timeline.load.between(s, e) for s, e in stretches) / at_work_ns, 1.0)


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
    charged_ns = sum(end_ns - start_ns for start_ns, end_ns in entry.charged)
    within_ns = sum(e - s for window in entry.windows for s, e in entry.charged_within(window))
    if within_ns < _WHOLE * entry.work_ns or within_ns < _WHOLE * charged_ns:
        return "late"
    if coverage < _WHOLE:
        return "gap"
    if not sums.baseline:
        return "no-idle-baseline"
    if bounds_nj[1] - bounds_nj[0] > _COARSE_WIDTH * (sums.idle_nj + sums.dyn_nj):
        return "coarse-meter"
    return None


def _scope(sums: _Sums, sweeps: Sequence[Sweep]) -> Scope:
    if sums.known:
        return "process"
    return "device" if all(sweep.channel.resource != "cpu" for sweep in sweeps) else "host"


def _method(sums: _Sums, idle: IdleSharing) -> str:
    """How idle and overlap were shared."""
    if not sums.baseline:
        return "by-time/equal-time"
    return "above-idle/equal-time" if idle == "time" else f"above-idle/equal-time/idle-{idle}"

"""How far a share may be off, given the sharing method: energy may lie anywhere inside a bucket.

A bucket says how much energy there was, not when. Power lies between P0_lo (the lowest seen) and P_hi (the
hardware's limit, or the highest seen). A window that covers ``o`` of a bucket of length T and energy D holds at least
``max(P0_lo * o, D - P_hi * (T - o))`` and at most ``min(P_hi * o, D - P0_lo * (T - o))`` of it.
"""

from __future__ import annotations

from collections.abc import Sequence

from otel_llm_energy.ledger.counter import Bucket
from otel_llm_energy.ledger.idle import Baseline
from otel_llm_energy.ledger.timeline import Step


def held_nj(bucket: Bucket, baseline: Baseline, covered_ns: int) -> tuple[float, float]:
    """The least and the most energy, nJ, that a window covering ``covered_ns`` of the bucket can hold."""
    rest_ns = bucket.length_ns - covered_ns
    low, high = baseline.lowest_watts, baseline.highest_watts
    least = low * covered_ns
    most = bucket.energy_nj - low * rest_ns
    if high is not None:
        least = max(least, bucket.energy_nj - high * rest_ns)
        most = min(most, high * covered_ns)
    least = min(max(least, 0.0), bucket.energy_nj)
    return least, max(most, least)


def edge_bounds_nj(
    bucket: Bucket,
    baseline: Baseline,
    covered_ns: int,
    part: float,
    idle_weight: float,
    divisions: Sequence[tuple[int, float]],
) -> tuple[float, float]:
    """Bounds of a share of a bucket of which the call's window covers only ``covered_ns``.

    Args:
        bucket: the bucket at the window's edge.
        baseline: of its channel.
        covered_ns: overlap of window and bucket.
        part: the server's part of the energy above idle, u_s.
        idle_weight: the call's mean share of idle while at work, 0 to 1.
        divisions: into how many parts like the call's the server's energy is divided meanwhile: (length, parts).
    """
    least, most = held_nj(bucket, baseline, covered_ns)
    if baseline.watts is None:
        return idle_weight * part * least, idle_weight * most
    floor, idle = baseline.lowest_watts * covered_ns, baseline.watts * covered_ns
    lower = idle_weight * floor + _least_placed(part * max(least - floor, 0.0), baseline, divisions)
    upper = idle_weight * idle + _most_placed(part * max(most - idle, 0.0), baseline, divisions)
    return lower, upper


def spanning_bounds_nj(
    bucket: Bucket,
    baseline: Baseline,
    idle_nj: int,
    idle_share_nj: int,
    dyn_nj: int,
    dyn_share_nj: int | None,
    steps: Sequence[Step],
    portion: float,
) -> tuple[int, int]:
    """Bounds of the share of a call that is at work through the whole bucket.

    Args:
        bucket: the bucket.
        baseline: of its channel.
        idle_nj: its idle energy.
        idle_share_nj: the call's share of that.
        dyn_nj: the server's energy above idle.
        dyn_share_nj: the call's share of that, where no window begins or ends inside; else ``None``.
        steps: calls at work on the server. What is shared by weight is left out here: see `weighed_bounds_nj`.
    """
    equal = [(step.end_ns - step.start_ns, step.calls) for step in steps if not step.weight]
    if dyn_share_nj is not None:
        lower_nj, upper_nj = dyn_share_nj, dyn_share_nj
    else:
        lower_nj = _least_placed(dyn_nj, baseline, equal) if len(equal) == len(steps) else 0
        upper_nj = _most_placed(dyn_nj, baseline, equal)
    return idle_share_nj + lower_nj - _idle_doubt(bucket, baseline, idle_nj, idle_share_nj, portion), (
        idle_share_nj + upper_nj
    )


def weighed_bounds_nj(baseline: Baseline, dyn_nj: int, steps: Sequence[Step]) -> tuple[int, int]:
    """The same, without idle, for each unit of weight.

    Where some steps are shared by weight and some equally, all the energy may lie in the ones or in the others.
    """
    weighed = [(step.end_ns - step.start_ns, step.weight) for step in steps if step.weight]
    lower_nj = _least_placed(dyn_nj, baseline, weighed) if len(weighed) == len(steps) else 0
    return lower_nj, _most_placed(dyn_nj, baseline, weighed) + 1


def _idle_doubt(bucket: Bucket, baseline: Baseline, idle_nj: int, idle_share_nj: int, portion: float) -> int:
    """What a lower idle power would take from the share: idle is the call's, of the rest only the server's part.

    Where idle power is not known at all, all energy is shared as if it were idle, and none of it may be.
    """
    if not idle_nj:
        return 0
    lower_idle_nj = baseline.lowest_watts * bucket.length_ns
    return int(max(idle_nj - lower_idle_nj, 0.0) * (1 - portion) * idle_share_nj / idle_nj)


def _least_placed(energy_nj: float, baseline: Baseline, steps: Sequence[tuple[int, float]]) -> int:
    return _placed(energy_nj, baseline, sorted(steps, key=lambda step: -step[1]))


def _most_placed(energy_nj: float, baseline: Baseline, steps: Sequence[tuple[int, float]]) -> int:
    return _placed(energy_nj, baseline, sorted(steps, key=lambda step: step[1]))


def _placed(energy_nj: float, baseline: Baseline, steps: Sequence[tuple[int, float]]) -> int:
    """One part's share if the energy is placed into these steps (length, parts) in turn, as far as the power allows."""
    most_watts = None
    if baseline.highest_watts is not None and baseline.watts is not None:
        most_watts = max(baseline.highest_watts - baseline.watts, 0.0)
    share = 0.0
    left = float(energy_nj)
    for index, (length_ns, parts) in enumerate(steps):
        room = left if most_watts is None or index == len(steps) - 1 else most_watts * length_ns
        placed = min(left, room)
        share += placed / parts
        left -= placed
    return int(share)

"""How far a share may be off, given the sharing method: energy may lie anywhere inside a bucket.

A bucket says how much energy there was, not when. Power lies between P0_lo (the lowest seen) and P_hi (the
hardware's limit, or the highest seen). A window that covers ``o`` of a bucket of length T and energy D holds at least
``max(P0_lo * o, D - P_hi * (T - o))`` and at most ``min(P_hi * o, D - P0_lo * (T - o))`` of it.

Where the server's part of the activity is known, that says more: what it drew above idle it drew while it was at work,
and that is its part of the busy time, but for what a busy second of one program may cost more than one of another.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter

from otel_llm_energy.ledger.counter import Bucket
from otel_llm_energy.ledger.idle import Baseline
from otel_llm_energy.ledger.server_part import ServerPart

# A busy second of one program may cost so many times one of another's: they differ in instructions, memory traffic and
# clock speed. Assumed, not measured: that of prefill, next to decode, may be 1.4, and no call is all prefill.
_UNEVEN = 1.25
_parts = itemgetter(1)

Divisions = Sequence[tuple[int, float]]
"""Into how many equal parts a server's energy is divided, and for how long, ns: (length, parts)."""


def uneven(portion: float, portion_of_run: float) -> tuple[float, float]:
    """The least and the most of the energy above idle that ``portion`` of the busy time may have cost, 0 to 1.

    In doubt is what a busy second costs in all buckets of a cell, as it is they that say how much energy it was.
    """
    rest = 1 - portion_of_run
    least = portion / (portion_of_run + _UNEVEN * rest)
    return least, min(_UNEVEN * portion / (_UNEVEN * portion_of_run + rest), 1.0)


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


def equal_bounds_nj(baseline: Baseline, part: ServerPart, share_nj: int | None) -> tuple[int, int]:
    """Bounds of what a call has above idle that is at work through the whole bucket.

    Args:
        baseline: of the bucket's channel.
        part: the server's. What is shared by weight is left out here: see `weighed_bounds_nj`.
        share_nj: the call's share of it, where no window begins or ends inside; else ``None``.
    """
    if share_nj is not None:
        lower_nj, upper_nj = share_nj, share_nj
    else:
        watts = room_watts(baseline)
        equal = [(end_ns - start_ns, calls) for start_ns, end_ns, calls, weight in part.steps if not weight]
        lower_nj = least_placed(part.dyn_nj, watts, equal) if len(equal) == len(part.steps) else 0
        upper_nj = most_placed(part.dyn_nj, watts, equal)
    least, most = _uneven_factors(part)
    return int(least * lower_nj), int(most * upper_nj)


def weighed_bounds_nj(baseline: Baseline, part: ServerPart) -> tuple[int, int]:
    """The same for each unit of weight.

    Where some steps are shared by weight and some equally, all the energy may lie in the ones or in the others.
    """
    watts = room_watts(baseline)
    weighed = [(end_ns - start_ns, weight) for start_ns, end_ns, _, weight in part.steps if weight]
    lower_nj = least_placed(part.dyn_nj, watts, weighed) if len(weighed) == len(part.steps) else 0
    least, most = _uneven_factors(part)
    return int(least * lower_nj), int(most * most_placed(part.dyn_nj, watts, weighed)) + 1


def _uneven_factors(part: ServerPart) -> tuple[float, float]:
    """How many times its part a server may have cost, at least and at most; what a pool of unknown ones did is open."""
    portion = part.portion
    if not part.known or not portion:
        return 1.0, 1.0
    least, most = uneven(portion, part.portion_of_run)
    return least / portion, most / portion


def idle_doubt_nj(bucket: Bucket, baseline: Baseline, idle_nj: int, idle_share_nj: int, portion: float) -> int:
    """What a lower idle power would take from a call's share: idle is the call's, of the rest only its server's part.

    Where idle power is not known at all, all energy is shared as if it were idle, and none of it may be.
    """
    if not idle_nj:
        return 0
    lower_idle_nj = baseline.lowest_watts * bucket.length_ns
    return int(max(idle_nj - lower_idle_nj, 0.0) * (1 - portion) * idle_share_nj / idle_nj)


def room_watts(baseline: Baseline) -> float | None:
    """How much power above idle there can be; ``None`` if that is not known."""
    if baseline.highest_watts is None or baseline.watts is None:
        return None
    return max(baseline.highest_watts - baseline.watts, 0.0)


def least_placed(energy_nj: float, most_watts: float | None, divisions: Divisions) -> int:
    """One part's share if as much of the energy as can be lies where it is divided into most parts."""
    if len(divisions) > 1:
        divisions = sorted(divisions, key=_parts, reverse=True)
    return _placed(energy_nj, most_watts, divisions)


def most_placed(energy_nj: float, most_watts: float | None, divisions: Divisions) -> int:
    """The same where it is divided into fewest parts."""
    if len(divisions) > 1:
        divisions = sorted(divisions, key=_parts)
    return _placed(energy_nj, most_watts, divisions)


def placed_in_two(energy_nj: float, room_nj: float | None, parts: int, rest_parts: int) -> int:
    """One part's share if the energy is divided into ``parts`` as far as there is room, and into ``rest_parts``."""
    placed_nj = energy_nj if room_nj is None or room_nj > energy_nj else room_nj
    return int(placed_nj / parts + (energy_nj - placed_nj) / rest_parts)


def _placed(energy_nj: float, most_watts: float | None, divisions: Divisions) -> int:
    """One part's share if the energy is placed into these divisions in turn, as far as the power allows."""
    if len(divisions) == 1:
        return int(energy_nj / divisions[0][1])
    share = 0.0
    left = float(energy_nj)
    for index, (length_ns, parts) in enumerate(divisions):
        room = left if most_watts is None or index == len(divisions) - 1 else most_watts * length_ns
        placed = min(left, room)
        share += placed / parts
        left -= placed
    return int(share)

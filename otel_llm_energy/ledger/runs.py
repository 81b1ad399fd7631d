"""A cell of activity says how much of its energy a server used, but not in which of its buckets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile

from otel_llm_energy.ledger.activity import ActivityLog, Parts
from otel_llm_energy.ledger.counter import Bucket
from otel_llm_energy.ledger.timeline import Timeline

# More than this is no uneven load any more: meter and CPU clock contradict each other, or there is too little of both.
_MOST_TIMES = 2.0
_SEVERAL_STEPS = 4
# A miss that uneven load explains; bounds allow for more (`bounds._UNEVEN`), but what is scaled in vain is itself an
# error.
_MOST_EXPLAINED = 1.1


class Runs:
    """The buckets that end in one cell, taken together: a server's part of their energy is its part of the busy time.

    Bucket by bucket that need not come out: other programs are taken to be busy evenly over a cell, while in truth
    a client is busy just when the server that it waits for is not. So a server's parts of a run are scaled alike.

    But the first busy CPU may cost more than the next, and one kind of work more than another: a miss that is no more
    than that says nothing of when who was busy, unless calls alternate with their client several times in the run.
    """

    def __init__(self) -> None:
        self._end_ns = 0
        self._factors: Mapping[str, float] = {}
        self._portions: Mapping[str, float] = {}
        self._parts: dict[int, Parts] = {}

    def parts(
        self,
        bucket: Bucket,
        ahead: Iterable[Bucket],
        timelines: Mapping[str, Timeline],
        activity: ActivityLog,
        idle_watts: float | None,
    ) -> Parts:
        """Busy time inside a bucket, that of known servers scaled as it must be in its run.

        Args:
            bucket: no gap.
            ahead: the buckets that come after it, in order.
            timelines: of all servers; final up to the end of the cell in which the bucket ends.
            activity: of the channel's resource.
            idle_watts: of the channel; ``None`` if unknown: what is above idle is not known then, and nothing scaled.
        """
        cell_end_ns = activity.needed_until(bucket.end_ns)
        if cell_end_ns is None:  # the cell is waited for no longer
            return activity.parts(bucket.start_ns, bucket.end_ns, timelines)
        if cell_end_ns != self._end_ns:
            self._end_ns, self._factors, self._portions, self._parts = cell_end_ns, {}, {}, {}
            following = takewhile(lambda each: each.end_ns <= cell_end_ns, ahead)
            run = [bucket, *[each for each in following if each.gap is None]]
            if len(run) > 1 and idle_watts is not None:
                self._begin(run, timelines, activity, idle_watts)
        parts = self._parts.pop(bucket.end_ns, None) or activity.parts(bucket.start_ns, bucket.end_ns, timelines)
        if self._factors:
            _scale(parts, self._factors)
        parts.portions_of_run = self._portions
        return parts

    def _begin(
        self, run: Sequence[Bucket], timelines: Mapping[str, Timeline], activity: ActivityLog, idle_watts: float
    ) -> None:
        for bucket in run:
            self._parts[bucket.end_ns] = activity.parts(bucket.start_ns, bucket.end_ns, timelines)
        misses, self._portions = _misses(run, list(self._parts.values()), idle_watts)
        absent = self._parts[run[0].end_ns].absent
        present = [line for server, line in timelines.items() if server not in absent]
        steps = sum([line.count_steps(run[0].start_ns, run[-1].end_ns) for line in present])
        factors = {server: _factor(miss, several=steps >= _SEVERAL_STEPS) for server, miss in misses.items()}
        self._factors = {server: factor for server, factor in factors.items() if factor != 1.0}


def _misses(
    run: Sequence[Bucket], parts: Sequence[Parts], idle_watts: float
) -> tuple[dict[str, float], dict[str, float]]:
    """For each server: by which the sum of its parts misses its part of the sum, and that part, 0 to 1."""
    total_ns, dyn_nj = 0, 0.0
    busy_ns: dict[str, int] = {}
    shared_nj: dict[str, float] = {}
    for bucket, inside in zip(run, parts, strict=True):
        above_nj, all_ns = max(bucket.energy_nj - idle_watts * bucket.length_ns, 0.0), inside.total_ns
        total_ns += all_ns
        dyn_nj += above_nj
        for server, its_ns in inside.by_server_ns.items():
            if its_ns:
                busy_ns[server] = busy_ns.get(server, 0) + its_ns
                shared_nj[server] = shared_nj.get(server, 0.0) + above_nj * its_ns / all_ns
    portions = {server: its_ns / total_ns for server, its_ns in busy_ns.items()}
    return {server: dyn_nj * portions[server] / its_nj for server, its_nj in shared_nj.items() if its_nj}, portions


def _factor(miss: float, *, several: bool) -> float:
    """Upwards a miss within the doubt is left in any case: in a pause it is the first busy CPU."""
    if 1.0 < miss <= _MOST_EXPLAINED or (not several and 1 / _MOST_EXPLAINED <= miss < 1.0):
        return 1.0
    return min(max(miss, 1 / _MOST_TIMES), _MOST_TIMES)


def _scale(parts: Parts, factors: Mapping[str, float]) -> None:
    """Multiply servers' busy time, at the others' cost: all of it together stays as it is."""
    total_ns = parts.total_ns
    scaled_ns = {server: round(ns * factors.get(server, 1.0)) for server, ns in parts.by_server_ns.items()}
    servers_ns = sum(scaled_ns.values())
    if servers_ns > total_ns:
        scaled_ns = {server: ns * total_ns // servers_ns for server, ns in scaled_ns.items()}
        servers_ns = sum(scaled_ns.values())
    parts.by_server_ns = scaled_ns
    parts.others_ns = total_ns - servers_ns

"""When a server was at work, and on how many calls at once."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from operator import itemgetter

from otel_llm_energy.ledger.tracks import DROPPED_AT_ONCE, Growth, Track

Step = tuple[int, int, int, int]
"""A stretch of time with the same calls at work: (start and end in ns, how many, what they weigh together).

The weight is 0 for one call alone, and where the weight of one is not known."""
calls_of = itemgetter(2)
weight_of = itemgetter(3)

# Windows of neighbours in a queue overlap, or stand apart, by some ms of latency: no second slot, and no free one.
_SLOT_OVERLAP_NS = 50_000_000


_Edge = tuple[int, int, int, int, int]
"""A change of the calls at work, of the slots that they hold, and of the windows among these that are known.

(time in ns, calls, slots, windows, weight of the call or 0 if unknown)"""


class Timeline:
    """The calls at work, and their weight, as a step function: open to new edges after `frozen_ns`, final before it.

    ``peak`` is the most windows that held a slot of the server at once: loading a model holds none, and a call that is
    only taken to be at work teaches nothing.
    """

    def __init__(self, start_ns: int) -> None:
        self.frozen_ns = start_ns
        self.busy = Track()  # ns with at least one call at work
        self.load = Track()  # integral of the number of calls, ns
        self.peak = 0
        self._slots = 0
        self._windows = 0
        self._weighed = 0  # calls at work whose weight is known
        self._weight = 0
        self._integrated_ns = start_ns
        self._edges: list[_Edge] = []  # after `frozen_ns`; sorted when they are needed, not one by one
        self._times_ns = [start_ns]
        self._counts = [0]
        self._weights = [0]

    @property
    def count(self) -> int:
        """Calls at work at `frozen_ns`."""
        return self._counts[-1]

    def add(self, start_ns: int, end_ns: int | None = None, *, slots: int = 1, weight: int = 0) -> None:
        """A call is at work from ``start_ns`` on, or until ``end_ns``; both not before `frozen_ns`."""
        if end_ns is None:
            self._edges.append((start_ns, 1, slots, 0, 0))
        else:
            self._edges.append((start_ns, 1, slots, slots, weight))
            self._edges.append((end_ns, -1, -slots, -slots, weight))

    def end(self, end_ns: int) -> None:
        """A call that was added without an end stops work at ``end_ns``, not before `frozen_ns`."""
        self._edges.append((end_ns, -1, -1, 0, 0))

    def edge_times(self, until_ns: int) -> list[int]:
        """Times of the edges after `frozen_ns` and up to ``until_ns``, in order."""
        return sorted({time_ns for time_ns, *_ in self._edges if time_ns <= until_ns})

    def slots_soon(self) -> int:
        """The most slots held at once, as far as is known, from `frozen_ns` until neighbours in a queue have met."""
        until_ns = self.frozen_ns + _SLOT_OVERLAP_NS
        held = most = self._slots
        for _, _, slots, _, _ in sorted(edge for edge in self._edges if edge[0] <= until_ns):
            held += slots
            most = max(most, held)
        return most

    def freeze(self, until_ns: int) -> None:
        """Make the function final up to ``until_ns``."""
        busy: list[Growth] = []
        load: list[Growth] = []
        edges = self._edges
        edges.sort()
        done = 0
        while done < len(edges) and edges[done][0] <= until_ns:
            time_ns = edges[done][0]
            self._extend(time_ns)
            count = self._counts[-1]
            while done < len(edges) and edges[done][0] == time_ns:
                _, calls, slots, windows, weight = edges[done]
                done += 1
                count += calls
                self._slots += slots
                self._windows += windows
                if weight:
                    self._weighed += calls
                    self._weight += calls * weight
            weight = self._weight if self._weighed == count > 1 else 0
            if count != self._counts[-1] or weight != self._weights[-1]:
                self._integrate(busy, load)
                self._set_count(time_ns, count, weight)
        del edges[:done]
        self._extend(until_ns)
        self._integrate(busy, load)
        for track, growths in ((self.busy, busy), (self.load, load)):
            track.follow(growths)
            track.advance(self.frozen_ns, 0)

    def _extend(self, to_ns: int) -> None:
        if to_ns - self.frozen_ns >= _SLOT_OVERLAP_NS:
            self.peak = max(self.peak, self._windows)
        self.frozen_ns = max(self.frozen_ns, to_ns)

    def _integrate(self, busy: list[Growth], load: list[Growth]) -> None:
        """Up to `frozen_ns`; the calls at work have not changed since the last time."""
        start_ns, end_ns, count = self._integrated_ns, self.frozen_ns, self._counts[-1]
        if count and end_ns > start_ns:
            busy.append((start_ns, end_ns, end_ns - start_ns))
            load.append((start_ns, end_ns, (end_ns - start_ns) * count))
        self._integrated_ns = end_ns

    def _set_count(self, time_ns: int, count: int, weight: int) -> None:
        if self._times_ns[-1] == time_ns:
            self._times_ns.pop()
            self._counts.pop()
            self._weights.pop()
        if not self._counts or (self._counts[-1], self._weights[-1]) != (count, weight):
            self._times_ns.append(time_ns)
            self._counts.append(count)
            self._weights.append(weight)

    def rests_since(self, time_ns: int) -> bool:
        """No call has been at work from ``time_ns`` on, nor is one to be, as far as is known."""
        return not self._edges and not self.count and self._times_ns[-1] <= time_ns

    def steps(self, start_ns: int, end_ns: int) -> list[Step]:
        """The stretches with calls at work inside [start_ns, end_ns], which must be frozen."""
        times_ns = self._times_ns
        first, stop = self._indices(start_ns, end_ns)
        if stop == first + 1:
            count, since_ns = self._counts[first], max(times_ns[first], start_ns)
            return [(since_ns, end_ns, count, self._weights[first])] if count and end_ns > since_ns else []
        edges_ns = [max(times_ns[first], start_ns), *times_ns[first + 1 : stop], end_ns]
        stretches = zip(edges_ns, edges_ns[1:], self._counts[first:stop], self._weights[first:stop], strict=False)
        return [(start, end, count, weight) for start, end, count, weight in stretches if count and end > start]

    def count_steps(self, start_ns: int, end_ns: int) -> int:
        """How many these are."""
        first, stop = self._indices(start_ns, end_ns)
        return sum(map(bool, self._counts[first:stop]))

    def _indices(self, start_ns: int, end_ns: int) -> tuple[int, int]:
        first = max(bisect_right(self._times_ns, start_ns) - 1, 0)
        return first, bisect_left(self._times_ns, end_ns, first)

    def forget_before(self, steps_ns: int, look_ups_ns: int) -> None:
        """No steps before ``steps_ns`` and no look-ups before ``look_ups_ns`` will be asked for."""
        keep = bisect_right(self._times_ns, steps_ns) - 1
        if keep > DROPPED_AT_ONCE:
            del self._times_ns[:keep]
            del self._counts[:keep]
            del self._weights[:keep]
        self.busy.forget_before(look_ups_ns)
        self.load.forget_before(look_ups_ns)


def merged(step_lists: Sequence[Sequence[Step]]) -> list[Step]:
    """The steps of several servers taken as one; weights of different servers cannot be compared."""
    at_work = [steps for steps in step_lists if steps]
    if len(at_work) == 1:
        return list(at_work[0])
    changes: dict[int, int] = {}
    for steps in at_work:
        for start_ns, end_ns, calls, _ in steps:
            changes[start_ns] = changes.get(start_ns, 0) + calls
            changes[end_ns] = changes.get(end_ns, 0) - calls
    result: list[Step] = []
    count, since_ns = 0, 0
    for time_ns in sorted(changes):
        if count:
            result.append((since_ns, time_ns, count, 0))
        count, since_ns = count + changes[time_ns], time_ns
    return result

"""A bucket that has been shared out, and what the calls can have of it whose windows begin or end inside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from otel_llm_energy.ledger.bounds import (
    Divisions,
    held_nj,
    least_placed,
    most_placed,
    placed_in_two,
    room_watts,
    uneven,
)
from otel_llm_energy.ledger.clocks import ClockReading, Given, ServerClocks
from otel_llm_energy.ledger.counter import Bucket
from otel_llm_energy.ledger.idle import Baseline
from otel_llm_energy.ledger.server_part import NO_PART, ServerPart
from otel_llm_energy.ledger.timeline import calls_of, weight_of


class Busy(NamedTuple):
    """How long the resource was busy in a bucket, ns, and the errors of a server's part of that and of all of it."""

    busy_ns: int
    resolution_ns: int
    total_resolution_ns: int


class Shared(NamedTuple):
    """How the energy of a bucket was shared out.

    Attributes:
        baseline: the idle power that was taken.
        dyn_nj: the energy above it.
        parts: the servers' parts of that.
        busy: how long the resource was busy in the bucket.
        unsampled: its activity is sampled, but not in all of the bucket: who sampled it has ended, say.
        even: the same calls were at work throughout.
    """

    baseline: Baseline
    dyn_nj: int
    parts: Mapping[str, ServerPart]
    busy: Busy
    unsampled: bool
    even: bool

    def hides(self, server: str) -> bool:
        """Activity is known, here or at other times, but the server's part of it is not."""
        return not self.parts.get(server, NO_PART).known and (self.busy.busy_ns > 0 or self.unsampled)


NOTHING_SHARED: Final = Shared(Baseline(None, 0.0, None, "unknown"), 0, {}, Busy(0, 0, 0), unsampled=False, even=True)


class Swept:
    """What was done with a bucket; kept for the bounds of bills whose windows end inside it.

    ``before`` and ``after`` say where the clocks stood at its edges: one look-up for all calls that ask. Where the
    bucket was shared evenly they went evenly in between.
    """

    __slots__ = ("_by_server", "after", "before", "bucket", "shared")

    def __init__(
        self, bucket: Bucket, shared: Shared, before: Mapping[str, ClockReading], after: Mapping[str, ClockReading]
    ) -> None:
        self.bucket = bucket
        self.shared = shared
        self.before = before
        self.after = after
        self._by_server: dict[str, ServerBucket] = {}

    def of(self, server: str, clocks: ServerClocks) -> ServerBucket:
        """The bucket as the calls of a server see it."""
        return self._by_server.get(server) or self._by_server.setdefault(server, ServerBucket(self, server, clocks))


class ServerBucket:
    """A swept bucket as the calls of one server see it: what is the same for all of them is worked out once.

    Attributes:
        start_ns, end_ns: of the bucket.
        start_error_ns, end_error_ns: how far the times of its edges may be off.
        before, after: what the server's clocks say at its edges.
        baseline: of the channel.
        has_baseline: its idle power is known.
        known: the server's part of the activity is known, or it had none.
        hides_server: activity is known, here or at other times, but the server's part of it is not.
        portion: the server's part of the energy above idle, 0 to 1.
    """

    __slots__ = (
        "_activity_ns",
        "_at_end",
        "_at_start",
        "_bucket",
        "_busy_ns",
        "_by_activity",
        "_clocks",
        "_dyn_nj",
        "_even",
        "_fewest",
        "_idle_in_doubt",
        "_idle_nj",
        "_least_nj",
        "_length_ns",
        "_most",
        "_most_nj",
        "_most_watts",
        "_part",
        "_room_watts",
        "_watts",
        "after",
        "baseline",
        "before",
        "end_error_ns",
        "end_ns",
        "has_baseline",
        "hides_server",
        "known",
        "portion",
        "start_error_ns",
        "start_ns",
    )

    def __init__(self, swept: Swept, server: str, clocks: ServerClocks) -> None:
        bucket = swept.bucket
        baseline, dyn_nj, parts, busy, _, even = swept.shared
        part = parts.get(server, NO_PART)
        self.start_ns, self.end_ns = bucket.start_ns, bucket.end_ns
        self.start_error_ns, self.end_error_ns = bucket.start_error_ns, bucket.end_error_ns
        self.before = swept.before.get(server) or clocks.at(bucket.start_ns)
        self.after = swept.after.get(server) or clocks.at(bucket.end_ns)
        self.baseline = baseline
        self.known = part.known
        self.hides_server = swept.shared.hides(server)
        self.portion = part.dyn_nj / dyn_nj if dyn_nj else 0.0
        self._at_start = bucket.start_ns, self.before.idle_nj, self.before.dyn_nj
        self._at_end = bucket.end_ns, self.after.idle_nj, self.after.dyn_nj
        self._bucket = bucket  # and not `swept`, which holds this object
        self._even = even
        self._dyn_nj = dyn_nj
        self._busy_ns = busy.busy_ns
        self._clocks = clocks
        self._part = part
        self._fewest, self._most = _fewest_and_most(part)
        self._length_ns = bucket.end_ns - bucket.start_ns
        self._idle_nj = bucket.energy_nj - dyn_nj
        self._watts = baseline.watts or 0.0
        self.has_baseline = baseline.watts is not None
        self._by_activity = part.known and part.dyn_nj > 0 and self.has_baseline
        self._idle_in_doubt = baseline.drift > 0 or baseline.lowest_watts != baseline.watts
        self._room_watts = room_watts(baseline)
        self._most_watts = baseline.highest_watts or bucket.energy_nj / self._length_ns
        least_part, most_part = uneven(part.portion, part.portion_of_run)
        self._least_nj, self._most_nj = least_part * dyn_nj, most_part * dyn_nj
        self._activity_ns = 0.5 * (busy.resolution_ns + busy.total_resolution_ns * self.portion)

    def given(self, time_ns: int, weight: int) -> Given:
        """What a call of this weight has been given by an instant in or at the bucket; see `ServerClocks.given`."""
        start_ns, idle_nj, dyn_nj = self._at_start
        if weight or not self._even or time_ns < start_ns:
            return self._clocks.given(time_ns, weight)
        _, idle_end_nj, dyn_end_nj = self._at_end
        since_ns, length_ns = time_ns - start_ns, self._length_ns
        return (
            time_ns,
            idle_nj + (idle_end_nj - idle_nj) * since_ns // length_ns,
            dyn_nj + (dyn_end_nj - dyn_nj) * since_ns // length_ns,
        )

    def at_start(self, weight: int) -> Given:
        """What a call of this weight has been given by the bucket's start."""
        start_ns, idle_nj, dyn_nj = self._at_start
        return (start_ns, idle_nj, dyn_nj + weight * self.before.weighed_nj) if weight else self._at_start

    def at_end(self, weight: int) -> Given:
        """The same by its end."""
        end_ns, idle_nj, dyn_nj = self._at_end
        return (end_ns, idle_nj, dyn_nj + weight * self.after.weighed_nj) if weight else self._at_end

    def bounds_nj(self, begin: Given, end: Given, weight: int) -> tuple[float, float]:
        """The least and the most of the bucket's energy that a call of this weight can have drawn between two instants.

        They lie in the bucket, and there is more of it on either side.
        """
        start_ns, idle_start_nj, dyn_start_nj = begin
        end_ns, idle_end_nj, dyn_end_nj = end
        covered_ns, idle_nj = end_ns - start_ns, idle_end_nj - idle_start_nj
        idle_evenly_nj = self._idle_nj * covered_ns / self._length_ns
        idle_weight = idle_nj / idle_evenly_nj if idle_nj < idle_evenly_nj else 1.0
        if not self._by_activity:
            return self._held_nj(covered_ns, idle_weight, self._divisions(start_ns, end_ns, weight))
        least_nj, most_nj = self._worked_nj(covered_ns)
        if self._fewest:
            room_nj = None if self._room_watts is None else self._room_watts * covered_ns
            lower_nj = placed_in_two(least_nj, room_nj, self._most, self._fewest)
            upper_nj = placed_in_two(most_nj, room_nj, self._fewest, self._most)
        else:
            divisions = self._divisions(start_ns, end_ns, weight)
            lower_nj = least_placed(least_nj, self._room_watts, divisions)
            upper_nj = most_placed(most_nj, self._room_watts, divisions)
        own_idle_nj = idle_weight * self._watts * covered_ns
        if not self._idle_in_doubt:
            return own_idle_nj + lower_nj, own_idle_nj + upper_nj
        less_nj, more_nj = self._idle_doubt_nj(covered_ns, idle_weight, dyn_end_nj - dyn_start_nj)
        return own_idle_nj + lower_nj + less_nj, own_idle_nj + upper_nj + more_nj

    def doubt_nj(self, dyn_nj: int, error_ns: int, distance_ns: int) -> float:
        """What is not known at one end of a call: when the counter was read, and what the activity counters say.

        The counter's time may lie to either side of the bucket's edge that we took. A call whose own edge lies there
        may have drawn what is on the other side; one whose edge is further away has only its part of the bucket's
        energy. Errors of activity do not add up over cells: a cell's end is the next one's start.

        Args:
            dyn_nj: what the call has of the bucket, above idle.
            error_ns: of the time of the bucket's outer edge.
            distance_ns: between the edges of bucket and call.
        """
        part_nj = self._part.dyn_nj
        reading_nj = error_ns * self._most_watts
        if not part_nj:
            return reading_nj
        within = dyn_nj / part_nj if dyn_nj < part_nj else 1.0
        if distance_ns > error_ns:
            reading_nj *= self.portion * within
        if not self.known or not self._busy_ns:
            return reading_nj
        return reading_nj + self._activity_ns * within * self._dyn_nj / self._busy_ns

    def _worked_nj(self, covered_ns: int) -> tuple[float, float]:
        """What the server can have drawn above idle in so much of its time at work, as far as its activity tells.

        What it drew lies in its time at work, wherever there.
        """
        least_nj, most_nj, most_watts = self._least_nj, self._most_nj, self._part.most_watts
        others_ns = max(self._part.at_work_ns - covered_ns, 0)
        if most_watts is None:
            return (0.0 if others_ns else least_nj), most_nj
        least_nj = max(least_nj - most_watts * others_ns, 0.0)
        return least_nj, max(min(most_nj, most_watts * covered_ns), least_nj)

    def _idle_doubt_nj(self, covered_ns: int, idle_weight: float, dyn_nj: int) -> tuple[float, float]:
        """What another idle power would take from a call's share, and add to it.

        Of a watt that idle is less the server gains its part in the whole bucket, and the call loses it in its window.
        """
        within = min(dyn_nj / self._part.dyn_nj, 1.0)
        gained_ns = self._part.portion * within * self._length_ns - idle_weight * covered_ns
        watts, lowest_watts = self._watts, self.baseline.lowest_watts
        below, above = gained_ns * (watts - lowest_watts), -gained_ns * watts * self.baseline.drift
        return min(below, above, 0.0), max(below, above, 0.0)

    def _divisions(self, start_ns: int, end_ns: int, weight: int) -> Divisions:
        """Into how many parts like the call's the server's energy is divided while it is at work.

        Where the calls change often, only the extremes, each for all of the time.
        """
        steps, extremes = self._part.steps, self._part.extremes
        if not self._part.dyn_nj:
            return ()
        if len(steps) > len(extremes):
            overlaps = [(end_ns - start_ns, step) for step in extremes]
        else:
            overlaps = [(min(step[1], end_ns) - max(step[0], start_ns), step) for step in steps]
        return [
            (length_ns, together / weight if together and weight else calls)
            for length_ns, (_, _, calls, together) in overlaps
            if length_ns > 0
        ]

    def _held_nj(self, covered_ns: int, idle_weight: float, divisions: Divisions) -> tuple[float, float]:
        """From the power that there can be, where it is not known how busy the server was, or what is idle."""
        baseline, portion = self.baseline, self._part.portion
        least_nj, most_nj = held_nj(self._bucket, baseline, covered_ns)
        if baseline.watts is None:
            return idle_weight * portion * least_nj, idle_weight * most_nj
        floor_nj, idle_nj = baseline.lowest_watts * covered_ns, baseline.watts * covered_ns
        least_nj, most_nj = portion * max(least_nj - floor_nj, 0.0), portion * max(most_nj - idle_nj, 0.0)
        return (
            idle_weight * floor_nj + least_placed(least_nj, self._room_watts, divisions),
            idle_weight * idle_nj + most_placed(most_nj, self._room_watts, divisions),
        )


def _fewest_and_most(part: ServerPart) -> tuple[int, int]:
    """Of the calls that share a server's energy; (0, 0) where more than these numbers tells how it may be shared.

    That is where calls have a weight, or where it is known of few changes when they were.
    """
    extremes = part.extremes
    if not extremes or any(map(weight_of, extremes)):
        return 0, 0
    calls = [calls_of(step) for step in extremes]
    fewest, most = min(calls), max(calls)
    return (fewest, most) if fewest == most or len(part.steps) > len(extremes) else (0, 0)

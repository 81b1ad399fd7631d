"""What one call is given on one channel: differences of clocks, and how far they may be off."""

from __future__ import annotations

from collections.abc import Sequence

from otel_llm_energy.ledger.bill import Phase, Window
from otel_llm_energy.ledger.clocks import Given
from otel_llm_energy.ledger.entry import Stretch
from otel_llm_energy.ledger.idle import Origin
from otel_llm_energy.ledger.sweep import Sweep
from otel_llm_energy.ledger.swept import ServerBucket


class Sums:
    """What one call was given, over its stretches and over channels; ``phases_nj`` only if its phases are parted.

    ``unknown_nj`` is what others may have drawn (`ServerChannel`).
    """

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
        "unknown_nj",
        "upper_nj",
    )

    def __init__(self, *, parted: bool) -> None:
        self.parted = parted
        self.idle_nj = self.dyn_nj = self.unknown_nj = 0
        self.lower_nj = self.upper_nj = 0.0
        self.known = self.baseline = True
        self.by_weight = False
        self.origins: set[Origin] = set()
        self.components_nj: dict[str, int] = {}
        self.phases_nj: dict[Phase, int] = {}

    @property
    def energy_nj(self) -> int:
        """The whole share."""
        return self.idle_nj + self.dyn_nj


class ServerChannel:
    """What the calls of one server are given on one channel, as long as nothing more is swept."""

    __slots__ = ("_component", "_edge", "_first", "_last", "_scale_error", "clocks", "id", "server", "sweep")

    def __init__(self, server: str, sweep: Sweep) -> None:
        self.id = sweep.channel.id
        self.server = server
        self.sweep = sweep
        self.clocks = sweep.clocks(server)
        self._component = sweep.channel.component
        self._scale_error = sweep.channel.scale_error
        # The buckets in which the last call began, ended and went from one phase to the next: calls come in the order
        # of their ends, and many lie in the same ones.
        self._first: ServerBucket | None = None
        self._last: ServerBucket | None = None
        self._edge: ServerBucket | None = None

    def covered_ns(self, stretches: Sequence[Stretch]) -> int:
        """How much of these stretches lies in buckets."""
        return sum([self.sweep.covered.between(start_ns, end_ns) for start_ns, end_ns, _ in stretches])

    def has_edge(self, time_ns: int, within_ns: float) -> bool:
        """There is a bucket's edge no further away than that."""
        bucket = self._edge = self._bucket_at(time_ns, self._edge)
        if bucket is None:
            return False
        return time_ns - bucket.start_ns <= within_ns or bucket.end_ns - time_ns <= within_ns

    def add(self, sums: Sums, stretches: Sequence[Stretch]) -> int:
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
        sums.components_nj[self._component] = sums.components_nj.get(self._component, 0) + total_nj
        return total_nj

    def _add_weighed(self, sums: Sums, window: Window) -> int:
        """The same of one window of a stretch in which some energy is shared by weight: each has its own."""
        start_ns, end_ns, _, weight = window
        sums.by_weight = sums.by_weight or bool(weight and self.clocks.weighed.between(start_ns, end_ns))
        return self._add(sums, (start_ns, end_ns, (window,)), weight)

    def _add(self, sums: Sums, stretch: Stretch, weight: int) -> int:
        """The same of a stretch of one weight."""
        start_ns, end_ns, windows = stretch
        first = self._first = self._bucket_at(start_ns + 1, self._first)
        last = self._last = self._bucket_at(end_ns, self._last)
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
            if until_ns == end[0]:
                _, idle_nj, dyn_nj = end
            else:
                bucket = self._bucket_at(until_ns, self._edge)
                _, idle_nj, dyn_nj = (bucket or self.clocks).given(until_ns, weight)
            phases_nj[phase] = phases_nj.get(phase, 0) + idle_nj + dyn_nj - before_nj
            before_nj = idle_nj + dyn_nj

    def _bucket_at(self, time_ns: int, guess: ServerBucket | None = None) -> ServerBucket | None:
        if guess is not None and guess.start_ns < time_ns <= guess.end_ns:
            return guess
        swept = self.sweep.bucket_at(time_ns)
        return None if swept is None else swept.of(self.server, self.clocks)

    def _add_bounds(
        self, sums: Sums, first: ServerBucket, last: ServerBucket, begin: Given, end: Given, weight: int
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
        scale = self._scale_error
        is_hidden = self.sweep.was_hidden(self.server, start_ns, end_ns)
        if is_hidden:
            sums.unknown_nj += self._unknown_nj(first, last, begin, end, weight)
        sums.lower_nj += max(lower_nj - doubt_nj, 0.0) * (1 - scale)
        sums.upper_nj += (upper_nj + doubt_nj + _drift_doubt_nj(first, last, idle_nj)) * (1 + scale)
        sums.known = sums.known and first.known and last.known and not is_hidden
        sums.baseline = sums.baseline and first.has_baseline and last.has_baseline
        sums.origins.add(first.baseline.origin)
        sums.origins.add(last.baseline.origin)

    def _unknown_nj(self, first: ServerBucket, last: ServerBucket, begin: Given, end: Given, weight: int) -> int:
        """Of a stretch's energy above idle, what was given while the server's part of the activity was not known.

        It is not until the server is found, while its user hides it, or while who samples gives way to another.
        """
        unknown_nj = 0
        bucket: ServerBucket | None = first
        while bucket is not None:
            if bucket.hides_server:
                since = begin if bucket is first else self.clocks.given(bucket.start_ns, weight)
                until = end if bucket is last else self.clocks.given(bucket.end_ns, weight)
                unknown_nj += until[2] - since[2]
            bucket = self._bucket_at(bucket.end_ns + 1) if bucket is not last else None
        return unknown_nj


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

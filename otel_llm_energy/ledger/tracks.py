"""Cumulative quantities over time: piecewise linear, integer, monotone."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable

DROPPED_AT_ONCE = 256
"""Fewer are not worth it: what is dropped from the front of a list moves all the rest."""
_THIN_ABOVE = 200_000


Growth = tuple[int, int, int]
"""A stretch of time and what a quantity grows by in it: (start and end in ns, increment)."""


class Track:
    """A quantity that only grows, from 0 at time 0, known at breakpoints and linear in between.

    The value at a breakpoint is exact; between two it is interpolated and rounded down, so that differences
    over adjoining stretches always add up.
    """

    __slots__ = ("times_ns", "values")

    def __init__(self) -> None:
        self.times_ns = [0]
        self.values = [0]

    @property
    def end_ns(self) -> int:
        return self.times_ns[-1]

    def advance(self, to_ns: int, increment: int) -> None:
        """Grow by ``increment`` from the last breakpoint to ``to_ns``. Where nothing grows there are no breakpoints."""
        times_ns, values = self.times_ns, self.values
        if to_ns <= times_ns[-1]:
            values[-1] += increment
        elif not increment and len(values) > 1 and values[-1] == values[-2]:
            times_ns[-1] = to_ns
        else:
            times_ns.append(to_ns)
            values.append(values[-1] + increment)

    def grow(self, start_ns: int, end_ns: int, increment: int) -> None:
        """Stay as it is up to ``start_ns``, then grow by ``increment`` up to ``end_ns``."""
        if self.times_ns[-1] < start_ns:
            self.advance(start_ns, 0)
        self.advance(end_ns, increment)

    def follow(self, growths: Iterable[Growth]) -> None:
        """Grow by one after the other; they are in order, and all of them after the last breakpoint."""
        times_ns, values = self.times_ns, self.values
        for start_ns, end_ns, increment in growths:
            if times_ns[-1] < start_ns:
                times_ns.append(start_ns)
                values.append(values[-1])
            times_ns.append(end_ns)
            values.append(values[-1] + increment)

    def at(self, time_ns: int) -> int:
        """The value at ``time_ns``; before the first and after the last breakpoint it is constant."""
        times, values = self.times_ns, self.values
        right = bisect_left(times, time_ns)
        if right == len(times):
            return values[-1]
        end_ns, after = times[right], values[right]
        if end_ns == time_ns or right == 0:
            return after
        start_ns, before = times[right - 1], values[right - 1]
        return before + (after - before) * (time_ns - start_ns) // (end_ns - start_ns)

    def between(self, start_ns: int, end_ns: int) -> int:
        """Growth from ``start_ns`` to ``end_ns``."""
        return self.at(end_ns) - self.at(start_ns)

    def forget_before(self, time_ns: int) -> None:
        """Drop breakpoints that no look-up at or after ``time_ns`` needs; bound the rest by thinning the oldest."""
        keep = bisect_right(self.times_ns, time_ns) - 1
        if keep > DROPPED_AT_ONCE:
            del self.times_ns[:keep]
            del self.values[:keep]
        if len(self.times_ns) > _THIN_ABOVE:
            half = len(self.times_ns) // 2
            self.times_ns[1:half] = self.times_ns[2:half:2]
            self.values[1:half] = self.values[2:half:2]

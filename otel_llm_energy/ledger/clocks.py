"""What one call at work on a server has been given so far: a bill is a difference of these."""

from __future__ import annotations

from typing import NamedTuple

from otel_llm_energy.ledger.tracks import Track

Given = tuple[int, int, int]
"""What a call of some weight has been given by some instant: (that instant, ns; of idle energy, and above idle, nJ)."""


class ClockReading(NamedTuple):
    """What the clocks of a server say at one instant, nanojoules; see `ServerClocks`."""

    dyn_nj: int
    idle_nj: int
    lower_nj: int
    upper_nj: int
    weighed_nj: int
    weighed_lower_nj: int
    weighed_upper_nj: int


class ServerClocks:
    """What one call at work on a server has been given so far, on one channel, nanojoules.

    ``weighed``, ``weighed_lower`` and ``weighed_upper`` are that for each unit of a call's weight, besides the others.
    """

    __slots__ = ("dyn", "idle", "lower", "upper", "weighed", "weighed_lower", "weighed_upper")

    def __init__(self, idle: Track | None = None) -> None:
        self.dyn = Track()
        self.idle = idle if idle is not None else Track()
        self.lower = Track()  # bounds of a call that spans a bucket, known at the buckets' edges only
        self.upper = Track()
        self.weighed = Track()
        self.weighed_lower = Track()
        self.weighed_upper = Track()

    def given(self, time_ns: int, weight: int) -> Given:
        """What a call of this weight has been given by then."""
        dyn_nj = self.dyn.at(time_ns)
        if weight:
            dyn_nj += weight * self.weighed.at(time_ns)
        return time_ns, self.idle.at(time_ns), dyn_nj

    def at(self, time_ns: int) -> ClockReading:
        """What the clocks say."""
        return ClockReading(
            self.dyn.at(time_ns),
            self.idle.at(time_ns),
            self.lower.at(time_ns),
            self.upper.at(time_ns),
            self.weighed.at(time_ns),
            self.weighed_lower.at(time_ns),
            self.weighed_upper.at(time_ns),
        )

    def now(self) -> ClockReading:
        """The same at the end of what was swept."""
        return ClockReading(
            self.dyn.values[-1],
            self.idle.values[-1],
            self.lower.values[-1],
            self.upper.values[-1],
            self.weighed.values[-1],
            self.weighed_lower.values[-1],
            self.weighed_upper.values[-1],
        )

    def tracks(self) -> tuple[Track, ...]:
        """All of them."""
        bounds = self.lower, self.upper, self.weighed_lower, self.weighed_upper
        return self.dyn, self.idle, self.weighed, *bounds

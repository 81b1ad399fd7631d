"""How busy a host was beyond what figures of its processes say: its power tells, from what it drew before."""

from __future__ import annotations

import math
import statistics
from collections import deque

_REMEMBERED = 64
_LEAST_POINTS = 4
_LEAST_SPREAD = 0.02  # of the machine
_LEAST_UNSEEN = 0.02  # of the machine; process figures err by about as much
_TWO_SIGMA = 2.0


class UnseenBusyness:
    """A line of power against known busyness, and what lies above it. Both as parts of the whole machine, 0 to 1."""

    def __init__(self) -> None:
        self._points: deque[tuple[float, float]] = deque(maxlen=_REMEMBERED)

    def learn(self, busy: float, microwatts: float) -> None:
        """All that was busy is known."""
        self._points.append((busy, microwatts))

    def unseen(self, busy: float, microwatts: float) -> float:
        """How much more must have been busy than is known; 0 where the power says no more, or cannot tell."""
        if len(self._points) < _LEAST_POINTS:
            return 0.0
        known, powers = zip(*self._points, strict=True)
        if statistics.pstdev(known) < _LEAST_SPREAD:
            return 0.0
        slope, intercept = statistics.linear_regression(known, powers)
        if slope <= 0:
            return 0.0
        rest = [power - intercept - slope * each for each, power in self._points]
        doubt = _TWO_SIGMA * math.sqrt(statistics.fmean(each * each for each in rest)) / slope
        more = (microwatts - intercept) / slope - busy
        return min(more, 1 - busy) if more > max(doubt, _LEAST_UNSEEN) else 0.0

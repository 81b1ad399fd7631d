"""How many of the calls' edges are worth a reading."""

from __future__ import annotations

from otel_llm_energy.meters.base import Pace
from otel_llm_energy.quantities import NS_PER_SECOND

_BURST = 32  # a handful of streams at once, each with a start, a first chunk and an end, and then their successors


class EdgeAllowance:
    """At most one reading at an edge per gap, and in the long run no more than so many a second.

    Some calls at once are read as closely as the gap allows; calls that follow each other without end, each a
    millisecond long, would make more work for the ledger than they are worth: they are told apart by activity, whose
    cells are longer anyway. (The generic cell rate algorithm, ITU-T I.371.)

    Args:
        pace: of the meter.
    """

    def __init__(self, pace: Pace) -> None:
        self._gap_ns = int(pace.edge_gap_seconds * NS_PER_SECOND)
        self._interval_ns = int(NS_PER_SECOND / pace.edges_per_second)
        self._paid_until_ns = 0

    def take(self, now_ns: int, last_ns: int | None) -> bool:
        """Whether to read at ``now_ns``; ``last_ns`` is the time of the last reading of any kind."""
        if last_ns is not None and now_ns - last_ns < self._gap_ns:
            return False
        if self._paid_until_ns - now_ns > (_BURST - 1) * self._interval_ns:
            return False
        self._paid_until_ns = max(self._paid_until_ns, now_ns) + self._interval_ns
        return True

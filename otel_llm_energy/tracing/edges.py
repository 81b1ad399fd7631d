"""How many of the calls' edges are worth a reading."""

from __future__ import annotations

from otel_llm_energy.meters.base import Pace
from otel_llm_energy.quantities import NS_PER_SECOND

_BURST = 32  # a handful of streams at once, each with a start, a first chunk and an end, and then their successors


class EdgeAllowance:
    """In the long run no more readings at edges than so many a second.

    Some calls at once are read as closely as the meter allows; calls that follow each other without end, each a
    millisecond long, would make more work for the ledger than they are worth: they are told apart by activity, whose
    cells are longer anyway. (The generic cell rate algorithm, ITU-T I.371.)

    Args:
        pace: of the meter.
    """

    def __init__(self, pace: Pace) -> None:
        self._interval_ns = int(NS_PER_SECOND / pace.edges_per_second)
        self._paid_until_ns = 0

    def take(self, now_ns: int) -> bool:
        """Whether to read at ``now_ns``."""
        if self._paid_until_ns - now_ns > (_BURST - 1) * self._interval_ns:
            return False
        self._paid_until_ns = max(self._paid_until_ns, now_ns) + self._interval_ns
        return True

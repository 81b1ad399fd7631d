"""The readings that the instrumentation takes, kept a while, so that a call's power over time can be drawn.

The meters are read by `instrument` alone, and perhaps by another process that it shares them with: then only the
readings at the edges of calls are taken here.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Sequence
from typing import Final

from otel_llm_energy.quantities import NS_PER_SECOND, Reading

_KEPT_READINGS: Final = 20_000
_MARGIN_NS: Final = NS_PER_SECOND // 4
_MOST_POINTS: Final = 60
_UJ_PER_NS_IN_WATTS: Final = 1_000  # 1 uJ / 1 ns = 1000 W


class PowerLog:
    """The last readings of all channels of one machine."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._readings: dict[str, deque[tuple[int, int]]] = {}  # time and cumulative energy, uJ, without wraps
        self._raw_uj: dict[str, int] = {}

    def note(self, readings: Sequence[Reading]) -> None:
        """Remember readings; the oldest are forgotten."""
        with self._lock:
            for reading in readings:
                series = self._readings.setdefault(reading.channel_id, deque(maxlen=_KEPT_READINGS))
                at_ns = (reading.earliest_ns + reading.latest_ns) // 2
                if series and at_ns <= series[-1][0]:
                    continue  # another thread has noted a later one meanwhile
                # Where a counter wraps, or starts anew, the power of that moment is not known: it is drawn as 0.
                grown_uj = max(reading.energy_uj - self._raw_uj.get(reading.channel_id, reading.energy_uj), 0)
                series.append((at_ns, (series[-1][1] if series else 0) + grown_uj))
                self._raw_uj[reading.channel_id] = reading.energy_uj

    def watts(self, start_ns: int, end_ns: int) -> tuple[list[float], list[float]]:
        """Power around a call, all channels together.

        Args:
            start_ns, end_ns: of the call, monotonic clock.

        Returns:
            the ends of the steps, s after the start, and the mean power of each, W.
        """
        with self._lock:
            kept = [
                [each for each in series if start_ns - _MARGIN_NS <= each[0] <= end_ns + _MARGIN_NS]
                for series in self._readings.values()
            ]
        kept = [series for series in kept if len(series) > 1]
        if not kept:
            return [], []
        first, last = max(series[0][0] for series in kept), min(series[-1][0] for series in kept)
        edges = _thinned(sorted({at for series in kept for at, _ in series if first <= at <= last}))
        energies = [sum(_at(series, edge) for series in kept) for edge in edges]
        seconds, watts = [], []
        for (since, before), (until, after) in itertools.pairwise(zip(edges, energies, strict=True)):
            seconds.append(round((until - start_ns) / NS_PER_SECOND, 4))
            watts.append(round((after - before) / (until - since) * _UJ_PER_NS_IN_WATTS, 3))
        return seconds, watts


def _thinned(edges: list[int]) -> list[int]:
    """At most so many that a drawing can show them, evenly in time."""
    if len(edges) <= _MOST_POINTS:
        return edges
    step_ns = (edges[-1] - edges[0]) / _MOST_POINTS
    thin = [edges[0]]
    for edge in edges[1:]:
        if edge - thin[-1] >= step_ns:
            thin.append(edge)
    return thin


def _at(series: Sequence[tuple[int, int]], time_ns: int) -> float:
    """Energy at an instant between two readings, uJ."""
    for (since, before), (until, after) in itertools.pairwise(series):
        if since <= time_ns <= until:
            return before + (after - before) * (time_ns - since) / (until - since)
    return float(series[-1][1])

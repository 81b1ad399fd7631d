"""Samples of power: gathered from adjoining buckets until they are long enough to tell it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

REMEMBERED = 128
# A stretch tells no power if this part of its length is in doubt. Scaphandre's first answer may be up to 2 s old: dated
# in the middle of that, 2.2 s of idleness looked like 3.2.
_MOST_DOUBT = 1 / 8


@dataclass(frozen=True, slots=True)
class Sample:
    """The mean power of a stretch of time."""

    watts: float
    busy_cpus: float | None
    length_ns: int


class Gathering:
    """Adjoining buckets of one kind, gathered until they are long enough to be a sample."""

    def __init__(self, shortest_ns: int, samples: deque[Sample]) -> None:
        self._shortest_ns = shortest_ns
        self._samples = samples
        self._start_again()

    def _start_again(self) -> None:
        self._energy_nj = 0.0
        self._length_ns = 0
        self._busy_ns: int | None = 0
        self._start_error_ns = 0

    def add(self, energy_nj: float, length_ns: int, busy_ns: int | None, errors_ns: tuple[int, int] = (0, 0)) -> bool:
        """Whether a sample was completed; ``errors_ns`` are those of the bucket's start and end."""
        if not self._length_ns:
            self._start_error_ns = errors_ns[0]
        self._energy_nj += energy_nj
        self._length_ns += length_ns
        self._busy_ns = None if busy_ns is None or self._busy_ns is None else self._busy_ns + busy_ns
        if self._length_ns < self._shortest_ns:
            return False
        if self._start_error_ns + errors_ns[1] > _MOST_DOUBT * self._length_ns:
            self._start_again()
            return False
        busy_cpus = None if self._busy_ns is None else self._busy_ns / self._length_ns
        self._samples.append(Sample(self._energy_nj / self._length_ns, busy_cpus, self._length_ns))
        self._start_again()
        return True

    def interrupt(self) -> None:
        self._start_again()


def quantile(values: Sequence[float], q: float) -> float:
    """The ``q`` quantile by linear interpolation; ``values`` must not be empty."""
    ordered = sorted(values)
    position = q * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)

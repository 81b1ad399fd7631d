"""The most that is drawn at work, as far as has been seen: by all calls of a channel, or above idle by one server's."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence

from otel_llm_energy.ledger.samples import REMEMBERED, Gathering, Sample, quantile
from otel_llm_energy.quantities import NS_PER_SECOND

_SHORTEST_NS = NS_PER_SECOND // 5
# The highest power there is may be somewhat more than the highest that was seen.
_MARGIN = 1.1


class WorkPower:
    """The mean power of each stretch of work that is long enough to tell it, and what these say of the highest."""

    def __init__(self) -> None:
        self._samples: deque[Sample] = deque(maxlen=REMEMBERED)
        self._gathering = Gathering(_SHORTEST_NS, self._samples)
        self._ranked_watts: list[float] = []  # of the samples
        self._most_watts: float | None = None

    def add(self, energy_nj: float, at_work_ns: int) -> bool:
        """Energy of so much time at work; whether a stretch was completed."""
        oldest = self._samples[0] if len(self._samples) == REMEMBERED else None
        completed = self._gathering.add(energy_nj, at_work_ns, None)
        if completed:
            if oldest is not None:
                del self._ranked_watts[bisect_left(self._ranked_watts, oldest.watts)]
            insort(self._ranked_watts, self._samples[-1].watts)
            self._see_most()
        return completed

    @property
    def samples(self) -> Sequence[Sample]:
        """Those that count, in the order of time."""
        return tuple(self._samples)

    def go_on(self, samples: Sequence[Sample]) -> None:
        """Go on, as a new one, from what another has seen."""
        self._samples.extend(samples)
        self._ranked_watts = sorted(sample.watts for sample in self._samples)
        if samples:
            self._see_most()

    def interrupt(self) -> None:
        """What comes next adjoins nothing."""
        self._gathering.interrupt()

    def forget(self) -> None:
        """See anew, from now on."""
        self._samples.clear()
        self._ranked_watts.clear()
        self._most_watts = None
        self.interrupt()

    @property
    def most_watts(self) -> float | None:
        """A tenth more than the highest that was seen, W; ``None`` as long as nothing was."""
        return self._most_watts

    def _see_most(self) -> None:
        self._most_watts = _MARGIN * quantile(self._ranked_watts, 0.99)

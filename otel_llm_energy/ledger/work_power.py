"""What a server draws above idle while it is at work, as far as has been seen."""

from __future__ import annotations

from collections import deque

from otel_llm_energy.ledger.idle import LIMIT_MARGIN, Run, Sample, quantile
from otel_llm_energy.quantities import NS_PER_SECOND

_SHORTEST_NS = NS_PER_SECOND // 5
_REMEMBERED = 128


class WorkPower:
    """Of one server on one channel: the mean power of each stretch of work that is long enough to tell it."""

    def __init__(self) -> None:
        self._samples: deque[Sample] = deque(maxlen=_REMEMBERED)
        self._run = Run(_SHORTEST_NS, self._samples)
        self._most_watts: float | None = None

    def add(self, energy_nj: int, at_work_ns: int) -> None:
        """What it was given of a bucket, for so much time at work."""
        if self._run.add(energy_nj, at_work_ns, None):
            self._most_watts = LIMIT_MARGIN * quantile([sample.watts for sample in self._samples], 0.99)

    @property
    def most_watts(self) -> float | None:
        """A tenth more than the highest that was seen, W; ``None`` as long as nothing was."""
        return self._most_watts

"""How sure a figure is: intervals of the bootstrap over prompts, since repeats of a prompt are no more evidence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from otel_llm_energy.study.tables import Floats

RESAMPLES: Final = 2_000
CONFIDENCE: Final = 0.95
_BATCH: Final = 100  # resamples at a time: all at once would take that much more memory


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and its confidence interval; without one where there are too few prompts."""

    value: float
    low: float | None = None
    high: float | None = None


def ratio_interval(above: Floats, below: Floats) -> Interval | None:
    """Sum over sum, with its percentile interval of the bootstrap over groups; ``None`` if the lower sum is 0."""
    kept = below > 0
    above, below = above[kept], below[kept]
    if not below.size:
        return None
    value = float(above.sum() / below.sum())
    if below.size < 2:
        return Interval(value)
    return bootstrapped(value, (above, below), lambda a, b, axis: a.sum(axis=axis) / b.sum(axis=axis))


def bootstrapped(value: float, samples: Sequence[Floats], statistic: Callable[..., Floats]) -> Interval:
    """The percentile interval of the bootstrap over groups; ``samples`` have a figure for each group."""
    from scipy import stats

    drawn = stats.bootstrap(
        samples,
        statistic,
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=RESAMPLES,
        batch=_BATCH,
        confidence_level=CONFIDENCE,
        rng=np.random.default_rng(0),
    )
    return Interval(value, float(drawn.confidence_interval.low), float(drawn.confidence_interval.high))

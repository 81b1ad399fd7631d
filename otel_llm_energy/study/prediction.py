"""What prompts that were not asked yet will take: each call, and all calls together, by a forecast that was learned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from otel_llm_energy.study.features import prompt_features
from otel_llm_energy.study.forecast import NAMES, NUMBERS, TOKENS_PER_WORD, Forecast, When
from otel_llm_energy.study.prompts import Prompt


@dataclass(frozen=True, slots=True)
class Predicted:
    """The forecast for one prompt and one deployment, J."""

    prompt_id: str
    deployment: str
    joules: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Total:
    """The forecast for all prompts together, J; the interval supposes that calls err independently of one another."""

    deployment: str
    calls: int
    joules: float
    low: float
    high: float


def predict(forecast: Forecast, rows: pl.DataFrame, when: When, level: float) -> list[Predicted]:
    """What calls will take.

    Args:
        rows: as `rows_to_predict` gives them.
        when: ``"before"``, or ``"after"`` where the lengths are known.
        level: of the interval, such as 0.9.
    """
    stage = forecast.stage(when)
    joules = stage.predict(rows)
    low, high = stage.interval_factors(level)
    named = zip(rows["prompt_id"].to_list(), rows["deployment"].to_list(), joules.tolist(), strict=True)
    return [Predicted(prompt, deployment, each, each * low, each * high) for prompt, deployment, each in named]


def totals(forecast: Forecast, predicted: Sequence[Predicted], when: When, level: float) -> Iterator[Total]:
    """The sum for each deployment, the least first."""
    from scipy import stats

    factors = np.array(forecast.stage(when).factors)
    sums = []
    for deployment in {each.deployment for each in predicted}:
        joules = np.array([each.joules for each in predicted if each.deployment == deployment])
        mean = float(joules.sum() * factors.mean())
        off = float(stats.norm.ppf((1 + level) / 2) * factors.std() * np.sqrt((joules**2).sum()))
        sums.append(Total(deployment, joules.size, mean, max(mean - off, 0.0), mean + off))
    yield from sorted(sums, key=lambda each: each.joules)


def rows_to_predict(
    forecast: Forecast,
    prompts: Sequence[Prompt],
    deployments: Sequence[str],
    max_tokens: int,
    output_tokens: int | None = None,
) -> pl.DataFrame:
    """Every prompt for every deployment, in the columns that a forecast is made from.

    Args:
        prompts: of a dataset.
        deployments: names; one that was not collected is allowed, and not known to the model.
        max_tokens: limit of the answers.
        output_tokens: length of the answers, for a forecast after the call; input tokens are taken from the words.
    """
    looked_at = [(prompt, prompt_features(prompt.text)) for prompt in prompts]
    rows = [
        {
            "prompt_id": prompt.id,
            "deployment": deployment,
            "type": prompt.type,
            "turn": prompt.turn,
            "max_tokens": max_tokens,
            "model": "",
            "machine": "",
            **features,
            **forecast.deployments.get(deployment, {}),
        }
        for deployment in deployments
        for prompt, features in looked_at
    ]
    numbers = dict.fromkeys(NUMBERS["after"], pl.Float64)
    names = dict.fromkeys((*NAMES, "prompt_id"), pl.String)
    frame = pl.DataFrame(rows, schema={**names, **numbers}, strict=False)
    if output_tokens is None:
        return frame
    return frame.with_columns(
        input_tokens=pl.col("prompt_words") * TOKENS_PER_WORD, output_tokens=pl.lit(float(output_tokens))
    )

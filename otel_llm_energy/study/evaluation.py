"""How good is a forecast on calls that it has not seen? Beside it the baselines that it has to beat."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import polars as pl

from otel_llm_energy.study import StudyError
from otel_llm_energy.study.charts import number
from otel_llm_energy.study.forecast import LEAST_PROMPTS, Forecast, Target, When, fit, fit_line, folds, with_lengths
from otel_llm_energy.study.tables import Floats

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEVEL: Final = 0.9
_HELD_PARTS: Final = 4  # a quarter of the prompts is held out
_LEAST_HELD: Final = 5


@dataclass(frozen=True, slots=True)
class Error:
    """How far forecasts were from the truth.

    Attributes:
        split: what was held out: ``"prompts"``, or a deployment.
        when: before or after the call.
        method: of the forecast.
        type: of task; empty for all.
        rows: judged.
        r2: part of the variance that is explained; below 0 it is worse than the mean; ``None`` where nothing varies.
        mean_joules: mean absolute error, J.
        median_part: median of the absolute error relative to the truth.
        coverage: part of the truths inside the 90 % intervals; ``None`` for baselines, which have none.
        width_part: median width of these intervals relative to the forecast.
    """

    split: str
    when: When
    method: str
    type: str
    rows: int
    r2: float | None
    mean_joules: float
    median_part: float
    coverage: float | None = None
    width_part: float | None = None


def evaluate(rows: pl.DataFrame, target: Target, seed: int = 0) -> list[Error]:
    """Errors on a quarter of the prompts, not learned from; then on each deployment, learned from the others.

    Args:
        rows: as `otel_llm_energy.study.forecast.training_rows` gives them.
        seed: chooses the prompts.

    Raises:
        StudyError: too few prompts.
    """
    held = folds(rows, _HELD_PARTS, seed) == 0
    _require_enough(rows, held)
    errors = _judge(rows, held, target, "prompts", seed, by_type=True)
    deployments = np.array(rows["deployment"].to_list(), dtype=object)
    if len(set(deployments)) > 1:
        for name in sorted(set(deployments)):
            try:
                errors += _judge(rows, deployments == name, target, str(name), seed, by_type=False)
            except StudyError:
                continue  # the others have too few prompts to learn from
    return errors


def _require_enough(rows: pl.DataFrame, held: NDArray[np.bool_]) -> None:
    prompts, learned = (some["prompt_sha256"].n_unique() for some in (rows, rows.filter(pl.Series(~held))))
    if learned < LEAST_PROMPTS:
        raise StudyError(
            f"{prompts} prompts with energy are too few to know a forecast's error: a quarter is held out, and what is "
            f"left ({learned}) is to be at least {LEAST_PROMPTS}. Collect more."
        )


def _judge(
    rows: pl.DataFrame, held: NDArray[np.bool_], target: Target, split: str, seed: int, *, by_type: bool
) -> list[Error]:
    learned, unseen = rows.filter(pl.Series(~held)), rows.filter(pl.Series(held))
    forecast = fit(learned, target, seed)
    stages: tuple[When, ...] = ("before",) if forecast.after is None else ("before", "after")
    errors = []
    for when in stages:
        judged = unseen if when == "before" else with_lengths(unseen)
        known = learned if when == "before" else with_lengths(learned)
        errors += _errors(forecast, known, judged, when, split)
        if by_type:
            for kind in sorted(set(judged["type"].to_list()) - {""}):
                mine = judged.filter(pl.col("type") == kind)
                if mine.height >= _LEAST_HELD:
                    errors.append(_of_forecast(forecast, mine, when, split, kind))
    return errors


def _errors(forecast: Forecast, known: pl.DataFrame, judged: pl.DataFrame, when: When, split: str) -> list[Error]:
    """Of the baselines, learned from ``known``, and of the forecast; none if too few calls are judged."""
    if judged.height < _LEAST_HELD:
        return []
    target = forecast.target
    energy = known[target].to_numpy()
    methods: Mapping[str, Callable[[pl.DataFrame], Floats]] = {
        "mean of the model": _mean_of_model(known, target),
        "linear in tokens": fit_line(known, energy, when).predict,
    }
    truth = judged[target].to_numpy()
    found = [
        Error(split, when, method, "", judged.height, *_figures(truth, predict(judged)))
        for method, predict in methods.items()
    ]
    return [*found, _of_forecast(forecast, judged, when, split, "")]


def _mean_of_model(known: pl.DataFrame, target: Target) -> Callable[[pl.DataFrame], Floats]:
    means = dict(known.group_by("deployment").agg(pl.col(target).mean()).iter_rows())
    overall = float(known[target].mean() or 0.0)  # type: ignore[arg-type]
    return lambda rows: np.array([means.get(name, overall) for name in rows["deployment"].to_list()])


def _of_forecast(forecast: Forecast, judged: pl.DataFrame, when: When, split: str, kind: str) -> Error:
    stage = forecast.stage(when)
    truth, guess = judged[forecast.target].to_numpy(), stage.predict(judged)
    low, high = stage.interval_factors(LEVEL)
    inside = (truth >= guess * low) & (truth <= guess * high)
    figures = _figures(truth, guess)
    return Error(split, when, "boosted trees", kind, judged.height, *figures, float(inside.mean()), high - low)


def _figures(truth: Floats, guess: Floats) -> tuple[float | None, float, float]:
    off = truth - guess
    spread = float(((truth - truth.mean()) ** 2).sum())
    r2 = 1 - float((off**2).sum()) / spread if spread > 0 else None
    return r2, float(np.abs(off).mean()), float(np.median(np.abs(off) / truth))


def table(errors: Sequence[Error]) -> str:
    """The errors as text, for a terminal."""
    headers = ("held out", "forecast", "method", "calls", "R2", "mean error, J", "median error", "90 % holds", "width")
    lines = [headers, *(_cells(each) for each in errors)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headers))]
    text = []
    for line in lines:
        words = [
            cell.ljust(width) if column < 3 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        text.append("  ".join(words).rstrip())
    return "\n".join(text)


def _cells(each: Error) -> tuple[str, ...]:
    return (
        f"{each.split}, {each.type}" if each.type else each.split,
        f"{each.when} the call",
        each.method,
        f"{each.rows:,}",
        "" if each.r2 is None else f"{each.r2:.4f}",
        number(each.mean_joules),
        f"{each.median_part:.1%}",
        "" if each.coverage is None else f"{each.coverage:.1%}",
        "" if each.width_part is None else f"{each.width_part:.0%}",
    )

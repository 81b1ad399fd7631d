"""A forecast of a call's energy: before it from prompt, deployment and limit, after it from the lengths too.

Energy is nearly linear in tokens, so a line for each deployment comes first; boosted trees then learn by which factor
the truth differs from it. Their forecast is ``line x factor``. Intervals are conformal: the factors by which calls of
prompts that a model had not seen differed from its forecast give the interval of the next (split conformal prediction
with cross-fitting; Vovk 2015, Barber et al. 2021). They hold for prompts and deployments like those collected, and for
no others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import polars as pl

from otel_llm_energy.study import StudyError
from otel_llm_energy.study.features import FEATURES
from otel_llm_energy.study.tables import Floats, sample

if TYPE_CHECKING:
    import lightgbm
    from numpy.typing import NDArray

When = Literal["before", "after"]
Target = Literal["joules", "above_idle_joules"]

_BEFORE: Final = (
    *FEATURES,
    "prompt_tokens",
    "max_tokens",
    "temperature",
    "turn",
    "server_model_parameters",
    "server_model_bytes",
)
_LENGTHS: Final = ("input_tokens", "output_tokens", "cached_tokens")
NUMBERS: Final[Mapping[When, tuple[str, ...]]] = {"before": _BEFORE, "after": (*_BEFORE, *_LENGTHS)}
NAMES: Final = ("deployment", "model", "machine", "type")
_LINEAR: Final[Mapping[When, tuple[str, str]]] = {
    "before": ("prompt_length", "max_tokens"),
    "after": ("input_tokens", "output_tokens"),
}

_FOLDS: Final = 5
LEAST_PROMPTS: Final = 2 * _FOLDS
_LEAST_LINE_ROWS: Final = 10
_MOST_ROWS: Final = 100_000
_FLOOR_PART: Final = 0.05  # of the mean energy: no line falls below, so that factors stay finite
TOKENS_PER_WORD: Final = 1.33  # of English in common vocabularies; only where no tokenizer counted
_QUANTILES: Final = 401
_MOST_TREES: Final = 300
_PATIENCE: Final = 25
_TREES: Final[Mapping[str, Any]] = {
    "objective": "regression",
    "learning_rate": 0.05,
    "num_leaves": 15,
    "min_data_in_leaf": 15,
    "feature_fraction": 0.8,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "max_cat_to_onehot": 8,
    "seed": 1,
    "deterministic": True,
    "force_row_wise": True,
    "num_threads": 1,  # a small model; and OpenMP's threads spin, which costs the energy that is studied
    "verbosity": -1,
}


@dataclass(frozen=True, slots=True)
class Line:
    """Energy as ``c0 + c1 x + c2 y`` over two lengths, J; a set of coefficients for each deployment.

    Attributes:
        when: which lengths: see `_LINEAR`.
        by_deployment: coefficients and the least that a forecast may be, J.
        pooled: the same over all, for a deployment that was not collected.
    """

    when: When
    by_deployment: Mapping[str, tuple[tuple[float, ...], float]]
    pooled: tuple[tuple[float, ...], float]

    def predict(self, rows: pl.DataFrame) -> Floats:
        """Joules of each row."""
        design = _design(rows, self.when)
        joules = np.empty(rows.height)
        names = np.array(rows["deployment"].to_list(), dtype=object)
        for name in set(names):
            coefficients, floor = self.by_deployment.get(name, self.pooled)
            mine = names == name
            joules[mine] = np.maximum(design[mine] @ np.array(coefficients), floor)
        return joules


def fit_line(rows: pl.DataFrame, energy: Floats, when: When) -> Line:
    """By least squares, for each deployment with enough rows, and over all."""
    design = _design(rows, when)
    names = np.array(rows["deployment"].to_list(), dtype=object)
    found = {}
    for name in sorted(set(names)):
        mine = names == name
        if mine.sum() >= _LEAST_LINE_ROWS:
            found[str(name)] = _least_squares(design[mine], energy[mine])
    return Line(when, found, _least_squares(design, energy))


def _least_squares(design: Floats, energy: Floats) -> tuple[tuple[float, ...], float]:
    coefficients = np.linalg.lstsq(design, energy, rcond=None)[0]
    return tuple(float(each) for each in coefficients), max(_FLOOR_PART * float(energy.mean()), 1e-9)


def _design(rows: pl.DataFrame, when: When) -> Floats:
    length = pl.coalesce(pl.col("prompt_tokens").cast(pl.Float64), pl.col("prompt_words") * TOKENS_PER_WORD)
    first, second = _LINEAR[when]
    columns = rows.with_columns(prompt_length=length).select(
        pl.lit(1.0), pl.col(first).cast(pl.Float64).fill_null(0.0), pl.col(second).cast(pl.Float64).fill_null(0.0)
    )
    return columns.to_numpy()


@dataclass(frozen=True, slots=True)
class Stage:
    """The forecast before, or after, the call.

    Attributes:
        categories: the names that were collected, by column; others are unknown to the trees.
        trees: LightGBM's own text form.
        factors: quantiles, evenly spaced from the least to the greatest, of truth / forecast of unseen prompts.
        calibrated: how many prompts these are of: repeats of one are no more evidence of the next.
    """

    when: When
    numbers: tuple[str, ...]
    categories: Mapping[str, tuple[str, ...]]
    line: Line
    trees: str
    factors: tuple[float, ...]
    calibrated: int

    def predict(self, rows: pl.DataFrame) -> Floats:
        """Joules of each row, best guess."""
        import lightgbm

        booster = lightgbm.Booster(model_str=self.trees)
        return _times(self.line.predict(rows), booster, _matrix(rows, self.numbers, self.categories))

    def interval_factors(self, level: float) -> tuple[float, float]:
        """Of the forecast: what the truth is between, with probability ``level``, for a call like those collected.

        The next prompt is as likely to come before the first, between two, or after the last of those that there were:
        the interval begins and ends at ranks among one more than these. Above `most_level` it is all that was seen.
        """
        rank = (1 - level) / 2 * (self.calibrated + 1)  # from 1, from either end
        beyond = max(rank - 1, 0.0) / max(self.calibrated - 1, 1)
        grid = np.linspace(0, 1, len(self.factors))
        low, high = np.interp([beyond, 1 - beyond], grid, self.factors)
        return float(low), float(high)

    @property
    def most_level(self) -> float:
        """The probability that a call is between the least and the greatest that were seen."""
        return (self.calibrated - 1) / (self.calibrated + 1)


@dataclass(frozen=True, slots=True)
class Forecast:
    """A forecast that was learned; a model file holds it (`otel_llm_energy.study.forecast_file`).

    Attributes:
        target: what is forecast: ``"joules"``, with the call's part of idle power, or ``"above_idle_joules"``.
        rows, prompts: it was learned from.
        deployments: columns that are the same for all calls of one, by name.
        longest_characters: of the prompts that it was learned from.
        limits: the least and the greatest limit of an answer, tokens, that each deployment was learned with; one is
            missing where none was known.
    """

    target: Target
    rows: int
    prompts: int
    deployments: Mapping[str, Mapping[str, Any]]
    longest_characters: int
    limits: Mapping[str, tuple[int, int]]
    before: Stage
    after: Stage | None

    def stage(self, when: When) -> Stage:
        """Raises `StudyError` where the rows it was learned from had no token counts."""
        if when == "before":
            return self.before
        if self.after is None:
            raise StudyError("This model forecasts only before a call: the rows had no token counts.")
        return self.after


def fit(rows: pl.DataFrame, target: Target = "joules", seed: int = 0) -> Forecast:
    """Learn a forecast from answered calls with energy; see `training_rows`.

    Args:
        rows: as `training_rows` gives them.
        target: what to forecast.
        seed: of the folds.

    Raises:
        StudyError: too few prompts.
    """
    prompts = rows["prompt_sha256"].n_unique()
    if prompts < LEAST_PROMPTS:
        raise StudyError(
            f"{prompts} prompts with energy are too few to learn a forecast from and to know its error: "
            f"at least {LEAST_PROMPTS}. Collect more."
        )
    known = with_lengths(rows)
    enough = known["prompt_sha256"].n_unique() >= LEAST_PROMPTS
    fixed = rows.group_by("deployment", maintain_order=True).agg(
        pl.col("model", "machine", "server_model_parameters", "server_model_bytes", "temperature").drop_nulls().first()
    )
    return Forecast(
        target,
        rows.height,
        prompts,
        {row.pop("deployment"): row for row in fixed.sort("deployment").to_dicts()},
        int(rows["prompt_characters"].max() or 0),  # type: ignore[arg-type]
        _limits(rows),
        _fit_stage(rows, target, "before", seed),
        _fit_stage(known, target, "after", seed) if enough else None,
    )


def _limits(rows: pl.DataFrame) -> dict[str, tuple[int, int]]:
    limit = pl.col("max_tokens")
    ranges = rows.drop_nulls("max_tokens").group_by("deployment").agg(low=limit.min(), high=limit.max())
    return {deployment: (int(low), int(high)) for deployment, low, high in ranges.sort("deployment").iter_rows()}


def with_lengths(rows: pl.DataFrame) -> pl.DataFrame:
    """Those of which a forecast after the call can be made."""
    return rows.filter(pl.col("input_tokens").is_not_null() & pl.col("output_tokens").is_not_null())


def training_rows(rows: pl.LazyFrame, target: Target) -> pl.DataFrame:
    """Answered calls with energy; of very many a sample, always the same.

    Raises:
        StudyError: there are none.
    """
    good = rows.filter(pl.col(target).is_not_null() & (pl.col(target) > 0) & pl.col("error_type").is_null())
    found = sample(good, _MOST_ROWS)
    if found.is_empty():
        raise StudyError(f"No answered call has {target}, so there is nothing to learn from.")
    return found.with_columns(pl.col(name).fill_null("") for name in NAMES)


def folds(rows: pl.DataFrame, count: int, seed: int) -> Floats:
    """A fold for each row, from 0; all calls of one prompt are in one, whoever answered them and however often."""
    prompts = sorted(set(rows["prompt_sha256"].to_list()))
    order = np.random.default_rng(seed).permutation(len(prompts))
    fold_of = dict(zip(prompts, (order % count).tolist(), strict=True))
    return np.array([fold_of[prompt] for prompt in rows["prompt_sha256"].to_list()], dtype=np.float64)


def _fit_stage(rows: pl.DataFrame, target: Target, when: When, seed: int) -> Stage:
    energy = rows[target].to_numpy().astype(np.float64)
    numbers = NUMBERS[when]
    categories = {name: tuple(sorted(set(rows[name].to_list()))) for name in NAMES}
    matrix = _matrix(rows, numbers, categories)
    trees, factors = _cross_fit(rows, energy, matrix, folds(rows, _FOLDS, seed), when)
    line = fit_line(rows, energy, when)
    whole = _boost(matrix, energy / line.predict(rows), np.ones(rows.height, dtype=bool), trees)
    return Stage(
        when,
        numbers,
        categories,
        line,
        whole.model_to_string(num_iteration=trees),
        tuple(float(f"{each:.6g}") for each in np.quantile(factors, np.linspace(0, 1, _QUANTILES))),
        rows["prompt_sha256"].n_unique(),
    )


def _cross_fit(rows: pl.DataFrame, energy: Floats, matrix: Floats, fold: Floats, when: When) -> tuple[int, Floats]:
    """How many trees are best, and truth / forecast of each call by a model that has not seen its prompt."""
    guesses, rounds = [], []
    for number in range(_FOLDS):
        held = fold == number
        line = fit_line(_where(rows, ~held), energy[~held], when)
        base = line.predict(rows)
        booster = _boost(matrix, energy / base, ~held, _MOST_TREES, held)
        guesses.append((held, base[held], booster))
        rounds.append(booster.best_iteration)
    trees = max(int(np.median(rounds)), 1)  # one number for all folds, so that none is fitted to what it is judged by
    factors = np.empty(rows.height)
    for held, base, booster in guesses:
        factors[held] = energy[held] / _times(base, booster, matrix[held], trees)
    return trees, factors


def _boost(
    matrix: Floats, factor: Floats, learn: NDArray[np.bool_], trees: int, watch: NDArray[np.bool_] | None = None
) -> lightgbm.Booster:
    """Trees for the factor between truth and line; with ``watch``, as many as these rows gain from."""
    import lightgbm

    names = list(range(matrix.shape[1] - len(NAMES), matrix.shape[1]))
    data = lightgbm.Dataset(
        matrix[learn], factor[learn], categorical_feature=names, free_raw_data=False, params=dict(_TREES)
    )
    if watch is None:
        return lightgbm.train(dict(_TREES), data, trees)
    held = lightgbm.Dataset(matrix[watch], factor[watch], reference=data, free_raw_data=False)
    stop = lightgbm.early_stopping(_PATIENCE, verbose=False)
    return lightgbm.train(dict(_TREES), data, trees, valid_sets=[held], callbacks=[stop])


def _times(line_joules: Floats, booster: lightgbm.Booster, matrix: Floats, trees: int | None = None) -> Floats:
    factors = np.asarray(booster.predict(matrix, num_iteration=trees), dtype=np.float64)
    forecast: Floats = line_joules * np.clip(factors, 0.01, None)
    return forecast


def _matrix(rows: pl.DataFrame, numbers: Sequence[str], categories: Mapping[str, Sequence[str]]) -> Floats:
    """Numbers, then names as their places among the known ones; what is not known is NaN, which trees understand."""
    columns = [rows[name].cast(pl.Float64).to_numpy().astype(np.float64) for name in numbers]
    for name, known in categories.items():
        place = {value: float(index) for index, value in enumerate(known)}
        columns.append(np.array([place.get(value, np.nan) for value in rows[name].to_list()]))
    return np.column_stack(columns)


def _where(rows: pl.DataFrame, mask: NDArray[np.bool_]) -> pl.DataFrame:
    return rows.filter(pl.Series(mask))

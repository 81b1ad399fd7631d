"""What drives energy: all rows together, what goes with what, lines over tokens, conversations and outliers.

Everything that is counted over all rows is an aggregate that Polars streams; what needs single rows (ranks, points to
draw) takes a sample of a fixed size, drawn by the calls' ids. So memory does not grow with the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl

from otel_llm_energy import conventions
from otel_llm_energy.study.columns import Basis
from otel_llm_energy.study.dataset import scan
from otel_llm_energy.study.intervals import CONFIDENCE
from otel_llm_energy.study.tables import Floats, collected, sample, usable

_CORRELATED_ROWS: Final = 100_000
_DRAWN_POINTS: Final = 1_500
_OUTLIER_SCALES: Final = 6.0
_MAD_TO_SIGMA: Final = 1.4826  # of a normal distribution: 1 / 0.6745
_SHOWN_OUTLIERS: Final = 12
_SHOWN_CONVERSATIONS: Final = 20

CORRELATED: Final = {
    "joules": "energy",
    "above_idle_joules": "above idle",
    "seconds": "duration",
    "output_tokens": "output tokens",
    "input_tokens": "input tokens",
    "prefill_seconds": "prefill time",
    "decode_seconds": "decode time",
    "max_tokens": "max tokens",
    "prompt_characters": "prompt characters",
    "prompt_words": "prompt words",
    "prompt_sentences": "prompt sentences",
    "prompt_ari": "ARI",
    "prompt_lix": "LIX",
    "concurrency": "concurrency",
    "score": "score",
}


@dataclass(frozen=True, slots=True)
class Overview:
    """All rows together; energy in joules, times as Unix time in seconds."""

    calls: int
    failed: int
    without_energy: int
    joules: float
    output_tokens: int
    prompts: int
    first_at: float | None
    last_at: float | None
    meters: Sequence[str]
    qualities: Sequence[tuple[str, str, int]]


@dataclass(frozen=True, slots=True)
class TokenLine:
    """Energy against output tokens: ``intercept + slope x``, with what is needed for its intervals."""

    intercept: float
    slope: float
    r2: float
    rows: int
    mean_x: float
    spread_x: float
    sigma: float
    least_x: float
    most_x: float

    def at(self, x: Floats) -> Floats:
        """Joules at so many output tokens."""
        return self.intercept + self.slope * x

    def half_width(self, x: Floats, *, single: bool) -> Floats:
        """Half of the interval of the mean, or of a single call, at `CONFIDENCE`. Source: ordinary least squares."""
        from scipy import stats

        if self.rows < 3:
            return np.zeros_like(x)
        quantile = float(stats.t.ppf((1 + CONFIDENCE) / 2, self.rows - 2))
        spread = self.spread_x if self.spread_x > 0 else np.inf
        variance = 1 / self.rows + (x - self.mean_x) ** 2 / spread + (1.0 if single else 0.0)
        widths: Floats = quantile * self.sigma * np.sqrt(variance)
        return widths


@dataclass(frozen=True, slots=True)
class Correlations:
    """Both matrices over the same columns; NaN where one of the two never varies.

    Attributes:
        rows: looked at; a sample if there are more.
    """

    labels: Sequence[str]
    pearson: Floats
    spearman: Floats
    rows: int


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation, as a mean over its repeats and deployments; joules of all its turns."""

    name: str
    turns: int
    runs: int
    joules: float
    output_tokens: float
    last_over_first: float | None


@dataclass(frozen=True, slots=True)
class Outliers:
    """Calls whose energy is far from what their tokens suggest.

    Attributes:
        by_quality: quality and reason, outliers of that kind, and calls of that kind.
        worst: deployment, prompt, output tokens, joules, expected joules, quality and reason.
    """

    count: int
    of: int
    by_quality: Sequence[tuple[str, str, int, int]]
    worst: Sequence[tuple[str, str, int, float, float, str, str]]


def overview(rows: pl.LazyFrame) -> Overview:
    """Counts and sums over all rows, failures included."""
    facts = collected(
        rows.select(
            calls=pl.len(),
            failed=pl.col("error_type").is_not_null().sum(),
            without_energy=pl.col("joules").is_null().sum(),
            joules=pl.col("joules").sum(),
            output_tokens=pl.col("output_tokens").sum(),
            prompts=pl.col("prompt_sha256").n_unique(),
            first_at=pl.col("started_at").min(),
            last_at=(pl.col("started_at") + pl.col("seconds")).max(),
        )
    ).row(0, named=True)
    qualities = collected(
        rows.group_by(pl.col("quality").fill_null("none"), pl.col("reason").fill_null(""))
        .len()
        .sort("len", descending=True)
    ).rows()
    meters = collected(rows.select(pl.col("meter").drop_nulls().unique().sort()))["meter"].to_list()
    return Overview(**facts, meters=meters, qualities=qualities)


def correlations(rows: pl.LazyFrame, basis: Basis) -> Correlations:
    """Pearson and Spearman over pairs of columns, each pair over the rows that have both."""
    drawn = sample(usable(rows, basis).select("call_id", *CORRELATED), _CORRELATED_ROWS)
    varied = [name for name in CORRELATED if (drawn[name].n_unique() - (drawn[name].null_count() > 0)) > 1]
    size = len(varied)
    pearson, spearman = np.full((size, size), np.nan), np.full((size, size), np.nan)
    for i, one in enumerate(varied):
        pearson[i, i] = spearman[i, i] = 1.0
        for j in range(i):
            both = drawn.select(one, varied[j]).drop_nulls().cast(pl.Float64)
            if both.height > 2:
                pearson[i, j] = pearson[j, i] = _corr(both, "pearson")
                spearman[i, j] = spearman[j, i] = _corr(both, "spearman")
    return Correlations([CORRELATED[name] for name in varied], pearson, spearman, drawn.height)


def _corr(both: pl.DataFrame, method: Any) -> float:
    value = both.select(pl.corr(*both.columns, method=method)).item()
    return float("nan") if value is None else float(value)


def lines(rows: pl.LazyFrame, basis: Basis) -> dict[str, TokenLine]:
    """Energy against output tokens, by deployment, over all rows."""
    x, y = pl.col("output_tokens").cast(pl.Float64), pl.col("energy")
    sums = collected(
        usable(rows, basis)
        .filter(pl.col("output_tokens").is_not_null())
        .group_by("deployment")
        .agg(
            n=pl.len(),
            mean_x=x.mean(),
            mean_y=y.mean(),
            var_x=x.var(ddof=0),
            var_y=y.var(ddof=0),
            cov=pl.cov(x, y, ddof=0),
            least=x.min(),
            most=x.max(),
        )
        .sort("deployment")
    )
    return {row["deployment"]: _line(row) for row in sums.iter_rows(named=True)}


def _line(row: dict[str, Any]) -> TokenLine:
    n, var_x, var_y, cov = row["n"], row["var_x"] or 0.0, row["var_y"] or 0.0, row["cov"] or 0.0
    slope = cov / var_x if var_x > 0 else 0.0
    residual = max(var_y - slope * cov, 0.0)
    return TokenLine(
        intercept=row["mean_y"] - slope * row["mean_x"],
        slope=slope,
        r2=1 - residual / var_y if var_y > 0 else 0.0,
        rows=n,
        mean_x=row["mean_x"],
        spread_x=n * var_x,
        sigma=float(np.sqrt(residual * n / (n - 2))) if n > 2 else 0.0,
        least_x=row["least"],
        most_x=row["most"],
    )


def points(rows: pl.LazyFrame, basis: Basis) -> pl.DataFrame:
    """Deployment, output tokens and energy of some calls, to draw."""
    wanted = usable(rows, basis).filter(pl.col("output_tokens").is_not_null())
    return sample(wanted.select("call_id", "deployment", "output_tokens", "energy"), _DRAWN_POINTS)


def longest_calls_with_power(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """The longest call of each deployment of which the power was kept: its columns as they were collected."""
    kept = scan(folders).filter(pl.col("power_watts").list.len() > 2, pl.col("error_type").is_null())
    phases = (conventions.SERVER_DECODE_SECONDS, conventions.SERVER_PREFILL_SECONDS)
    wanted = ["deployment", "prompt_id", "seconds", *phases]
    calls = collected(
        kept.select(*wanted, "power_seconds", "power_watts")
        .sort("seconds", descending=True)
        .group_by("deployment")
        .first()
    )
    return calls.to_dicts()


def conversations(rows: pl.LazyFrame, basis: Basis) -> list[Conversation]:
    """The conversations that take the most energy."""
    talks = usable(rows, basis).filter(pl.col("conversation").fill_null("") != "")
    runs = talks.group_by("study", "conversation", "deployment", "repeat", "max_tokens").agg(
        turns=pl.len(),
        joules=pl.col("energy").sum(),
        tokens=pl.col("output_tokens").sum(),
        first=pl.col("energy").sort_by("turn").first(),
        last=pl.col("energy").sort_by("turn").last(),
    )
    table = collected(
        runs.group_by("conversation")
        .agg(
            turns=pl.col("turns").max(),
            runs=pl.len(),
            joules=pl.col("joules").mean(),
            tokens=pl.col("tokens").mean(),
            growth=pl.col("last").sum() / pl.col("first").sum(),
        )
        .sort("joules", descending=True)
        .head(_SHOWN_CONVERSATIONS)
    )
    return [
        Conversation(row[0], row[1], row[2], row[3], row[4], row[5] if row[1] > 1 else None)
        for row in table.iter_rows()
    ]


def outliers(rows: pl.LazyFrame, basis: Basis) -> Outliers:
    """Calls that lie more than six robust standard deviations from their deployment's plane over both token counts.

    Deviations are relative to what the plane says: meters' errors grow with what they measure.
    """
    counted = usable(rows, basis).filter(pl.col("output_tokens").is_not_null() & pl.col("input_tokens").is_not_null())
    planes = _planes(counted)
    if planes.is_empty():
        return Outliers(0, 0, (), ())
    expected = pl.col("a") + pl.col("b") * pl.col("input_tokens") + pl.col("c") * pl.col("output_tokens")
    judged = (
        counted.join(planes.lazy(), on="deployment")
        .with_columns(expected=expected)
        .filter(pl.col("expected") > 0)
        .with_columns(off=(pl.col("energy") / pl.col("expected") - 1).abs())
    )
    scales = collected(judged.group_by("deployment").agg(scale=pl.col("off").median() * _MAD_TO_SIGMA)).lazy()
    far = judged.join(scales, on="deployment").with_columns(
        out=(pl.col("off") > _OUTLIER_SCALES * pl.col("scale")) & (pl.col("scale") > 0)
    )
    kinds = collected(
        far.group_by(pl.col("quality").fill_null("none"), pl.col("reason").fill_null(""))
        .agg(out=pl.col("out").sum(), calls=pl.len())
        .sort("out", "calls", descending=True)
    ).rows()
    worst = collected(
        far.filter("out")
        .top_k(_SHOWN_OUTLIERS, by=pl.col("off") / pl.col("scale"))
        .select(
            "deployment",
            "prompt_id",
            "output_tokens",
            "energy",
            "expected",
            pl.col("quality").fill_null("none"),
            pl.col("reason").fill_null(""),
        )
    ).rows()
    return Outliers(sum(kind[2] for kind in kinds), sum(kind[3] for kind in kinds), kinds, worst)


def _planes(counted: pl.LazyFrame) -> pl.DataFrame:
    """Energy as ``a + b input_tokens + c output_tokens``, by deployment, by least squares over all rows."""
    x1, x2, y = pl.col("input_tokens").cast(pl.Float64), pl.col("output_tokens").cast(pl.Float64), pl.col("energy")
    sums = collected(
        counted.group_by("deployment").agg(
            m1=x1.mean(), m2=x2.mean(), my=y.mean(),
            c11=x1.var(ddof=0), c22=x2.var(ddof=0),
            c12=pl.cov(x1, x2, ddof=0), c1y=pl.cov(x1, y, ddof=0), c2y=pl.cov(x2, y, ddof=0),
        )
    )  # fmt: skip
    planes = []
    for row in sums.iter_rows(named=True):
        matrix = np.array([[row["c11"] or 0.0, row["c12"] or 0.0], [row["c12"] or 0.0, row["c22"] or 0.0]])
        b, c = np.linalg.lstsq(matrix, np.array([row["c1y"] or 0.0, row["c2y"] or 0.0]), rcond=None)[0]
        planes.append((row["deployment"], row["my"] - b * row["m1"] - c * row["m2"], float(b), float(c)))
    return pl.DataFrame(
        planes, schema={"deployment": pl.String, "a": pl.Float64, "b": pl.Float64, "c": pl.Float64}, orient="row"
    )

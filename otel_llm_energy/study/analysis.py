"""What drives energy, and which deployment takes least of it: the figures of a report, from lazily read rows.

Everything that is counted over all rows is an aggregate that Polars streams; what needs single rows (ranks, points to
draw) takes a sample of a fixed size, drawn by the calls' ids. So memory does not grow with the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import polars as pl

from otel_llm_energy.study import StudyError
from otel_llm_energy.study.columns import Basis

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

RESAMPLES: Final = 2_000
CONFIDENCE: Final = 0.95
_MOST_GROUPS: Final = 4_096
"""Rows of one prompt belong together; beyond so many prompts several share a group of the bootstrap."""
_CORRELATED_ROWS: Final = 100_000
_DRAWN_POINTS: Final = 1_500
_BATCH: Final = 100
_LEAST_PAIRS: Final = 6
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
class Interval:
    """An estimate and its confidence interval; without one where there are too few prompts."""

    value: float
    low: float | None = None
    high: float | None = None


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
class Deployment:
    """One model on one server; its energies are on the report's basis, J.

    Attributes:
        per_token: joules per output token: sum over sum.
        per_call: mean joules of a call.
        whole_per_token: the same with the idle part, where it is known.
        phases: mean joules of prefill and decode per call, where the readings part them.
        per_input_token, per_decode_token: of the phases.
        score: mean score, where answers have one.
        load_joules: of loading the model, all calls together.
    """

    name: str
    machine: str
    calls: int
    failed: int
    per_token: Interval | None
    per_call: Interval
    whole_per_token: float | None
    seconds: float | None
    tokens_per_second: float | None
    mean_output_tokens: float | None
    phases: tuple[float, float] | None
    per_input_token: float | None
    per_decode_token: float | None
    load_joules: float
    score: Interval | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """How much more energy per output token one deployment takes than the cheapest.

    Attributes:
        ratio: of the joules per output token, over the prompts that both were asked; ``None`` if there are none.
        p_value: of the paired test over prompts, corrected for the number of comparisons; ``None`` if too few.
        pairs: prompts (or groups of them) that both were asked.
    """

    name: str
    cheapest: str
    ratio: Interval | None
    p_value: float | None
    pairs: int


@dataclass(frozen=True, slots=True)
class Line:
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
class Group:
    """Calls of one type of task with a deployment: mean joules of a call, and per output token."""

    name: str
    deployment: str
    calls: int
    per_call: Interval
    per_token: float | None
    score: float | None


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


def collected(frame: pl.LazyFrame) -> pl.DataFrame:
    """The result, worked out in pieces where that is possible."""
    result: pl.DataFrame = frame.collect(engine="streaming")
    return result


def choose_basis(rows: pl.LazyFrame) -> Basis:
    """Above idle, unless some deployment's rows have no such part (imported ones, or ones without a baseline)."""
    answered = rows.filter(pl.col("error_type").is_null())
    known = collected(
        answered.filter(pl.col("joules").is_not_null())
        .group_by("deployment")
        .agg(part=pl.col("above_idle_joules").is_not_null().mean())
    )
    if known.is_empty():
        if collected(answered.head(1)).is_empty():
            raise StudyError("No call was answered, so there is nothing to report. The rows say why, as error_type.")
        raise StudyError("No row has joules, so there is nothing to report. `otel-llm-energy doctor` says why.")
    return "above_idle_joules" if float(known["part"].min() or 0.0) >= 0.5 else "joules"  # type: ignore[arg-type]


def usable(rows: pl.LazyFrame, basis: Basis) -> pl.LazyFrame:
    """Answered calls with energy on this basis, as ``energy``."""
    good = pl.col(basis).is_not_null() & pl.col("error_type").is_null()
    return rows.filter(good).with_columns(energy=pl.col(basis))


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


def deployments(rows: pl.LazyFrame, basis: Basis) -> list[Deployment]:
    """Every deployment that has energy, the one with the least per output token first."""
    failures = dict(collected(rows.group_by("deployment").agg(pl.col("error_type").is_not_null().sum())).iter_rows())
    good = usable(rows, basis).with_columns(
        prefill_tokens=pl.col("input_tokens") - pl.col("cached_tokens").fill_null(0)
    )
    means = collected(
        good.group_by("deployment").agg(
            pl.col("machine").drop_nulls().first(),
            calls=pl.len(),
            mean_output_tokens=pl.col("output_tokens").mean(),
            seconds=pl.col("seconds").mean(),
            prefill=pl.col("prefill_joules").mean(),
            decode=pl.col("decode_joules").mean(),
            load=pl.col("load_joules").sum(),
            whole_per_token=_ratio("joules", "output_tokens"),
            tokens_per_second=_ratio("output_tokens", "decode_seconds"),
            per_input_token=_ratio("prefill_joules", "prefill_tokens"),
            per_decode_token=_ratio("decode_joules", "output_tokens"),
        )
    )
    sums = _sums(good, ["deployment"])
    made = [_deployment(row, sums, failures.get(row["deployment"], 0)) for row in means.iter_rows(named=True)]
    return sorted(made, key=lambda each: each.per_token.value if each.per_token else float("inf"))


def _ratio(above: str, below: str) -> pl.Expr:
    """Sum over sum, both over the calls that have both; nothing if either sum is 0."""
    both = pl.col(above).is_not_null() & pl.col(below).is_not_null()
    upper, lower = pl.col(above).filter(both).sum(), pl.col(below).filter(both).sum()
    return pl.when((upper != 0) & (lower != 0)).then(upper / lower)


def _sums(good: pl.LazyFrame, by: Sequence[str]) -> pl.DataFrame:
    """Sums by group and bucket of prompts: all that a bootstrap over prompts needs."""
    prompts = int(collected(good.select(pl.col("prompt_sha256").approx_n_unique())).item())
    named = pl.col("prompt_sha256").hash(0)
    bucket = named if prompts < _MOST_GROUPS // 2 else named % _MOST_GROUPS
    return collected(
        good.with_columns(bucket=bucket)
        .group_by(*by, "bucket")
        .agg(
            energy=pl.col("energy").sum(),
            token_energy=pl.col("energy").filter(pl.col("output_tokens").is_not_null()).sum(),
            tokens=pl.col("output_tokens").sum().cast(pl.Float64),
            calls=pl.len().cast(pl.Float64),
            scores=pl.col("score").sum(),
            scored=pl.col("score").count().cast(pl.Float64),
        )
        .sort(*by, "bucket")
    )


def _deployment(row: dict[str, Any], sums: pl.DataFrame, failed: int) -> Deployment:
    mine = sums.filter(pl.col("deployment") == row["deployment"])
    phased = row["prefill"] is not None and row["decode"] is not None
    return Deployment(
        name=row["deployment"],
        machine=row["machine"] or "",
        calls=row["calls"],
        failed=failed,
        per_token=ratio_interval(mine["token_energy"].to_numpy(), mine["tokens"].to_numpy()),
        per_call=ratio_interval(mine["energy"].to_numpy(), mine["calls"].to_numpy()) or Interval(0.0),
        whole_per_token=row["whole_per_token"],
        seconds=row["seconds"],
        tokens_per_second=row["tokens_per_second"],
        mean_output_tokens=row["mean_output_tokens"],
        phases=(row["prefill"], row["decode"]) if phased else None,
        per_input_token=row["per_input_token"],
        per_decode_token=row["per_decode_token"],
        load_joules=row["load"],
        score=ratio_interval(mine["scores"].to_numpy(), mine["scored"].to_numpy()),
    )


def _quotient(above: float | None, below: float | None) -> float | None:
    return above / below if above and below else None


def ratio_interval(above: Floats, below: Floats) -> Interval | None:
    """Sum over sum, with its percentile interval of the bootstrap over groups; ``None`` if the lower sum is 0."""
    kept = below > 0
    above, below = above[kept], below[kept]
    if not below.size:
        return None
    value = float(above.sum() / below.sum())
    if below.size < 2:
        return Interval(value)
    return _bootstrapped(value, (above, below), lambda a, b, axis: a.sum(axis=axis) / b.sum(axis=axis))


def _bootstrapped(value: float, samples: Sequence[Floats], statistic: Callable[..., Floats]) -> Interval:
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


def comparisons(rows: pl.LazyFrame, basis: Basis, ranked: Sequence[Deployment]) -> list[Comparison]:
    """Each deployment against the cheapest, over the prompts that both were asked."""
    from scipy import stats

    with_tokens = [each for each in ranked if each.per_token is not None]
    if len(with_tokens) < 2:
        return []
    sums = _sums(usable(rows, basis).filter(pl.col("output_tokens").is_not_null()), ["deployment"])
    cheapest = sums.filter(pl.col("deployment") == with_tokens[0].name)
    found = []
    for other in with_tokens[1:]:
        pairs = sums.filter(pl.col("deployment") == other.name).join(cheapest, on="bucket", suffix="_least")
        pairs = pairs.filter((pl.col("tokens") > 0) & (pl.col("tokens_least") > 0))
        found.append((other.name, pairs))
    raw = [_paired_p_value(pairs) for _, pairs in found]
    tested = [p for p in raw if p is not None]
    corrected = iter(stats.false_discovery_control(tested) if tested else ())
    return [
        Comparison(
            name,
            with_tokens[0].name,
            _paired_ratio(pairs),
            None if p is None else float(next(corrected)),
            pairs.height,
        )
        for (name, pairs), p in zip(found, raw, strict=True)
    ]


def _paired_p_value(pairs: pl.DataFrame) -> float | None:
    """Wilcoxon's signed-rank test of the logarithms of joules per token, prompt by prompt."""
    from scipy import stats

    positive = pairs.filter((pl.col("token_energy") > 0) & (pl.col("token_energy_least") > 0))
    if positive.height < _LEAST_PAIRS:
        return None
    ratios = positive.select(
        (pl.col("token_energy") / pl.col("tokens") / (pl.col("token_energy_least") / pl.col("tokens_least"))).log()
    ).to_series()
    if not ratios.abs().max():
        return 1.0
    return float(stats.wilcoxon(ratios.to_numpy()).pvalue)


def _paired_ratio(pairs: pl.DataFrame) -> Interval | None:
    if pairs.is_empty():
        return None

    names = ("token_energy", "tokens", "token_energy_least", "tokens_least")
    parts: list[Floats] = [pairs[name].to_numpy() for name in names]

    def ratio(e1: Floats, t1: Floats, e2: Floats, t2: Floats, *, axis: int = -1) -> Floats:
        with np.errstate(divide="ignore", invalid="ignore"):
            found: Floats = (e1.sum(axis=axis) / t1.sum(axis=axis)) / (e2.sum(axis=axis) / t2.sum(axis=axis))
        return found

    value = float(ratio(*parts))
    if pairs.height < 2:
        return Interval(value)
    return _bootstrapped(value, parts, ratio)


def sample(rows: pl.LazyFrame, most: int) -> pl.DataFrame:
    """At most about so many rows, always the same ones."""
    count = int(collected(rows.select(pl.len())).item())
    if count > most:
        rows = rows.filter(pl.col("call_id").hash(1) % 1_000_000 < int(1_000_000 * most / count))
    return collected(rows)


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


def lines(rows: pl.LazyFrame, basis: Basis) -> dict[str, Line]:
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


def _line(row: dict[str, Any]) -> Line:
    n, var_x, var_y, cov = row["n"], row["var_x"] or 0.0, row["var_y"] or 0.0, row["cov"] or 0.0
    slope = cov / var_x if var_x > 0 else 0.0
    residual = max(var_y - slope * cov, 0.0)
    return Line(
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


def by_type(rows: pl.LazyFrame, basis: Basis) -> list[Group]:
    """Calls by type of task and deployment; nothing if no prompt has a type."""
    typed = usable(rows, basis).filter(pl.col("type").fill_null("") != "")
    sums = _sums(typed, ["type", "deployment"])
    parts = sums.partition_by("type", "deployment", as_dict=True)
    return [_group(str(name), str(deployment), mine) for (name, deployment), mine in sorted(parts.items())]


def _group(name: str, deployment: str, mine: pl.DataFrame) -> Group:
    token_energy, tokens, scores, scored = (
        float(mine[column].sum()) for column in ("token_energy", "tokens", "scores", "scored")
    )
    return Group(
        name,
        deployment,
        int(mine["calls"].sum()),
        ratio_interval(mine["energy"].to_numpy(), mine["calls"].to_numpy()) or Interval(0.0),
        _quotient(token_energy, tokens),
        scores / scored if scored else None,
    )


def conversations(rows: pl.LazyFrame, basis: Basis) -> list[Conversation]:
    """The conversations that take the most energy."""
    talks = usable(rows, basis).filter(pl.col("conversation").fill_null("") != "")
    runs = talks.group_by("conversation", "deployment", "repeat", "max_tokens").agg(
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


def pareto(ranked: Sequence[Deployment]) -> list[Deployment]:
    """Those than which none is both cheaper per call and at least as good; the cheapest first."""
    front: list[Deployment] = []
    scored = [each for each in ranked if each.score is not None]
    for each in sorted(scored, key=lambda one: (one.per_call.value, -_score(one))):
        if not front or _score(each) > _score(front[-1]):
            front.append(each)
    return front


def _score(each: Deployment) -> float:
    return each.score.value if each.score is not None else 0.0

"""Which deployment takes least energy, and how sure that is: figures of deployments, and of types of task with each.

All that is counted over rows is an aggregate that Polars streams; see `otel_llm_energy.study.tables`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import polars as pl

from otel_llm_energy.study.columns import Basis
from otel_llm_energy.study.intervals import Interval, bootstrapped, ratio_interval
from otel_llm_energy.study.tables import Floats, collected, usable

_MOST_GROUPS: Final = 4_096
"""Rows of one prompt belong together; beyond so many prompts several share a group of the bootstrap."""
_LEAST_PAIRS: Final = 6  # of fewer, the least p that the signed-rank test can give, 2 / 2**n, is above 0.05


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
class Group:
    """Calls of one type of task with a deployment: mean joules of a call, and per output token."""

    name: str
    deployment: str
    calls: int
    per_call: Interval
    per_token: float | None
    score: float | None


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
    return bootstrapped(value, parts, ratio)


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

"""One page that shows what was collected: what drives energy, who takes least of it, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl

from otel_llm_energy.quantities import JOULES_PER_KWH
from otel_llm_energy.study import analysis, figures, html
from otel_llm_energy.study.charts import number
from otel_llm_energy.study.columns import Basis, short_rows
from otel_llm_energy.study.deployments import Comparison, Deployment, Group, by_type, comparisons, deployments, pareto
from otel_llm_energy.study.intervals import CONFIDENCE, RESAMPLES, Interval
from otel_llm_energy.study.sessions import Metered, metered
from otel_llm_energy.study.tables import choose_basis
from otel_llm_energy.version import __version__

_DRAWN_DEPLOYMENTS: Final = 8
_DRAWN_POWER: Final = 4

_BASIS_WORDS: Final[dict[Basis, str]] = {
    "above_idle_joules": "Energies are above idle: what the calls added to the power that the machine draws anyway.",
    "joules": "Energies hold the idle power of the machine, too, since some rows have no part above idle: machines "
    "cannot be compared fairly so, and the longer a call takes the more idle power it holds.",
}


def report(folders: Sequence[Path]) -> str:
    """The page of the studies in these folders, as HTML that needs no network and no other file.

    Raises:
        otel_llm_energy.study.StudyError: a folder holds no study, or no row of any has joules.
    """
    rows = short_rows(folders)
    basis = choose_basis(rows)
    ranked = deployments(rows, basis)
    names = ", ".join(sorted(folder.resolve().name for folder in folders))
    return html.page(f"Energy study {names}", _content(folders, rows, basis, ranked, names))


def _content(
    folders: Sequence[Path], rows: pl.LazyFrame, basis: Basis, ranked: Sequence[Deployment], names: str
) -> Iterator[str]:
    shown = ranked[:_DRAWN_DEPLOYMENTS]
    yield f"<h1>{html.escaped(f'Energy study: {names}')}</h1>"
    overview = analysis.overview(rows)
    yield from _overview(overview)
    yield html.paragraph(_BASIS_WORDS[basis])
    found = analysis.correlations(rows, basis)
    yield from _in_short(rows, basis, ranked, found)
    yield from _deployments(ranked, shown)
    yield from _pareto(ranked)
    yield from _against_tokens(rows, basis, shown)
    yield from _phases(ranked, shown)
    yield from _power(folders, shown)
    yield from _types(by_type(rows, basis), shown)
    yield from _conversations(rows, basis)
    yield from _correlations(found)
    yield from _balance(metered(folders), ranked)
    yield from _quality(analysis.outliers(rows, basis), overview)
    yield html.paragraph(
        f"Made by otel-llm-energy {__version__}. Intervals: {CONFIDENCE:.0%}, by "
        f"{RESAMPLES} bootstrap samples of prompts; repeats of a prompt do not count as more evidence.",
        "soft",
    )


# At the top


def _overview(found: analysis.Overview) -> Iterator[str]:
    if found.first_at is not None and found.last_at is not None:
        first, last = (datetime.fromtimestamp(at, timezone.utc) for at in (found.first_at, found.last_at))
        meters = ", ".join(found.meters) or "unknown"
        yield html.paragraph(f"{first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC, meter: {meters}.", "soft")
    if "estimated" in {quality for quality, _, _ in found.qualities}:
        yield html.paragraph("Some or all joules are estimates from CPU time, not measurements.", "note")
    yield html.facts(
        [
            ("calls", f"{found.calls:,}"),
            ("failed", f"{found.failed:,}"),
            ("without energy", f"{found.without_energy:,}"),
            ("prompts", f"{found.prompts:,}"),
            ("output tokens", f"{found.output_tokens:,}"),
            ("energy with idle, J", number(found.joules, 4)),
            ("energy with idle, kWh", number(found.joules / JOULES_PER_KWH, 4)),
        ]
    )


def _in_short(
    rows: pl.LazyFrame, basis: Basis, ranked: Sequence[Deployment], found: analysis.Correlations
) -> Iterator[str]:
    items = []
    cheapest = ranked[0]
    if cheapest.per_token is not None:
        least = "Least energy" if len(ranked) > 1 else "Energy"
        items.append(f"{least} per output token: {cheapest.name}, {_words(cheapest.per_token)} J.")
    for one in comparisons(rows, basis, ranked)[:_DRAWN_DEPLOYMENTS]:
        items.append(_comparison_words(one))
    driver = _strongest(found)
    if driver is not None:
        items.append(f"What goes with energy most is {driver[0]} (Spearman {driver[1]:.2f}, {found.rows:,} calls).")
    front = pareto(ranked)
    if len(front) > 1:
        steps = "; ".join(
            f"{each.name}: score {_score_words(each)}, {number(each.per_call.value)} J a call" for each in front
        )
        items.append(f"Cheapest for each level of score: {steps}.")
    yield html.heading("In short")
    yield html.bullets(items)


def _comparison_words(one: Comparison) -> str:
    if one.ratio is None:
        return f"{one.name} was asked no prompt that {one.cheapest} was asked: they cannot be compared fairly."
    if one.p_value is None:
        sure = f"too few prompts in common ({one.pairs}) for a test"
    elif one.p_value < 0.05:
        sure = f"a difference that is not chance, p {_p_words(one.p_value)}, {one.pairs} prompts"
    else:
        sure = f"which may be chance, p {_p_words(one.p_value)}, {one.pairs} prompts"
    return f"{one.name} takes {_words(one.ratio)} times as much per output token as {one.cheapest}: {sure}."


def _p_words(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"


def _strongest(found: analysis.Correlations) -> tuple[str, float] | None:
    """What correlates most with energy, other than energy."""
    energies = {"energy", "above idle"}
    if not found.labels or found.labels[0] not in energies:
        return None
    first = found.spearman[0]
    others = [(abs(value), index) for index, value in enumerate(first) if found.labels[index] not in energies]
    known = [pair for pair in others if not math.isnan(pair[0])]
    if not known:
        return None
    _, index = max(known)
    return found.labels[index], float(first[index])


def _words(interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return number(interval.value)
    return f"{number(interval.value)} ({number(interval.low)} to {number(interval.high)})"


def _cell(interval: Interval | None) -> str | tuple[str, str]:
    if interval is None:
        return "-"
    if interval.low is None or interval.high is None:
        return number(interval.value)
    return number(interval.value), f"{number(interval.low)}..{number(interval.high)}"


def _maybe(value: float | None) -> str:
    return "-" if value is None else number(value)


def _score_words(each: Deployment) -> str:
    return "-" if each.score is None else f"{each.score.value:.2f}"


# Sections


def _deployments(ranked: Sequence[Deployment], shown: Sequence[Deployment]) -> Iterator[str]:
    yield html.heading("Models and deployments")
    yield html.figures(*figures.energy_bars(shown))
    yield _deployment_table(ranked)


def _deployment_table(ranked: Sequence[Deployment]) -> str:
    headers = [
        "deployment",
        "calls",
        "failed",
        "J/output token",
        "J/call",
        "with idle, J/token",
        "s/call",
        "tokens/s",
        "tokens/call",
        "score",
    ]
    return html.table(
        headers,
        [
            (
                (each.name, each.machine),
                f"{each.calls:,}",
                f"{each.failed:,}",
                _cell(each.per_token),
                _cell(each.per_call),
                _maybe(each.whole_per_token),
                _maybe(each.seconds),
                _maybe(each.tokens_per_second),
                _maybe(each.mean_output_tokens),
                _cell(each.score),
            )
            for each in ranked
        ],
    )


def _pareto(ranked: Sequence[Deployment]) -> Iterator[str]:
    scored = [each for each in ranked if each.score is not None]
    if len(scored) < 2:
        return  # a single score stands in the table
    yield html.heading("Score against energy")
    yield html.figures(figures.score_against_energy(ranked))


def _against_tokens(rows: pl.LazyFrame, basis: Basis, shown: Sequence[Deployment]) -> Iterator[str]:
    lines = analysis.lines(rows, basis)
    drawn = analysis.points(rows, basis)
    if drawn.is_empty():
        return
    yield html.heading("Energy against output tokens")
    yield html.figures(
        figures.energy_against_tokens(drawn, lines, shown),
        html.table(
            ["deployment", "J a call", "+ J a token", "R²", "± J for a call", "calls"],
            [
                (
                    name,
                    number(line.intercept),
                    number(line.slope),
                    f"{line.r2:.3f}",
                    number(float(line.half_width(np.array([line.mean_x]), single=True)[0])),
                    f"{line.rows:,}",
                )
                for name, line in lines.items()
            ],
        ),
    )


def _phases(ranked: Sequence[Deployment], shown: Sequence[Deployment]) -> Iterator[str]:
    phased = [each for each in shown if each.phases is not None]
    if not phased:
        return
    yield html.heading("Prefill against decode")
    yield html.figures(
        figures.phases(phased),
        html.table(
            ["deployment", "J/input token", "J/output token"],
            [
                (each.name, _maybe(each.per_input_token), _maybe(each.per_decode_token))
                for each in ranked
                if each.phases
            ],
        ),
    )


def _power(folders: Sequence[Path], shown: Sequence[Deployment]) -> Iterator[str]:
    """Of the longest call of each deployment."""
    by_name = {row["deployment"]: row for row in analysis.longest_calls_with_power(folders)}
    drawn = [by_name[each.name] for each in shown if each.name in by_name][:_DRAWN_POWER]
    if not drawn:
        return
    yield html.heading("Power over time of a call")
    yield html.figures(*(figures.power(row) for row in drawn))


def _types(groups: Sequence[Group], shown: Sequence[Deployment]) -> Iterator[str]:
    if not groups:
        return
    yield html.heading("By type of task")
    yield html.figures(figures.types(groups, shown))
    yield html.table(
        ["type", "deployment", "calls", "J/call", "J/output token", "score"],
        [
            (
                group.name,
                group.deployment,
                f"{group.calls:,}",
                _cell(group.per_call),
                _maybe(group.per_token),
                "-" if group.score is None else f"{group.score:.2f}",
            )
            for group in groups
        ],
        words=(1,),
    )


def _conversations(rows: pl.LazyFrame, basis: Basis) -> Iterator[str]:
    found = analysis.conversations(rows, basis)
    if not found:
        return
    yield html.heading("Conversations")
    yield html.table(
        ["conversation", "turns", "times held", "J", "output tokens", "last turn / first"],
        [
            (
                each.name,
                str(each.turns),
                f"{each.runs:,}",
                number(each.joules),
                number(each.output_tokens),
                _maybe(each.last_over_first),
            )
            for each in found
        ],
    )
    yield html.paragraph("Means over all runs; those that take most first.", "soft")


def _correlations(found: analysis.Correlations) -> Iterator[str]:
    if len(found.labels) < 2:
        return
    yield html.heading("What goes with what")
    for name, values in (
        ("Spearman: by rank, whatever the shape", found.spearman),
        ("Pearson: along a line", found.pearson),
    ):
        yield html.paragraph(f"{name}; {found.rows:,} calls.", "soft")
        yield html.matrix(found.labels, values.tolist())
    if not {"ARI", "LIX"}.isdisjoint(found.labels):
        yield html.paragraph(
            "ARI (automated readability index), LIX: how hard a prompt is to read, by the lengths of its words and "
            "sentences.",
            "soft",
        )


def _balance(counters: Sequence[Metered], ranked: Sequence[Deployment]) -> Iterator[str]:
    if not counters:
        return
    yield html.heading("Idle and loading")
    reasons = sorted({reason for each in counters for reason in each.unattributed_joules})
    yield html.table(
        ["counter", "idle, W", "s", "metered, J", "calls, J", *(f"{reason}, J" for reason in reasons)],
        [
            (
                each.label,
                _maybe(each.idle_watts),
                number(each.seconds),
                number(each.metered_joules, 4),
                number(each.attributed_joules, 4),
                *(number(each.unattributed_joules.get(reason, 0.0), 4) for reason in reasons),
            )
            for each in counters
        ],
    )
    metered_joules = sum(each.metered_joules for each in counters)
    attributed_joules = sum(each.attributed_joules for each in counters)
    if metered_joules > 0:
        yield html.paragraph(
            f"Of what the meters counted in that time {attributed_joules / metered_joules:.0%} went to calls, "
            "warm-up included, with their part of the idle power. idle: drawn while no call was at work. "
            "other: above idle, by other programs."
        )
    loads = [(each.name, number(each.load_joules)) for each in ranked if each.load_joules]
    if loads:
        yield html.table(["deployment", "loading the model, J in all"], loads)


def _quality(found: analysis.Outliers, overview: analysis.Overview) -> Iterator[str]:
    yield html.heading("Quality and outliers")
    far = {(quality, reason): out for quality, reason, out, _ in found.by_quality}
    yield html.table(
        ["quality", "reason", "calls", "outliers among them"],
        [
            (quality, reason, f"{calls:,}", f"{far.get((quality, reason), 0):,}")
            for quality, reason, calls in overview.qualities
        ],
        words=(1,),
    )
    yield html.paragraph(
        f"{found.count:,} of {found.of:,} calls are more than six robust standard deviations from what their tokens "
        "suggest, relative to that."
    )
    if found.worst:
        yield html.table(
            ["deployment", "prompt", "output tokens", "J", "by its tokens, J", "quality"],
            [
                (name, prompt, f"{tokens:,}", number(joules), number(expected), f"{quality} {reason}".strip())
                for name, prompt, tokens, joules, expected, quality, reason in found.worst
            ],
            words=(1, 5),
        )

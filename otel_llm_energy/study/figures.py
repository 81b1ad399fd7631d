"""The figures of a report: each a drawing with its legend and what it shows, as HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import polars as pl

from otel_llm_energy import conventions
from otel_llm_energy.study import html
from otel_llm_energy.study.analysis import TokenLine
from otel_llm_energy.study.charts import COLOURS, Axis, Bar, Plot, bars, mark, number
from otel_llm_energy.study.deployments import Deployment, Group, pareto
from otel_llm_energy.study.intervals import CONFIDENCE, Interval

_DRAWN_TYPES: Final = 24
_CURVE_POINTS: Final = 25


def energy_bars(shown: Sequence[Deployment]) -> tuple[str, str]:
    """Joules per output token and per call of each deployment, with their intervals."""
    per_token = [
        _interval_bar(each.name, each.per_token, index)
        for index, each in enumerate(shown)
        if each.per_token is not None
    ]
    per_call = [_interval_bar(each.name, each.per_call, index) for index, each in enumerate(shown)]
    return (
        html.figure(
            bars("Joules per output token", "J per output token", per_token), "Sum of joules over sum of tokens."
        ),
        html.figure(
            bars("Joules per call", "J per call", per_call),
            "Mean of the calls. Where answers are short, compare by this and not by token.",
        ),
    )


def score_against_energy(ranked: Sequence[Deployment]) -> str:
    """A mark for each deployment that has a score, those joined that nobody beats."""
    scored = [each for each in ranked if each.score is not None]
    front = pareto(ranked)
    plot = Plot(
        Axis.over("J per call", [each.per_call.value for each in scored]),
        Axis("mean score", 0.0, 1.08),
        "Score against energy",
    )
    plot.line([(each.per_call.value, each.score.value) for each in front if each.score], "#8a8a8a", dashes="4 3")
    for index, each in enumerate(ranked):
        if each.score is not None:
            plot.mark(each.per_call.value, each.score.value, index, size=5.5, opacity=1.0, tip=each.name)
    return html.figure(
        plot.svg(),
        "Joined: no other is both cheaper and better than these. From the left, the first that is good enough.",
        _legend([each.name for each in scored], [ranked.index(each) for each in scored]),
    )


def energy_against_tokens(drawn: pl.DataFrame, lines: Mapping[str, TokenLine], shown: Sequence[Deployment]) -> str:
    """Some calls as `otel_llm_energy.study.analysis.points` gives them, and the line of each deployment."""
    order = {each.name: index for index, each in enumerate(shown)}
    plot = Plot(
        Axis.over("output tokens", drawn["output_tokens"].to_list()),
        Axis.over("J per call", drawn["energy"].to_list()),
        "Energy against output tokens",
    )
    for name, tokens, joules in drawn.select("deployment", "output_tokens", "energy").iter_rows():
        if name in order:
            plot.mark(tokens, joules, order[name], size=2.2, opacity=0.45)
    for name, line in lines.items():
        if name in order:
            _draw_line(plot, line, COLOURS[order[name] % len(COLOURS)])
    return html.figure(
        plot.svg(),
        f"{drawn.height:,} calls; least squares over all, and the {CONFIDENCE:.0%} interval of one call.",
        _legend([each.name for each in shown], range(len(shown))),
    )


def phases(shown: Sequence[Deployment]) -> str:
    """Joules of prefill and decode, of the deployments where they are known."""
    rows = [
        Bar(each.name, each.phases, words=f"{number(each.phases[0])} + {number(each.phases[1])}")
        for each in shown
        if each.phases
    ]
    return html.figure(
        bars("Joules of prefill and decode", "J per call, idle power included", rows),
        "Of the calls whose readings part the phases; with the idle power of that time.",
        _legend(["prefill", "decode"], [0, 1], squares=True),
    )


def power(row: Mapping[str, Any]) -> str:
    """Of one call as `otel_llm_energy.study.analysis.longest_calls_with_power` gives it, its phases shaded."""
    ends, watts = row["power_seconds"], row["power_watts"]
    plot = Plot(
        Axis.over("s after the call's start", [*ends, 0.0, row["seconds"]], from_zero=False),
        Axis.over("W, all counters", watts),
        "Power over time of a call",
    )
    decode, prefill = row[conventions.SERVER_DECODE_SECONDS], row[conventions.SERVER_PREFILL_SECONDS]
    until = row["seconds"]
    for length, series, name in ((decode, 1, "decode"), (prefill, 0, "prefill")):
        if length:
            since = until - length
            top = plot.y.high
            plot.area([(since, 0.0), (until, 0.0)], [(since, top), (until, top)], COLOURS[series])
            if length > 0.12 * (plot.x.high - plot.x.low):
                plot.text((since + until) / 2, 0.0, name, dy=-8)
            until = since
    steps = [
        point
        for index in range(1, len(ends))
        for point in ((ends[index - 1], watts[index]), (ends[index], watts[index]))
    ]
    plot.line(steps, "#1b1b1b", width=1.4)
    return html.figure(
        plot.svg(), f"{row['deployment']}, prompt {row['prompt_id']}. Mean power between two readings of the meter."
    )


def types(groups: Sequence[Group], shown: Sequence[Deployment]) -> str:
    """Joules per call of each type of task, in the colours of the deployments."""
    order = {each.name: index for index, each in enumerate(shown)}
    several = len({group.deployment for group in groups}) > 1
    known = [group for group in groups if group.deployment in order][:_DRAWN_TYPES]
    rows = [
        _interval_bar(
            f"{group.name}, {group.deployment}" if several else group.name, group.per_call, order[group.deployment]
        )
        for group in known
    ]
    return html.figure(bars("Joules per call by type of task", "J per call", rows), "Mean of the calls of that type.")


def _interval_bar(name: str, joules: Interval, series: int) -> Bar:
    return Bar(name, [joules.value], joules.low, joules.high, number(joules.value), series)


def _draw_line(plot: Plot, line: TokenLine, colour: str) -> None:
    x = np.linspace(line.least_x, line.most_x, _CURVE_POINTS)
    y, half = line.at(x), line.half_width(x, single=True)
    low = np.clip(y - half, plot.y.low, plot.y.high)
    high = np.clip(y + half, plot.y.low, plot.y.high)
    plot.area(list(zip(x, low, strict=True)), list(zip(x, high, strict=True)), colour)
    plot.line(list(zip(x, np.clip(y, plot.y.low, plot.y.high), strict=True)), colour)


def _legend(names: Sequence[str], series: Sequence[int] | range, *, squares: bool = False) -> str:
    def sign(index: int) -> str:
        if squares:
            return f'<rect x="2" y="2" width="10" height="10" fill="{COLOURS[index]}" opacity="0.8"/>'
        return mark(7, 7, index, 4)

    return html.legend((sign(index), name) for name, index in zip(names, series, strict=True))

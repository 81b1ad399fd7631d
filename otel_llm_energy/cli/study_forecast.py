"""``study forecast``: learn energy from what was collected, forecast a dataset's, and say how far off that is."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from otel_llm_energy.cli import CommandError
from otel_llm_energy.cli.progress import say
from otel_llm_energy.cli.study import distinct_folders, study_errors

if TYPE_CHECKING:
    from otel_llm_energy.study.forecast import Forecast, Stage, When
    from otel_llm_energy.study.prediction import Predicted, Total

_SHOWN_PROMPTS = 20
_WORDS = 48


def run_fit(asked: argparse.Namespace) -> int:
    """Learn, and write the model's file; 0. Raises `CommandError`."""
    with study_errors():
        from otel_llm_energy.study.columns import short_rows
        from otel_llm_energy.study.forecast import fit, training_rows
        from otel_llm_energy.study.forecast_file import save
        from otel_llm_energy.study.journal import replace_file

        rows = training_rows(short_rows(distinct_folders(asked)), asked.target)
        forecast = fit(rows, asked.target)
        content = save(forecast)
        try:
            replace_file(Path(asked.out), content)
        except OSError as error:
            raise CommandError(f"{asked.out}: cannot be written: {error.strerror}.") from error
    print(f"{asked.out}: {len(content) / 1e3:.0f} kB, from {forecast.rows:,} calls of {forecast.prompts:,} prompts.")
    print(f"Before the call, {_interval(forecast.before)} times the forecast.")
    if forecast.after is not None:
        print(f"After it, with the tokens, {_interval(forecast.after)} times.")
    return 0


def _interval(stage: Stage) -> str:
    """Of 90 % of the calls, or of as many as the prompts that it was learned from can tell of."""
    level = min(0.9, stage.most_level)
    low, high = stage.interval_factors(level)
    return f"{100 * level:.0f} % of calls take {low:.2f} to {high:.2f}"


def run_evaluate(asked: argparse.Namespace) -> int:
    """Print the errors on calls that were not learned from; 0. Raises `CommandError`."""
    with study_errors():
        from otel_llm_energy.study.columns import short_rows
        from otel_llm_energy.study.evaluation import evaluate, table
        from otel_llm_energy.study.forecast import training_rows

        rows = training_rows(short_rows(distinct_folders(asked)), asked.target)
        errors = evaluate(rows, asked.target)
    if asked.json:
        print(json.dumps([asdict(each) for each in errors], indent=1, allow_nan=False))
        return 0
    print(table(errors))
    print("prompts: a quarter of the prompts was held out, with all their repeats on all deployments.")
    if any(each.split != "prompts" for each in errors):
        print(
            "A deployment's name: it was held out whole. Where that is far off, collect some calls before you forecast."
        )
    return 0


def run_predict(asked: argparse.Namespace) -> int:
    """Print what prompts would take; 0. Raises `CommandError`."""
    with study_errors():
        from otel_llm_energy.study.forecast_file import load
        from otel_llm_energy.study.prediction import predict, rows_to_predict, totals
        from otel_llm_energy.study.prompts import read_prompts

        forecast = load(Path(asked.model_file))
        deployments = _deployments(forecast, asked)
        prompts = read_prompts(asked.prompts).prompts
        when: When = "before" if asked.output_tokens is None else "after"
        rows = rows_to_predict(forecast, prompts, deployments, asked.max_tokens, asked.output_tokens)
        predicted = predict(forecast, rows, when, asked.level)
        sums = list(totals(forecast, predicted, when, asked.level))
        too_long = sum(len(prompt.text) > forecast.longest_characters for prompt in prompts)
        # Where the answers' lengths are known their limit hardly matters, and no line goes through it.
        strange = _limits_not_learned(forecast, deployments, asked.max_tokens) if when == "before" else []
        most_level = forecast.stage(when).most_level
    if asked.level > most_level:
        say(f"So few prompts were learned from that intervals hold {most_level:.1%} of calls, not {_percent(asked)}.")
    if too_long:
        say(f"{too_long} prompts are longer than any that was learned from: their intervals do not hold.")
    if strange:
        say(
            f"Calls with a limit of {asked.max_tokens} tokens are unlike any that was learned from"
            f" ({', '.join(strange)}): their intervals do not hold. --max-tokens sets another limit."
        )
    if asked.json:
        both = {"prompts": [asdict(each) for each in predicted], "totals": [asdict(each) for each in sums]}
        print(json.dumps({"target": forecast.target, "level": asked.level, **both}, indent=1))
    else:
        _show(predicted, sums, {prompt.id: prompt.text for prompt in prompts})
        print(f"Intervals: {_percent(asked)}, for calls like those that were learned from.")
    return 0


def _percent(asked: argparse.Namespace) -> str:
    return f"{100 * asked.level:.6g}%"


def _deployments(forecast: Forecast, asked: argparse.Namespace) -> Sequence[str]:
    """Those that were collected and that the options leave; no interval is known of any other."""
    left = [
        name
        for name, facts in forecast.deployments.items()
        if (asked.model is None or facts.get("model") == asked.model)
        and (asked.server is None or name.removesuffix(f" {facts.get('model')}") == asked.server)
    ]
    if not left:
        known = ", ".join(forecast.deployments)
        raise CommandError(f"No such deployment was collected. There are (server, then model): {known}.")
    return left


def _limits_not_learned(forecast: Forecast, deployments: Sequence[str], max_tokens: int) -> list[str]:
    """For each deployment that was collected with other limits, its least and greatest."""
    ranges = {name: forecast.limits[name] for name in deployments if name in forecast.limits}
    return [
        f"{name}: {low}" if low == high else f"{name}: {low} to {high}"
        for name, (low, high) in ranges.items()
        if not low <= max_tokens <= high
    ]


def _show(predicted: Sequence[Predicted], sums: Sequence[Total], texts: dict[str, str]) -> None:
    from otel_llm_energy.study.charts import number

    def interval(low: float, high: float) -> str:
        return f"{number(low)}..{number(high)}"

    for each in predicted[:_SHOWN_PROMPTS]:
        text = " ".join(texts[each.prompt_id].split())
        words = text if len(text) <= _WORDS else text[: _WORDS - 3] + "..."
        print(f"{number(each.joules):>9} J  {interval(each.low, each.high):<16} {words:<{_WORDS}}  {each.deployment}")
    if len(predicted) > _SHOWN_PROMPTS:
        print(f"... and {len(predicted) - _SHOWN_PROMPTS} more; --json has all.")
    for total in sums:
        print(
            f"{total.calls:,} calls: {number(total.joules, 4)} J  {interval(total.low, total.high)}  {total.deployment}"
        )

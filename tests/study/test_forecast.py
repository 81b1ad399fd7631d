"""Forecasts are as good as they say on data of known physics, and say so where they are not."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from otel_llm_energy.cli import main
from otel_llm_energy.study import StudyError
from otel_llm_energy.study.columns import short_rows
from otel_llm_energy.study.evaluation import Error, evaluate, table
from otel_llm_energy.study.forecast import Line, Stage, fit, folds, training_rows
from otel_llm_energy.study.forecast_file import load, save
from otel_llm_energy.study.prompts import read_prompts
from tests.study.physics import dataset, write


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """5,000 calls of 400 prompts to three deployments; the meter's noise is 5 %."""
    return write(tmp_path_factory.mktemp("study") / "known", dataset(5_000, prompts=400, noise=0.05))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,500 calls of 150 prompts."""
    return write(tmp_path_factory.mktemp("study") / "small", dataset(1_500, prompts=150))


@pytest.fixture(scope="module")
def rows(folder: Path) -> pl.DataFrame:
    return training_rows(short_rows([folder]), "joules")


@pytest.fixture(scope="module")
def errors(rows: pl.DataFrame) -> list[Error]:
    return evaluate(rows, "joules")


def _of(errors: list[Error], when: str, method: str, split: str = "prompts", kind: str = "") -> Error:
    (found,) = [e for e in errors if (e.when, e.method, e.split, e.type) == (when, method, split, kind)]
    return found


def test_unseen_prompts_are_forecast_nearly_exactly_when_their_lengths_are_known(errors: list[Error]) -> None:
    """R2 of at least 0.99 on prompts that were not learned from, and 90 % intervals that hold 88 to 93 %."""
    print(table(errors))  # noqa: T201 - with -s, for docs/measurements.md
    after = _of(errors, "after", "boosted trees")
    assert after.r2 >= 0.99
    assert after.coverage is not None
    assert 0.88 <= after.coverage <= 0.93


@pytest.mark.parametrize("calls", [19, 24, 100])
def test_intervals_hold_what_they_say_when_few_calls_were_seen(calls: int) -> None:
    """Calls that differ from their forecast as dice fall; the next is held as often as it is said to be."""
    drawn = np.random.default_rng(1).random((2_000, calls + 1))
    held = []
    for *seen, following in drawn:
        factors = tuple(np.quantile(seen, np.linspace(0, 1, 401)).tolist())
        low, high = Stage("before", (), {}, Line("before", {}, ((0.0,), 0.0)), "", factors, calls).interval_factors(0.9)
        held.append(low <= following <= high)
    assert np.mean(held) == pytest.approx(0.9, abs=0.02)


def test_command_names_the_package_when_a_library_of_the_system_is_missing(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """LightGBM loads OpenMP's, which slim images lack. (LightGBM is played here.)"""
    said = "libgomp.so.1: cannot open shared object file: No such file or directory"
    (tmp_path / "lightgbm.py").write_text(f"raise OSError({said!r})")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "lightgbm", raising=False)
    assert main(["study", "forecast", "fit", str(small), "--out", str(tmp_path / "model")]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        "otel-llm-energy: libgomp.so.1 missing, a library of the system. "
        "Install it; on Debian and Ubuntu: apt install libgomp1"
    )


def test_command_says_what_intervals_hold_when_too_few_calls_were_seen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 12 calls none can say where 90 % of all are: 11 of 13 are between the least and the greatest."""
    frame, model = dataset(100, prompts=12).unique("prompt_sha256"), str(tmp_path / "m.json")
    assert main(["study", "forecast", "fit", str(write(tmp_path / "s", frame)), "--out", model]) == 0
    assert "Before the call, 85 % of calls take " in capsys.readouterr().out
    assert main(["study", "forecast", "predict", model, "starter", "--level", "0.995"]) == 0
    said = capsys.readouterr()
    assert "intervals hold 84.6% of calls, not 99.5%." in said.err
    assert "Intervals: 99.5%" in said.out


def test_repeats_are_no_more_evidence_when_intervals_are_said_to_hold(tmp_path: Path) -> None:
    """Of 12 prompts, each asked some 20 times, none says where 99 % of all are: prompts differ, repeats hardly."""
    forecast = fit(training_rows(short_rows([write(tmp_path / "s", dataset(240, prompts=12))]), "joules"))
    for stage in (forecast.before, forecast.after):
        assert stage is not None
        assert stage.most_level == 11 / 13
        assert stage.interval_factors(0.9) == (min(stage.factors), max(stage.factors))


def test_forecast_beats_the_baselines_when_only_the_prompt_is_known(errors: list[Error]) -> None:
    """Before the call: better than the model's mean and the line in tokens; its intervals are wider and hold, too."""
    before = _of(errors, "before", "boosted trees")
    assert before.r2 > _of(errors, "before", "linear in tokens").r2 + 0.05
    assert before.r2 > _of(errors, "before", "mean of the model").r2 + 0.05
    assert before.coverage is not None
    assert 0.86 <= before.coverage <= 0.95
    after = _of(errors, "after", "boosted trees")
    assert before.width_part is not None
    assert after.width_part is not None
    assert before.width_part > after.width_part


def test_errors_are_told_by_type_and_by_deployment_when_there_are_several(errors: list[Error]) -> None:
    """Each type of task, and each deployment forecast from the others; the table shows all with their baselines."""
    assert {each.type for each in errors} == {"", "fact", "explain", "story", "code"}
    assert {each.split for each in errors} == {"prompts", "box small", "box large", "gpu large"}
    assert table(errors).count("mean of the model") == 8


def test_intervals_hold_on_average_when_the_data_are_drawn_again(tmp_path: Path) -> None:
    """Over six draws, 90 % intervals after the call hold 88 to 93 % of 6 x 500 unseen calls."""
    found = []
    for seed in range(6):
        study = write(tmp_path / str(seed), dataset(2_000, prompts=150, noise=0.05, seed=seed + 50))
        drawn = training_rows(short_rows([study]), "joules").filter(pl.col("deployment") == "box small")
        found.append(_of(evaluate(drawn, "joules", seed), "after", "boosted trees").coverage)
    assert 0.88 <= np.mean([each for each in found if each is not None]) <= 0.93


def test_calls_of_one_prompt_are_never_on_both_sides_when_data_are_split(rows: pl.DataFrame) -> None:
    """Repeats, and the same prompt asked of another model, would leak the answer's length."""
    fold = pl.Series("fold", folds(rows, 4, 0))
    sides = rows.select("prompt_sha256").with_columns(fold).group_by("prompt_sha256").agg(pl.col("fold").n_unique())
    assert sides["fold"].to_list() == [1] * 400
    assert sorted(set(fold.to_list())) == [0, 1, 2, 3]


def test_nothing_is_claimed_when_energy_does_not_depend_on_anything(tmp_path: Path) -> None:
    """Energies are shuffled among calls: the forecast is no better than the mean, and its intervals still hold."""
    frame = dataset(3_000, prompts=300)
    shuffled = frame["llm.energy.joules"].shuffle(seed=1)
    study = write(tmp_path / "s", frame.with_columns(shuffled))
    errors = evaluate(training_rows(short_rows([study]), "joules"), "joules")
    after = _of(errors, "after", "boosted trees")
    assert after.r2 < 0.05
    assert after.coverage is not None
    assert 0.85 <= after.coverage <= 0.95


def test_forecasts_are_the_same_when_a_model_is_saved_and_loaded(rows: pl.DataFrame, tmp_path: Path) -> None:
    """JSON that is smaller than a megabyte, in which nothing is pickled."""
    forecast = fit(rows)
    path = tmp_path / "model.json"
    path.write_bytes(save(forecast))
    assert path.stat().st_size < 1_000_000
    assert json.loads(path.read_bytes())["version"] == 1
    again = load(path)
    assert again.after is not None
    assert forecast.after is not None
    np.testing.assert_array_equal(again.after.predict(rows), forecast.after.predict(rows))
    np.testing.assert_array_equal(again.before.predict(rows), forecast.before.predict(rows))
    assert again.before.interval_factors(0.9) == forecast.before.interval_factors(0.9)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not a forecast model"),
        ("[]", "not a forecast model"),
        ('{"format": "otel-llm-energy forecast", "version": 99}', "version 99; this program reads 1. Fit it anew"),
        ('{"format": "otel-llm-energy forecast", "version": 1}', "a broken forecast model"),
    ],
)
def test_error_says_what_is_wrong_when_a_model_file_is_none(tmp_path: Path, content: str, words: str) -> None:
    """Old models are told from broken ones."""
    (tmp_path / "m.json").write_text(content)
    with pytest.raises(StudyError, match=words):
        load(tmp_path / "m.json")


def test_error_says_how_many_prompts_are_needed_when_there_are_too_few(tmp_path: Path) -> None:
    """Rather than a forecast that nothing supports."""
    study = write(tmp_path / "s", dataset(100, prompts=5))
    with pytest.raises(StudyError, match=r"5 prompts with energy are too few.*at least 10"):
        fit(training_rows(short_rows([study]), "joules"))


def test_error_says_how_many_prompts_there_are_when_a_quarter_is_held_out(tmp_path: Path) -> None:
    """Enough for a forecast, not for its error: who has twelve is not told of the nine that are left, as if all."""
    rows = training_rows(short_rows([write(tmp_path / "s", dataset(100, prompts=12))]), "joules")
    assert fit(rows)
    with pytest.raises(StudyError, match=r"^12 prompts .* a quarter is held out, and what is left \(9\).* at least 10"):
        evaluate(rows, "joules")


def test_forecast_stops_before_the_call_when_rows_have_no_tokens(tmp_path: Path) -> None:
    """Servers that report none: the rows still say what a prompt takes."""
    frame = dataset(500, prompts=50).with_columns(pl.lit(None, pl.Int64).alias("gen_ai.usage.output_tokens"))
    forecast = fit(training_rows(short_rows([write(tmp_path / "s", frame)]), "joules"))
    assert forecast.after is None
    with pytest.raises(StudyError, match="no token counts"):
        forecast.stage("after")


def test_prompts_are_forecast_for_each_deployment_when_they_were_never_asked(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Learned, stored, loaded and used from the command line; the sum's interval is narrower than the calls'."""
    model = str(tmp_path / "model.json")
    assert main(["study", "forecast", "fit", str(small), "--out", model]) == 0
    (tmp_path / "p.csv").write_text("prompt,type\nTell a story.,story\nWhy?,fact\n")
    capsys.readouterr()
    assert main(["study", "forecast", "predict", model, str(tmp_path / "p.csv"), "--max-tokens", "512", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    joules = {(each["deployment"], each["prompt_id"]): each["joules"] for each in found["prompts"]}
    assert len(joules) == 6
    assert all(each["low"] < each["joules"] < each["high"] for each in found["prompts"])
    assert [each["deployment"] for each in found["totals"]] == ["box small", "gpu large", "box large"]
    story, fact = (each.id for each in read_prompts(str(tmp_path / "p.csv")).prompts)
    assert all(joules[name, story] > 1.4 * joules[name, fact] for name in ("box small", "gpu large"))
    words = ["study", "forecast", "predict", model, str(tmp_path / "p.csv"), "--model", "nothing"]
    assert main(words) == 1
    assert "box small" in capsys.readouterr().err
    assert main(["study", "forecast", "predict", model, str(tmp_path / "p.csv"), "--output-tokens", "100"]) == 0
    assert "2 calls:" in capsys.readouterr().out


def test_calls_count_once_when_their_folder_is_named_twice(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a pattern and by its name, as ``study-* study-a`` does."""
    words = ["study", "forecast", "fit", str(small), str(small / ".." / small.name), "--out", str(tmp_path / "m.json")]
    assert main(words) == 0
    assert f"from {training_rows(short_rows([small]), 'joules').height:,} calls" in capsys.readouterr().out


def test_forecast_is_shown_when_the_terminal_lacks_a_character(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a prompt's in a locale of Latin-1: a question mark stands for it."""
    model, prompts = str(tmp_path / "model.json"), tmp_path / "p.txt"
    prompts.write_text("Où → là?\n", encoding="utf-8")
    assert main(["study", "forecast", "fit", str(small), "--out", model]) == 0
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="latin-1"))
    assert main(["study", "forecast", "predict", model, str(prompts)]) == 0
    assert "Où ? là?".encode("latin-1") in shown.getvalue()


def test_command_prints_the_errors_when_it_is_asked_to_evaluate(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The forecast beside its baselines."""
    assert main(["study", "forecast", "evaluate", str(small), "--above-idle"]) == 0
    said = capsys.readouterr().out
    for words in ("mean of the model", "linear in tokens", "boosted trees", "90 % holds"):
        assert words in said


def test_errors_are_json_when_all_calls_took_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where nothing varies no part of it is explained: R2 is not known, and JSON has no NaN."""
    frame = dataset(200, prompts=20).with_columns(pl.lit(5.0).alias("llm.energy.joules"))
    assert main(["study", "forecast", "evaluate", str(write(tmp_path / "s", frame)), "--json"]) == 0
    errors = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert {each["r2"] for each in errors} == {None}


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("--max-tokens", "-5", "a whole number from 1"),
        ("--max-tokens", "0", "a whole number from 1"),
        ("--output-tokens", "-5", "a whole number from 0"),
        ("--level", "1", "a number between 0 and 1"),
        ("--level", "nan", "a number between 0 and 1"),
        ("--level", "90%", "a number between 0 and 1"),
    ],
)
def test_error_says_what_is_allowed_when_an_option_is_out_of_range(
    option: str, value: str, allowed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """An answer of fewer than no tokens would have energy below that of none."""
    with pytest.raises(SystemExit) as caught:
        main(["study", "forecast", "predict", "m.json", "p.txt", option, value])
    assert caught.value.code == 2
    assert f"argument {option}: {allowed}\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "warned"),
    [
        ([], True),
        (["--max-tokens", "32"], False),
        (["--max-tokens", "16", "--model", "small"], False),
        (["--max-tokens", "16", "--model", "large"], True),
        (["--output-tokens", "30"], False),
    ],
)
def test_command_warns_when_the_limit_is_none_that_was_learned_from(
    options: list[str], warned: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One deployment was collected with 8 to 64 tokens, the others with 32: neither says anything of 256."""
    limit = pl.when(pl.col("model") == "small").then(pl.when(pl.col("max_tokens") == 64).then(8).otherwise(64))
    frame = dataset(600, prompts=40).with_columns(limit.otherwise(32).cast(pl.Int64).alias("max_tokens"))
    model, prompts = tmp_path / "m.json", tmp_path / "p.txt"
    model.write_bytes(save(fit(training_rows(short_rows([write(tmp_path / "s", frame)]), "joules"))))
    prompts.write_text("Why?\nHow?\n")
    assert main(["study", "forecast", "predict", str(model), str(prompts), *options]) == 0
    said = capsys.readouterr().err
    assert said.count("unlike any that was learned from") == warned
    if warned:
        assert "box large: 32" in said


def test_model_is_read_when_it_does_not_say_which_limits_it_was_learned_with(
    rows: pl.DataFrame, tmp_path: Path
) -> None:
    """As one of an earlier version."""
    content = json.loads(save(fit(rows)))
    assert content.pop("limits") == {"box large": [64, 512], "box small": [64, 512], "gpu large": [64, 512]}
    (tmp_path / "m.json").write_text(json.dumps(content))
    assert load(tmp_path / "m.json").limits == {}

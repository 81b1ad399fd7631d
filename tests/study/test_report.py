"""The report's figures are right where the truth is known, and its page needs nothing but itself."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy import stats

from otel_llm_energy.cli import main
from otel_llm_energy.study import StudyError, analysis, charts, deployments, intervals, tables
from otel_llm_energy.study.columns import short_rows
from otel_llm_energy.study.report import report
from tests.study.physics import MACHINES, Machine, dataset, write

_LETTER_WIDTH = 8.5  # on average, in a drawing's units, at a phone's size of letters


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4,000 calls of three deployments whose physics is known."""
    return write(tmp_path_factory.mktemp("study") / "known", dataset(4_000, prompts=200))


@pytest.fixture(scope="module")
def rows(study: Path) -> pl.LazyFrame:
    return short_rows([study])


def _usable(study: Path, deployment: str) -> pl.DataFrame:
    return pl.read_parquet(study / "calls.parquet").filter(pl.col("deployment") == deployment)


def test_joules_per_token_are_sum_over_sum_when_they_are_compared(study: Path, rows: pl.LazyFrame) -> None:
    """Not the mean of the calls' ratios, which short answers would rule; above idle; and inside their interval."""
    for each in deployments.deployments(rows, "above_idle_joules"):
        mine = _usable(study, each.name)
        truth = mine["llm.energy.above_idle_joules"].sum() / mine["gen_ai.usage.output_tokens"].sum()
        assert each.per_token is not None
        assert each.per_token.value == pytest.approx(truth)
        assert each.per_token.low is not None
        assert each.per_token.high is not None
        assert each.per_token.low < truth < each.per_token.high


@pytest.mark.parametrize(
    "lacking",
    [
        ("gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens"),
        ("llm.energy.joules",),
        ("llm.energy.prefill_joules", "llm.energy.decode_joules"),
    ],
    ids=["tokens", "joules", "phases"],
)
def test_joules_per_token_are_of_calls_that_have_both_when_a_call_lacks_one(
    tmp_path: Path, lacking: tuple[str, ...]
) -> None:
    """Two calls of 10 J and 10 tokens, of which one lacks its tokens, or its joules: a token takes 1 J all the same."""
    energies = ("joules", "above_idle_joules", "prefill_joules", "decode_joules")
    tokens = ("gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens")
    frame = dataset(2, prompts=2, machines=MACHINES[:1]).with_columns(
        *(pl.lit(10.0).alias(f"llm.energy.{name}") for name in energies), *(pl.lit(10).alias(name) for name in tokens)
    )
    first_call = pl.int_range(pl.len()) == 0
    frame = frame.with_columns(pl.when(first_call).then(name).alias(name) for name in lacking)
    (found,) = deployments.deployments(short_rows([write(tmp_path / "s", frame)]), "above_idle_joules")
    assert found.per_token is not None
    assert found.per_token.value == 1.0
    assert (found.whole_per_token, found.per_input_token, found.per_decode_token) == (1.0, 1.0, 1.0)


def test_interval_is_as_wide_as_prompts_make_it_when_each_was_repeated() -> None:
    """A hundred repeats of ten prompts are ten pieces of evidence: repeating each a hundred times narrows nothing."""
    drawn = np.random.default_rng(1)
    joules, tokens = drawn.lognormal(3, 0.5, 10), np.full(10, 10.0)
    once = intervals.ratio_interval(joules, tokens)
    often = intervals.ratio_interval(joules * 100, tokens * 100)
    assert once is not None
    assert often is not None
    assert (often.low, often.high) == pytest.approx((once.low, once.high))


def test_interval_holds_the_truth_about_as_often_as_it_says_when_it_is_drawn_again() -> None:
    """Of 200 draws of 60 prompts, 95 % intervals of the ratio hold the true one in 90 to 99 %."""
    drawn, hits = np.random.default_rng(3), 0
    for _ in range(200):
        tokens = drawn.lognormal(4, 0.6, 60)
        joules = 2.0 * tokens * drawn.normal(1, 0.2, 60)
        interval = intervals.ratio_interval(joules, tokens)
        assert interval is not None
        assert interval.low is not None
        assert interval.high is not None
        hits += interval.low <= 2.0 <= interval.high
    assert 180 <= hits <= 198


def test_difference_is_no_chance_when_machines_differ_and_may_be_when_they_do_not(tmp_path: Path) -> None:
    """Three deployments: one is twice as hungry as the first, one is its twin."""
    first, twin = Machine("a m", "m", 1e9), Machine("b m", "m", 1e9)
    hungry = Machine("c m", "m", 1e9, prefill_watts=150.0, decode_watts=110.0)
    folder = write(tmp_path / "s", dataset(3_000, prompts=100, machines=(first, twin, hungry), noise=0.1))
    rows = short_rows([folder])
    ranked = deployments.deployments(rows, "above_idle_joules")
    found = {one.name: one for one in deployments.comparisons(rows, "above_idle_joules", ranked)}
    far = found["c m"]
    near = found.get("a m") or found["b m"]
    assert far.ratio is not None
    assert far.ratio.value == pytest.approx(2.0, rel=0.15)
    assert far.p_value is not None
    assert far.p_value < 0.001
    assert near.ratio is not None
    assert near.ratio.low is not None
    assert near.ratio.high is not None
    assert near.ratio.low <= 1.05
    assert near.p_value is not None
    assert near.p_value > 0.001


def test_line_finds_watts_times_seconds_when_only_output_varies(tmp_path: Path) -> None:
    """The slope is decode power times the time of a token: 55 W x 11.5 ms."""
    machine = Machine("a m", "m", 1e9, prefill_seconds=0.0)
    rows = short_rows([write(tmp_path / "s", dataset(2_000, prompts=100, machines=(machine,), noise=0.01))])
    line = analysis.lines(rows, "above_idle_joules")["a m"]
    assert line.slope == pytest.approx(55 * 0.0115, rel=0.01)
    assert line.intercept == pytest.approx(75 * 0.02, abs=1.0)
    assert line.r2 > 0.99


def test_interval_of_one_call_is_that_of_least_squares_when_it_is_worked_out_otherwise(rows: pl.LazyFrame) -> None:
    """SciPy's own regression gives the same line."""
    name = MACHINES[0].name
    line = analysis.lines(rows, "above_idle_joules")[name]
    mine = tables.usable(rows, "above_idle_joules").filter(pl.col("deployment") == name).collect()
    other = stats.linregress(mine["output_tokens"].to_numpy(), mine["energy"].to_numpy())
    assert (line.slope, line.intercept) == pytest.approx((other.slope, other.intercept))
    assert line.r2 == pytest.approx(other.rvalue**2)
    assert line.sigma / np.sqrt(line.spread_x) == pytest.approx(other.stderr)
    sigmas = stats.t.ppf(0.975, line.rows - 2) * line.sigma
    middle = np.array([line.mean_x])
    assert line.half_width(middle, single=False)[0] == pytest.approx(sigmas * np.sqrt(1 / line.rows))
    assert line.half_width(middle, single=True)[0] == pytest.approx(sigmas * np.sqrt(1 + 1 / line.rows))


def test_correlations_are_those_of_scipy_when_rows_lack_a_value(rows: pl.LazyFrame) -> None:
    """Each pair over the rows that have both: scores are there only for some."""
    found = analysis.correlations(rows, "above_idle_joules")
    table = tables.usable(rows, "above_idle_joules").select("joules", "score").drop_nulls().collect()
    i, j = found.labels.index("energy"), found.labels.index("score")
    joules, score = table["joules"].to_numpy(), table["score"].to_numpy()
    assert found.pearson[i, j] == pytest.approx(stats.pearsonr(joules, score).statistic)
    assert found.spearman[i, j] == pytest.approx(stats.spearmanr(joules, score).statistic)


def test_outliers_are_laid_at_the_door_of_their_quality_when_degraded_calls_are_off(tmp_path: Path) -> None:
    """Ten degraded calls were billed three times too much; the table says how many of that quality are outliers."""
    frame = dataset(2_000, prompts=100, machines=MACHINES[:1], noise=0.01).with_columns(
        pl.lit("measured").alias("llm.energy.quality")
    )
    bad = pl.int_range(pl.len()) % 200 == 0
    frame = frame.with_columns(
        pl.when(bad).then(pl.col("llm.energy.above_idle_joules") * 3).otherwise("llm.energy.above_idle_joules").alias(
            "llm.energy.above_idle_joules"
        ),
        pl.when(bad).then(pl.lit("degraded")).otherwise("llm.energy.quality").alias("llm.energy.quality"),
        pl.when(bad).then(pl.lit("late")).alias("llm.energy.reason"),
    )  # fmt: skip
    found = analysis.outliers(short_rows([write(tmp_path / "s", frame)]), "above_idle_joules")
    counts = {(quality, reason): (out, calls) for quality, reason, out, calls in found.by_quality}
    assert counts["degraded", "late"] == (10, 10)
    assert counts["measured", ""][0] <= 10
    assert {line[5] for line in found.worst} >= {"degraded"}


def test_front_leaves_out_what_is_dearer_and_no_better_when_scores_are_known(rows: pl.LazyFrame) -> None:
    """Cheapest first, each better than the one before."""
    ranked = deployments.deployments(rows, "above_idle_joules")
    front = deployments.pareto(ranked)
    scores = [each.score.value for each in front if each.score]
    joules = [each.per_call.value for each in front]
    assert front[0].name == min(ranked, key=lambda each: each.per_call.value).name
    assert scores == sorted(scores)
    assert joules == sorted(joules)


def test_front_leaves_out_what_is_dearer_when_it_is_as_good(rows: pl.LazyFrame) -> None:
    """To pay more for the same score is no choice."""
    one, *_ = deployments.deployments(rows, "above_idle_joules")
    dearer = replace(one, name="dearer", per_call=intervals.Interval(one.per_call.value + 1))
    assert one.score is not None
    assert deployments.pareto([dearer, one]) == [one]


def test_joules_per_input_token_are_of_those_that_were_worked_on_when_some_were_cached(tmp_path: Path) -> None:
    """A server reads no token again that it holds already."""
    frame = dataset(2, prompts=2, machines=MACHINES[:1]).with_columns(
        pl.lit(12.0).alias("llm.energy.prefill_joules"),
        pl.lit(10).alias("gen_ai.usage.input_tokens"),
        pl.lit(4).alias("gen_ai.usage.cache_read.input_tokens"),
    )
    (found,) = deployments.deployments(short_rows([write(tmp_path / "s", frame)]), "above_idle_joules")
    assert found.per_input_token == pytest.approx(2.0)


def test_no_chance_is_told_when_both_were_asked_fewer_prompts_than_the_test_needs(tmp_path: Path) -> None:
    """Of five pairs the signed-rank test can say nothing, however clear they are."""
    rows = short_rows([write(tmp_path / "s", dataset(200, prompts=5, machines=MACHINES[:2]))])
    ranked = deployments.deployments(rows, "above_idle_joules")
    (found,) = deployments.comparisons(rows, "above_idle_joules", ranked)
    assert (found.pairs, found.p_value) == (5, None)
    assert found.ratio is not None


def test_a_conversation_has_no_growth_when_it_has_one_turn(tmp_path: Path) -> None:
    """Its last turn is its first; that says nothing of how energy grows with the history."""
    frame = dataset(3, prompts=3, machines=MACHINES[:1]).with_columns(
        conversation=pl.Series(["talk", "talk", "solo"]),
        turn=pl.Series([0, 1, 0]),
        max_tokens=pl.lit(64, pl.Int64),
        **{"llm.energy.above_idle_joules": pl.Series([10.0, 20.0, 5.0])},
    )
    found = analysis.conversations(short_rows([write(tmp_path / "s", frame)]), "above_idle_joules")
    assert [(each.name, each.turns, each.last_over_first) for each in found] == [("talk", 2, 2.0), ("solo", 1, None)]


def test_a_conversation_was_held_twice_when_two_studies_hold_it(tmp_path: Path) -> None:
    """Not once with twice the turns, and twice the joules."""
    frame = dataset(2, prompts=2, machines=MACHINES[:1]).with_columns(
        conversation=pl.lit("talk"),
        turn=pl.Series([0, 1]),
        max_tokens=pl.lit(64, pl.Int64),
        **{"llm.energy.above_idle_joules": pl.Series([10.0, 20.0])},
    )
    folders = [write(tmp_path / name, frame) for name in ("first", "second")]
    (found,) = analysis.conversations(short_rows(folders), "above_idle_joules")
    assert (found.turns, found.runs, found.joules, found.last_over_first) == (2, 2, 30.0, 2.0)


def test_page_fetches_nothing_when_it_is_opened(study: Path) -> None:
    """No script, no link, no picture from elsewhere; and the browser is forbidden to fetch any."""
    page = report([study])
    assert not re.search(r"(src|href)\s*=|url\(|@import|<script|<link", page)
    assert "default-src 'none'" in page
    assert "above idle" in page


def test_texts_from_outside_are_harmless_when_they_hold_html(tmp_path: Path) -> None:
    """A model's or a task's name is a text, whatever it looks like."""
    nasty = "<script>alert(1)</script>"
    frame = dataset(200, prompts=20).with_columns(
        pl.col("deployment") + nasty, type=pl.lit(nasty), conversation=pl.lit(nasty), prompt_id=pl.lit(nasty)
    )
    page = report([write(tmp_path / "s", frame)])
    assert nasty not in page
    assert "&lt;script&gt;" in page


def test_names_below_bars_are_whole_when_they_are_longer_than_a_line(tmp_path: Path) -> None:
    """Two deployments whose names differ at their ends alone: cut at the drawing's edge they would be one."""
    server = "workstation-in-the-cellar.example.internal:11434 a-model-with-a-long-name"
    names = [f"{server}-{end}" for end in ("small-batches", "large-batches")]
    machines = [Machine(name, "m", 1e9) for name in names]
    page = report([write(tmp_path / "s", dataset(40, prompts=10, machines=machines))])
    drawings = re.findall(r"<svg viewBox.*?</svg>", page, re.DOTALL)
    lines = [line for drawing in drawings for line in re.findall(r"<text[^>]*>([^<]*)<", drawing)]
    assert max(map(len, lines)) * _LETTER_WIDTH <= charts.WIDTH
    assert all(name in " ".join(lines).replace("- ", "-") for name in names)


def test_whole_energies_are_shown_and_said_to_be_when_some_rows_have_no_part_above_idle(tmp_path: Path) -> None:
    """Imported rows have none: nothing is left out silently, and the page says what the comparison is worth."""
    frame = dataset(200, prompts=20).with_columns(pl.lit(None, pl.Float64).alias("llm.energy.above_idle_joules"))
    assert "cannot be compared fairly" in report([write(tmp_path / "s", frame)])


def test_total_says_that_it_holds_idle_power_when_all_other_energies_are_above_it(study: Path) -> None:
    """The page says below it that energies are above idle; who reports the total must see that it is not."""
    whole_joules = pl.read_parquet(study / "calls.parquet")["llm.energy.joules"].sum()
    page = report([study])
    assert "Energies are above idle" in page
    assert f"<dt>energy with idle, J</dt><dd>{charts.number(whole_joules, 4)}</dd>" in page


def test_abbreviations_are_explained_when_the_page_has_them(tmp_path: Path) -> None:
    """Readability is what is correlated under these names; a page without them needs no words of theirs."""
    explained = "how hard a prompt is to read"
    assert explained in report([write(tmp_path / "with", dataset(40, prompts=20))])
    unread = dataset(40, prompts=20).with_columns(pl.lit(None).alias("prompt_ari"), pl.lit(None).alias("prompt_lix"))
    assert explained not in report([write(tmp_path / "without", unread)])


def test_error_says_that_no_call_was_answered_when_all_failed(tmp_path: Path) -> None:
    """Calls that failed took energy, too; there is nothing to compare."""
    frame = dataset(50, prompts=5).with_columns(error_type=pl.lit("APITimeoutError"))
    with pytest.raises(StudyError, match="No call was answered"):
        report([write(tmp_path / "s", frame)])


def test_error_says_that_there_is_no_energy_when_nothing_was_measured(tmp_path: Path) -> None:
    """Rather than a page of zeros."""
    frame = dataset(50, prompts=5).with_columns(pl.lit(None, pl.Float64).alias("llm.energy.joules"))
    with pytest.raises(StudyError, match="No row has joules"):
        report([write(tmp_path / "s", frame)])


def test_command_writes_the_page_into_the_study_when_no_other_place_is_named(study: Path) -> None:
    """And says where."""
    assert main(["study", "report", str(study)]) == 0
    assert (study / "report.html").read_text().startswith("<!doctype html>")


_MELODI = """model_name,created_at,total_duration,load_duration,prompt_token_length,prompt_duration,\
response_token_length,response_duration,prompt,response,energy_consumption_llm_cpu,energy_consumption_llm_gpu,\
energy_consumption_llm_total,type,Unnamed: 0
gemma:2b,2024-05-06T10:00:00.123456Z,5000000000,1000000,20,250000000,100,4700000000,"What, now?",Well.,0.00001,0.0001,\
0.00011,question,0
gemma:2b,2024-05-06T10:00:09.123456Z,2500000000,1000000,20,250000000,50,2200000000,Why?,Because.,0.00001,,,question,1
gemma:2b,,,,,,,,Broken.,,,,,question,2
"""


def test_published_rows_are_read_when_they_come_from_melodi(tmp_path: Path) -> None:
    """kWh become joules, nanoseconds seconds; a total that is missing is the sum of what is there; unknown stays so."""
    (tmp_path / "melodi.csv").write_text(_MELODI)
    out = tmp_path / "published"
    files = 2 * [str(tmp_path / "melodi.csv")]  # a file that is named twice counts once
    words = ["study", "import", *files, "--out", str(out), "--machine", "laptop"]
    assert main(words) == 0
    rows = pl.read_parquet(out / "calls.parquet").sort("position").to_dicts()
    assert [row["llm.energy.joules"] for row in rows] == [pytest.approx(396.0), pytest.approx(36.0), None]
    assert [rows[0][f"llm.energy.{part}_joules"] for part in ("cpu", "gpu")] == [
        pytest.approx(36.0),
        pytest.approx(360.0),
    ]
    times = ["seconds", *(f"llm.server.{phase}_seconds" for phase in ("load", "prefill", "decode"))]
    assert [rows[0][name] for name in times] == [5.0, 0.001, 0.25, pytest.approx(4.7)]
    assert [rows[0][f"gen_ai.usage.{side}_tokens"] for side in ("input", "output")] == [20, 100]
    assert (rows[0]["deployment"], rows[0]["type"], rows[0]["prompt_words"]) == ("laptop gemma:2b", "question", 2)
    assert rows[0]["started_at"] == pytest.approx(1714989600.123456)
    assert rows[0]["llm.energy.above_idle_joules"] is None
    assert [row["llm.energy.quality"] for row in rows] == ["measured", "measured", "unavailable"]
    assert "cannot be compared fairly" in report([out])


@pytest.mark.parametrize("odd", ["nan", "inf", "-1", "1e999"])
def test_published_energy_is_unknown_when_it_is_no_amount(tmp_path: Path, odd: str) -> None:
    """One of them made every mean, and every forecast that was learned from it, no number either."""
    (tmp_path / "melodi.csv").write_text(_MELODI + f"gemma:2b,,,,,,7,,Odd.,,,,{odd},question,3\n")
    out = tmp_path / "published"
    assert main(["study", "import", str(tmp_path / "melodi.csv"), "--out", str(out)]) == 0
    row = pl.read_parquet(out / "calls.parquet").sort("position").to_dicts()[-1]
    assert (row["gen_ai.usage.output_tokens"], row["llm.energy.joules"], row["llm.energy.quality"]) == (
        7,
        None,
        "unavailable",
    )


def test_import_is_refused_when_a_file_is_not_melodis_or_the_folder_is_taken(
    tmp_path: Path, study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, and nothing is written over."""
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    (tmp_path / "melodi.csv").write_text(_MELODI)
    assert main(["study", "import", str(tmp_path / "other.csv"), "--out", str(tmp_path / "x")]) == 1
    assert "model_name, prompt, response_token_length missing" in capsys.readouterr().err
    (tmp_path / "other.csv").write_text("model_name,prompt,response_token_length\nm,Why?,5\n")
    assert main(["study", "import", str(tmp_path / "other.csv"), "--out", str(tmp_path / "x")]) == 1
    assert "energy_consumption_llm_total missing" in capsys.readouterr().err
    assert main(["study", "import", str(tmp_path / "melodi.csv"), "--out", str(study)]) == 1
    assert "there is a study in it" in capsys.readouterr().err


def test_command_names_the_extra_when_a_library_is_missing(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bare installation has no Polars: one line that says what to install. (The absence is simulated.)"""
    monkeypatch.setitem(sys.modules, "polars", None)
    assert main(["study", "report", str(study)]) == 1
    assert capsys.readouterr().err == ("otel-llm-energy: polars missing. Run: pip install 'otel-llm-energy[study]'\n")

"""Collecting for real: the real llama.cpp server, counters that follow real CPU use, and processes that are killed."""

from __future__ import annotations

import json
import random
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest

from otel_llm_energy.cli import main
from otel_llm_energy.cli.model import MODEL_NAME
from otel_llm_energy.cli.model_server import ModelServer, ServerOptions
from otel_llm_energy.study import StudyError
from otel_llm_energy.study.askers import make_asker
from otel_llm_energy.study.collect import Options, Progress, collect
from otel_llm_energy.study.dataset import read_manifest, scan
from otel_llm_energy.study.journal import Journal, rows_in
from otel_llm_energy.study.plan import Plan, calls_of, jobs, make_plan
from otel_llm_energy.study.prompts import read_prompts
from tests.support.answering import answering
from tests.support.powercap import PowercapTree

if TYPE_CHECKING:
    from tests.conftest import LlamaServerFactory
    from tests.support.backends import Ollama

_NO_METER = {"meters": "rapl", "powercap_root": "/nonexistent"}
_KILLS = 10
_ANSWER = json.dumps(
    {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": MODEL_NAME,
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Well."}}],
    }
)


def _plan(folder: Path, base_url: str, prompts: list[dict[str, Any]], **entries: Any) -> Plan:
    path = folder / "prompts.jsonl"
    path.write_text("\n".join(json.dumps(prompt) for prompt in prompts))
    server = {"name": "llama", "base_url": base_url, "models": [MODEL_NAME]}
    quick = {"max_tokens": 4, "rest_seconds": 0.0, "warm_up": 0}
    return make_plan({"prompts": str(path), "servers": [server], **quick, **entries}, "test")


def _table(folder: Path) -> pl.DataFrame:
    return scan([folder]).sort("position").collect()


def _texts_asked(posted: list[bytes]) -> list[list[str]]:
    """The texts of each call's messages; what a tokenizer was asked is none."""
    bodies = [json.loads(body) for body in posted]
    return [[message["content"] for message in body["messages"]] for body in bodies if "messages" in body]


def _planned_ids(plan: Plan) -> list[str]:
    return [call.id for call in calls_of(jobs(plan, read_prompts(plan.prompts)))]


@pytest.mark.e2e
def test_each_call_is_a_row_with_its_joules_when_a_meter_is_there(
    tmp_path: Path, llama_server: LlamaServerFactory, powercap: PowercapTree
) -> None:
    """Prompt, answer, tokens, joules, power over time, score and facts of client and server stand in one row."""
    prompts = [{"prompt": "Count to ten.", "type": "list", "expected": ".", "check": "regex"}]
    plan = _plan(tmp_path, llama_server().base_url, prompts, repeats=3, max_tokens=24, rest_seconds=0.3)
    energy = {
        "meters": "rapl",
        "powercap_root": powercap.root,
        "idle_watts": {"package-0": 20.0, "package-0/dram": 2.0},
    }
    seen: list[Progress] = []
    collect(plan, tmp_path / "out", Options(energy=energy), on_progress=seen.append)
    table = _table(tmp_path / "out")
    assert table["call_id"].to_list() == _planned_ids(plan)
    for row in table.iter_rows(named=True):
        assert row["llm.energy.joules"] > row["llm.energy.above_idle_joules"] > 0
        assert row["gen_ai.usage.output_tokens"] == 24
        assert 0 < row["prompt_tokens"] < row["gen_ai.usage.input_tokens"]
        assert row["response"].strip()
        assert row["score"] == 1.0
        assert row["server_model_parameters"] > 1e8
        assert len(row["power_watts"]) == len(row["power_seconds"]) > 2
        assert row["llm.server.decode_seconds"] > 0
    assert seen[-1].joules == pytest.approx(table["llm.energy.joules"].sum())
    assert not seen[-1].estimated
    assert seen[-1].done == seen[-1].planned == 3
    (session,) = (tmp_path / "out" / "sessions").iterdir()
    assert json.loads(session.read_text())["ended"]


def test_empty_and_huge_prompts_are_failed_rows_when_they_are_asked(
    tmp_path: Path, llama_server: LlamaServerFactory
) -> None:
    """Neither stops the collection, and neither is lost."""
    prompts = [
        {"prompt": "Hello.", "id": "fine"},
        {"prompt": " ", "id": "empty"},
        {"prompt": "x " * 500_000, "id": "huge"},
    ]
    plan = _plan(tmp_path, llama_server().base_url, prompts)
    progress = collect(plan, tmp_path / "out", Options(energy=_NO_METER))
    assert (progress.done, progress.failed) == (3, 2)
    errors = dict(_table(tmp_path / "out").select("prompt_id", "error_type").rows())
    assert errors == {"fine": None, "empty": "empty_prompt", "huge": "BadRequestError"}


def test_huge_prompt_is_a_failed_row_when_it_comes_first_and_models_are_warmed_up(
    tmp_path: Path, llama_server: LlamaServerFactory
) -> None:
    """The order is the same each time: the study could never have been begun."""
    plan = _plan(tmp_path, llama_server().base_url, [{"prompt": "x " * 500_000}], warm_up=1)
    progress = collect(plan, tmp_path / "out", Options(energy=_NO_METER))
    assert (progress.done, progress.failed) == (1, 1)


def test_answer_is_kept_whole_when_a_character_comes_in_two_halves(tmp_path: Path) -> None:
    """Each chunk is JSON of its own; half a character alone no table can hold, and so none of the rows."""
    chunks = [json.dumps({"choices": [{"delta": {"content": half}}]}) for half in ("a \ud83d", "\ude00", " \ud83d")]
    with answering("".join(f"data: {chunk}\n\n" for chunk in chunks), "text/event-stream") as base_url:
        collect(_plan(tmp_path, base_url, [{"prompt": "Hello."}]), tmp_path / "out", Options(energy=_NO_METER))
    assert _table(tmp_path / "out")["response"].to_list() == ["a \U0001f600 \ufffd"]


@pytest.mark.parametrize("stream", [True, False])
def test_calls_are_failed_rows_when_what_answers_is_no_model_server(tmp_path: Path, stream: bool) -> None:
    """A web page is no answer of a model, though the client library takes it for one without a word."""
    with answering("<html>Welcome</html>", "text/html") as base_url:
        plan = _plan(tmp_path, base_url, [{"prompt": "Hello."}], stream=stream)
        progress = collect(plan, tmp_path / "out", Options(energy=_NO_METER))
    assert (progress.done, progress.failed) == (1, 1)
    assert "no model server" in _table(tmp_path / "out")["error"].item()


@pytest.mark.parametrize(("broken", "words"), [("calls.parquet", "not a table"), ("rows.jsonl", "not a row")])
def test_nothing_is_asked_again_when_the_rows_cannot_be_read(tmp_path: Path, broken: str, words: str) -> None:
    """A disk's fault, or somebody's editor: all calls were made anew, and could not be kept beside what was there."""
    posted: list[bytes] = []
    with answering(_ANSWER, "application/json", posted=posted) as base_url:
        plan = _plan(tmp_path, base_url, [{"prompt": "Hello."}], stream=False)
        collect(plan, tmp_path / "out", Options(energy=_NO_METER))
        (tmp_path / "out" / broken).write_bytes(b"What is that?\n")
        posted.clear()
        with pytest.raises(StudyError, match=words):
            collect(plan, tmp_path / "out", Options(energy=_NO_METER))
    assert not _texts_asked(posted)


@pytest.mark.timeout(60)
def test_no_more_threads_ask_than_there_are_calls_when_the_number_is_huge(tmp_path: Path) -> None:
    """A few zeros too many made threads until the memory was full."""
    with answering(_ANSWER, "application/json") as base_url:
        plan = _plan(tmp_path, base_url, [{"prompt": "Hello."}], stream=False, concurrency=10**9)
        assert collect(plan, tmp_path / "out", Options(energy=_NO_METER)).done == 1


def test_texts_are_not_kept_when_content_is_unwanted(
    tmp_path: Path, llama_server: LlamaServerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though spans are told to carry it, no text is in the folder; hashes are, and turns still follow one another."""
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "SPAN_ONLY")
    secret = "Xylophonist Quillfeather"
    prompts = [{"prompt": f"Greet {secret}.", "conversation": "c"}, {"prompt": "Again.", "conversation": "c"}]
    plan = _plan(tmp_path, llama_server().base_url, prompts)
    collect(plan, tmp_path / "out", Options(content=False, energy=_NO_METER))
    table = _table(tmp_path / "out")
    assert table["prompt"].null_count() == table["response"].null_count() == 2
    assert table["prompt_sha256"].n_unique() == 2
    first, second = table["gen_ai.usage.input_tokens"]
    assert second > first  # the second turn carries the first
    kept = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert secret.encode() not in kept
    assert secret not in str(table.to_dicts())  # the table is compressed
    assert not any("messages" in (other or "") for other in table["other_attributes"])


@pytest.mark.parametrize(("content", "asked_again"), [(True, []), (False, [["One?"]])], ids=["texts", "hashes"])
def test_a_turn_carries_all_before_it_when_a_conversation_is_asked_or_taken_up_again(
    content: bool, asked_again: list[list[str]], tmp_path: Path
) -> None:
    """With the answers; an earlier turn whose answer was not kept is asked again and makes no second row."""
    prompts = [{"prompt": text, "conversation": "c"} for text in ("One?", "Two?")]
    options = Options(content=content, energy=_NO_METER)
    posted: list[bytes] = []
    with answering(_ANSWER, "application/json", posted=posted) as base_url:
        plan = _plan(tmp_path, base_url, prompts, stream=False)
        collect(plan, tmp_path / "out", options)
        assert _texts_asked(posted) == [["One?"], ["One?", "Well.", "Two?"]]
        posted.clear()
        _table(tmp_path / "out").filter(pl.col("turn") == 0).write_parquet(tmp_path / "out" / "calls.parquet")
        assert collect(plan, tmp_path / "out", options).done_now == 1
    assert _texts_asked(posted) == [*asked_again, ["One?", "Well.", "Two?"]]
    assert _table(tmp_path / "out")["turn"].to_list() == [0, 1]


def test_an_empty_turn_is_never_asked_when_its_conversation_is_taken_up_again(tmp_path: Path) -> None:
    """It has a row, but no answer that could have been kept."""
    prompts = [{"prompt": text, "conversation": "c"} for text in ("", "Two?")]
    options = Options(energy=_NO_METER)
    posted: list[bytes] = []
    with answering(_ANSWER, "application/json", posted=posted) as base_url:
        plan = _plan(tmp_path, base_url, prompts, stream=False)
        collect(plan, tmp_path / "out", options)
        _table(tmp_path / "out").filter(pl.col("turn") == 0).write_parquet(tmp_path / "out" / "calls.parquet")
        assert collect(plan, tmp_path / "out", options).done_now == 1
    assert _texts_asked(posted) == [["", "", "Two?"]] * 2


def test_models_are_warmed_up_without_rows_when_the_plan_says_how_often(tmp_path: Path) -> None:
    """Each by as many calls, before all others; a model that does not answer is said at once."""
    posted: list[bytes] = []
    with answering(_ANSWER, "application/json", posted=posted) as base_url:
        server = {"base_url": base_url, "models": ["a", "b"]}
        plan = _plan(tmp_path, base_url, [{"prompt": "One?"}], servers=[server], stream=False, warm_up=2)
        progress = collect(plan, tmp_path / "out", Options(energy=_NO_METER))
    models = [json.loads(body).get("model") for body in posted if b"messages" in body]
    assert (models[:4], sorted(models[4:])) == (["a", "a", "b", "b"], ["a", "b"])
    assert (progress.done_now, _table(tmp_path / "out").height) == (2, 2)
    with answering("<html>Welcome</html>", "text/html") as base_url:
        plan = _plan(tmp_path, base_url, [{"prompt": "One?"}], warm_up=1)
        with pytest.raises(StudyError, match=r"does not answer: .*no model server"):
            collect(plan, tmp_path / "other", Options(energy=_NO_METER))


def test_calls_rest_and_say_when_they_were_when_a_pause_is_asked_for(tmp_path: Path) -> None:
    """Seconds since 1970, and seconds; the idle power shows in the pause."""
    before_seconds = time.time()
    with answering(_ANSWER, "application/json") as base_url:
        plan = _plan(tmp_path, base_url, [{"prompt": "One?"}, {"prompt": "Two?"}], stream=False, rest_seconds=0.3)
        collect(plan, tmp_path / "out", Options(energy=_NO_METER))
    (first_at, first_seconds), (second_at, second_seconds) = (
        _table(tmp_path / "out").select("started_at", "seconds").rows()
    )
    assert (
        before_seconds
        < first_at
        < first_at + first_seconds + 0.3
        <= second_at
        < second_at + second_seconds
        < time.time()
    )


def test_only_failed_calls_are_asked_again_when_that_is_wanted(tmp_path: Path) -> None:
    """Each then has one row, which says how often it was tried."""
    with answering("<html>Welcome</html>", "text/html") as base_url:
        plan = _plan(tmp_path, base_url, [{"prompt": "One?"}], stream=False)
        assert collect(plan, tmp_path / "out", Options(energy=_NO_METER)).failed == 1
    with answering(_ANSWER, "application/json") as base_url:
        addresses = {"llama": base_url}
        again = Options(energy=_NO_METER, addresses=addresses, retry_failed=True)
        assert collect(plan, tmp_path / "out", Options(energy=_NO_METER, addresses=addresses)).done_now == 0
        assert collect(plan, tmp_path / "out", again).done_now == 1
        assert collect(plan, tmp_path / "out", again).done_now == 0
    assert _table(tmp_path / "out").select("attempt", "error_type", "response").rows() == [(2, None, "Well.")]


def test_time_to_go_is_that_of_the_calls_that_are_left() -> None:
    """Rows of earlier runs took none of this run's."""
    assert Progress(planned=10, done=6, done_now=2, failed=0, joules=0.0, seconds=8.0).rest_seconds == 16.0
    assert Progress(planned=10, done=4, done_now=0, failed=0, joules=0.0, seconds=8.0).rest_seconds is None


def test_nothing_is_asked_when_everything_is_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A study without joules would be found out at its end."""
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    posted: list[bytes] = []
    with answering(_ANSWER, "application/json", posted=posted) as base_url:
        plan = _plan(tmp_path, base_url, [{"prompt": "One?"}], stream=False, warm_up=1)
        with pytest.raises(StudyError, match="OTEL_SDK_DISABLED=true switches measuring off"):
            collect(plan, tmp_path / "out", Options(energy=_NO_METER))
    assert _texts_asked(posted) == []


def test_nothing_is_asked_again_when_every_call_has_its_row(tmp_path: Path, llama_server: LlamaServerFactory) -> None:
    """Taking up a complete study changes nothing."""
    plan = _plan(tmp_path, llama_server().base_url, [{"prompt": "Hello."}])
    collect(plan, tmp_path / "out", Options(energy=_NO_METER))
    before = (tmp_path / "out" / "calls.parquet").read_bytes()
    assert collect(plan, tmp_path / "out", Options(energy=_NO_METER)).done_now == 0
    assert (tmp_path / "out" / "calls.parquet").read_bytes() == before


def test_another_plan_is_refused_when_a_folder_holds_a_study(tmp_path: Path, llama_server: LlamaServerFactory) -> None:
    """Rows of two plans in one folder could not be told apart; the manifest tells what differs."""
    plan = _plan(tmp_path, llama_server().base_url, [{"prompt": "Hello."}])
    collect(plan, tmp_path / "out", Options(energy=_NO_METER))
    manifest = read_manifest(tmp_path / "out")
    assert manifest is not None
    assert manifest["plan"]["max_tokens"] == [4]
    other = _plan(tmp_path, llama_server().base_url, [{"prompt": "Hello."}], max_tokens=5)
    with pytest.raises(StudyError, match=r"another plan \(max_tokens differ\)"):
        collect(other, tmp_path / "out", Options(energy=_NO_METER))


def test_rows_are_not_mixed_when_the_prompts_have_changed(tmp_path: Path) -> None:
    """A file of prompts that was edited since is another study, though its plan is the same."""
    with answering(_ANSWER, "application/json") as base_url:
        plan = _plan(tmp_path, base_url, [{"prompt": "One?"}], stream=False)
        collect(plan, tmp_path / "out", Options(energy=_NO_METER))
        manifest = (tmp_path / "out" / "manifest.json").read_bytes()
        _plan(tmp_path, base_url, [{"prompt": "Another?"}], stream=False)
        with pytest.raises(StudyError, match=r"prompts\.jsonl has changed since the study began"):
            collect(plan, tmp_path / "out", Options(energy=_NO_METER))
        assert (tmp_path / "out" / "manifest.json").read_bytes() == manifest


@pytest.mark.e2e
def test_failed_calls_are_rows_and_can_be_asked_again_when_the_server_dies(tmp_path: Path, model_path: Path) -> None:
    """The collection stops with one error; started again it goes on, and on demand asks the failed calls anew."""
    prompts = [{"prompt": f"Say {number}."} for number in range(6)]
    with ModelServer(ServerOptions(model_path)) as server:
        plan = _plan(tmp_path, server.base_url, prompts)

        def end_after_two(progress: Progress) -> None:
            if progress.done >= 1:
                server.stop()

        slow = _plan(tmp_path, server.base_url, prompts, rest_seconds=0.5)
        options = Options(energy=_NO_METER, patience_seconds=0.1)
        with pytest.raises(StudyError, match=r"the server is gone.*--retry-failed"):
            collect(slow, tmp_path / "out", options, on_progress=end_after_two)
    rows = _table(tmp_path / "out")
    assert 0 < rows["error_type"].null_count() < 6
    assert rows["error_type"].drop_nulls().len() == 1
    with ModelServer(ServerOptions(model_path)) as server:
        again = Options(energy=_NO_METER, retry_failed=True, addresses={"llama": server.base_url})
        collect(plan, tmp_path / "out", again)
    rows = _table(tmp_path / "out")
    assert rows["call_id"].to_list() == _planned_ids(plan)
    assert rows["error_type"].null_count() == 6


def test_error_is_one_line_when_nobody_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And no folder full of failures."""
    (tmp_path / "p.txt").write_text("Hello?\n")
    arguments = ["--base-url", "http://127.0.0.1:9/v1", "--model", "m", "--out", str(tmp_path / "out")]
    assert main(["study", "collect", str(tmp_path / "p.txt"), *arguments]) == 1
    assert capsys.readouterr().err == (
        "otel-llm-energy: http://127.0.0.1:9/v1: nobody answers. "
        "Start the server, await its model, or correct base_url.\n"
    )


@pytest.mark.parametrize(
    ("option", "variable", "code"),
    [(["--powercap", "/nonexistent"], "", 1), (["--powercap", ""], "", 1), ([], "rapl", 0)],
    ids=["option", "empty-option", "variable"],
)
def test_meter_that_cannot_be_read_is_told_once_when_it_was_named(
    option: list[str],
    variable: str,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Who names one for this study has no use for rows without joules, nor for estimates in their place."""
    monkeypatch.setenv("OTEL_LLM_ENERGY_POWERCAP_ROOT", "/nonexistent")
    monkeypatch.setenv("OTEL_LLM_ENERGY_METERS", variable)
    monkeypatch.setenv("OTEL_LLM_ENERGY_BOARD", "off")
    (tmp_path / "p.txt").write_text("Hello?\n")
    with answering(_ANSWER, "application/json") as url:
        server = ["--base-url", url, "--model", "m", "--no-stream", "--warm-up", "0", "--out", str(tmp_path / "out")]
        assert main(["study", "collect", str(tmp_path / "p.txt"), *server, *option]) == code
    assert (capsys.readouterr().err + caplog.text).count("no RAPL package here") == 1
    assert (tmp_path / "out" / "calls.parquet").exists() == (code == 0)


def test_failing_scores_are_told_when_the_function_of_the_user_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its calls are made and kept all the same; only the table would say what became of their scores."""
    monkeypatch.setenv("OTEL_LLM_ENERGY_METERS", "cpu-estimate")
    monkeypatch.setenv("OTEL_LLM_ENERGY_BOARD", "off")
    (tmp_path / "p.txt").write_text("Hello?\n")
    (tmp_path / "score.py").write_text("def score(prompt):\n    return 1\n")
    words = [
        "--score",
        f"{tmp_path / 'score.py'}:score",
        "--no-stream",
        "--warm-up",
        "0",
        "--out",
        str(tmp_path / "out"),
    ]
    with answering(_ANSWER, "application/json") as url:
        assert main(["study", "collect", str(tmp_path / "p.txt"), "--base-url", url, "--model", "m", *words]) == 0
    (row,) = _table(tmp_path / "out").select("score", "score_error").rows()
    assert row == (None, "score() takes 1 positional argument but 3 were given")
    assert "Answers without a score: 1. The function failed" in capsys.readouterr().err


@pytest.mark.e2e
def test_nothing_is_fetched_when_the_small_model_cannot_be_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The extra study alone has no server for it: what to install is said first."""
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    monkeypatch.setattr("otel_llm_energy.cli.study.ensure_model", lambda: pytest.fail("fetched"))
    assert main(["study", "collect", "starter", "--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.endswith("xllamacpp missing. Run: pip install 'otel-llm-energy[demo]'\n")


@pytest.mark.parametrize(("health", "alive"), [(200, True), (404, True), (503, False)])
def test_server_is_awaited_when_it_loads_its_model(health: int, alive: bool, tmp_path: Path) -> None:
    """As llama.cpp's does when it is started anew: it lists the model, and every call would be a row of failure."""
    with answering("{}", "application/json", health) as base_url:
        plan = _plan(tmp_path, base_url, [{"prompt": "Hello."}])
        (server,) = plan.servers
        if alive:
            assert make_asker(server, plan).alive()
        else:
            with pytest.raises(StudyError, match="nobody answers"):
                make_asker(server, plan)


def test_study_is_repeated_from_its_manifest_when_that_is_the_plan(
    tmp_path: Path, llama_server: LlamaServerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two servers, two limits: the same calls in the same order, with the same answers, into another folder."""
    monkeypatch.setenv("OTEL_LLM_ENERGY_POWERCAP_ROOT", "/nonexistent")
    monkeypatch.setenv("OTEL_LLM_ENERGY_METERS", "rapl")
    url = llama_server().base_url
    servers = [{"name": name, "base_url": url, "models": [MODEL_NAME]} for name in ("one", "other")]
    plan = _plan(tmp_path, url, [{"prompt": "Hello."}, {"prompt": "Bye."}], servers=servers, max_tokens=[2, 4])
    collect(plan, tmp_path / "first", Options(energy=_NO_METER))
    words = ["study", "collect", "--plan", str(tmp_path / "first" / "manifest.json"), "--out", str(tmp_path / "again")]
    assert main(words) == 0
    first, again = _table(tmp_path / "first"), _table(tmp_path / "again")
    same = ["call_id", "position", "deployment", "max_tokens", "response_sha256"]
    assert first.select(same).rows() == again.select(same).rows()
    assert first.group_by("deployment").len()["len"].to_list() == [4, 4]


@pytest.mark.e2e
def test_rows_so_far_are_whole_and_the_rest_comes_later_when_the_disk_is_full(
    tmp_path: Path, llama_server: LlamaServerFactory
) -> None:
    """The kernel refuses a file of more than 9 kB: one clear error; with room again, every call has its row."""
    plan = _plan(tmp_path, llama_server().base_url, [{"prompt": f"Say {number}."} for number in range(8)])
    (tmp_path / "plan.json").write_text(json.dumps({"plan": plan.as_dict()}))
    with _collector(tmp_path, "--most-bytes", "9000") as process:
        said = process.communicate(timeout=100)[0]
    assert process.returncode == 1
    assert "All rows so far are whole. Make room and run the same command again." in said
    assert 0 < _table(tmp_path / "out").height < 8
    with _collector(tmp_path) as process:
        process.communicate(timeout=100)
    assert process.returncode == 0
    assert _table(tmp_path / "out")["call_id"].to_list() == _planned_ids(plan)


@pytest.mark.e2e
def test_answer_that_is_being_written_is_not_waited_for_when_it_is_broken_off(
    tmp_path: Path, llama_server: LlamaServerFactory
) -> None:
    """Ctrl-C in the middle of a long answer: the rows before it stay, it has none, and the folder is free."""
    prompts = [{"prompt": "Count to ten thousand, number by number.", "id": str(number)} for number in range(3)]
    endless = {"name": "llama", "base_url": llama_server(slots=2).base_url, "models": [MODEL_NAME]}
    endless["extra"] = {"ignore_eos": True}
    plan = _plan(tmp_path, endless["base_url"], prompts, servers=[endless], max_tokens=[2, 1900], order="by-model")
    (tmp_path / "plan.json").write_text(json.dumps({"plan": plan.as_dict()}))
    with _collector(tmp_path) as process:
        _wait_for_asking(process)
        time.sleep(0.5)  # into the first answers; a long one is never done by then
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode != 0
    done = rows_in(tmp_path / "out" / "rows.jsonl")
    assert all(row["max_tokens"] == 2 for row in done)
    Journal(tmp_path / "out").close()


@pytest.mark.e2e
@pytest.mark.timeout(600)
def test_each_planned_call_is_a_row_once_when_the_collector_is_killed(
    tmp_path: Path, llama_server: LlamaServerFactory
) -> None:
    """Killed with -9 at ten random moments, then let be: the union of all runs is the plan."""
    count = 80
    prompts = [{"prompt": f"Say {number}.", "conversation": f"c{number // 2}"} for number in range(count)]
    plan = _plan(tmp_path, llama_server(slots=2).base_url, prompts, max_tokens=1, concurrency=2)
    (tmp_path / "plan.json").write_text(json.dumps({"plan": plan.as_dict()}))
    drawn = random.Random(10)
    for _ in range(_KILLS):
        _kill_while_asking(tmp_path, drawn.uniform(0.0, 0.5))
    with _collector(tmp_path) as process:
        said = process.communicate(timeout=100)[0]
    assert process.returncode == 0
    assert int(said.split()[-1]) > 0  # a kill came in time
    table = _table(tmp_path / "out")
    assert table["call_id"].to_list() == _planned_ids(plan)
    assert table["error_type"].null_count() == count


def _collector(folder: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.study.collecting", str(folder / "plan.json"), str(folder / "out"), *options]
    repository = Path(__file__).parents[2]
    return subprocess.Popen(command, cwd=repository, stdout=subprocess.PIPE, text=True, start_new_session=True)


def _kill_while_asking(folder: Path, after_seconds: float) -> None:
    """Let it begin to ask, then kill it after so long."""
    with _collector(folder) as process:
        _wait_for_asking(process)
        time.sleep(after_seconds)  # a kill at a random moment is the point
        process.send_signal(signal.SIGKILL)


def _wait_for_asking(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], 60)[0]


@pytest.mark.e2e
def test_ollamas_own_timings_are_in_the_row_when_it_is_asked_natively(tmp_path: Path, ollama: Ollama) -> None:
    """Found out by itself from the address; facts of the model come from its own pages."""
    prompts = [{"prompt": "Count to five."}]
    plan = _plan(tmp_path, ollama.host, prompts, servers=[{"base_url": ollama.host, "models": [ollama.model]}])
    collect(plan, tmp_path / "out", Options(energy=_NO_METER))
    (row,) = _table(tmp_path / "out").iter_rows(named=True)
    assert row["gen_ai.provider.name"] == "ollama"
    assert row["llm.server.decode_seconds"] > 0
    assert row["gen_ai.usage.output_tokens"] == 4
    assert row["server_software"].startswith("ollama ")
    assert row["server_model_parameters"] > 1e8

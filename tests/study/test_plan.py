"""A plan is one fixed list of calls, wherever it is made; what is wrong in it is named."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from otel_llm_energy.cli import main
from otel_llm_energy.study import StudyError
from otel_llm_energy.study.collect import Options, Progress
from otel_llm_energy.study.plan import Plan, ServerPlan, calls_of, jobs, make_plan, read_plan, with_changes
from otel_llm_energy.study.prompts import read_prompts
from otel_llm_energy.tracing.directory import Address

_ENTRIES: dict[str, Any] = {
    "prompts": "starter",
    "repeats": 2,
    "max_tokens": [8, 16],
    "servers": [
        {"name": "here", "base_url": "http://localhost:8000/v1", "models": ["a", "b"]},
        {"name": "there", "base_url": "http://elsewhere:8000/v1", "models": ["a"]},
    ],
}


def test_each_combination_is_planned_once_when_there_are_several_of_everything() -> None:
    """50 prompts x 3 deployments x 2 repeats x 2 limits, each with an id of its own, in positions 0 to 599."""
    calls = list(calls_of(jobs(make_plan(_ENTRIES, "test"), read_prompts("starter"))))
    assert len({call.id for call in calls}) == len(calls) == 50 * 3 * 2 * 2
    assert [call.position for call in calls] == list(range(600))


def test_order_is_the_same_when_a_plan_is_made_again_and_another_with_another_seed() -> None:
    """Resuming depends on the first, randomising on the second."""
    plan, prompts = make_plan(_ENTRIES, "test"), read_prompts("starter")

    def order(of: Any) -> list[str]:
        return [call.id for call in calls_of(jobs(of, prompts))]

    other = with_changes(plan, seed=1)
    assert order(plan) == order(plan)
    assert order(other) != order(plan)
    assert set(order(other)) == set(order(plan))


def test_turns_follow_one_another_when_the_order_is_random() -> None:
    """A conversation is one job, in its own order."""
    made = jobs(make_plan(_ENTRIES, "test"), read_prompts("starter"))
    conversations = [job for job in made if job[0].prompt.conversation]
    assert all([call.prompt.turn for call in job] == list(range(len(job))) for job in conversations)
    assert len(conversations) == 3 * 12


def test_models_follow_one_another_when_the_order_is_by_model() -> None:
    """A model is loaded once."""
    made = jobs(with_changes(make_plan(_ENTRIES, "test"), order="by-model"), read_prompts("starter"))
    deployments = [job[0].deployment for job in made]
    changes = sum(one != two for one, two in pairwise(deployments))
    assert changes == 2


def test_plan_is_the_same_when_it_is_read_from_toml_or_from_its_manifest(tmp_path: Path) -> None:
    """A manifest makes the study repeatable."""
    (tmp_path / "plan.toml").write_text(
        'prompts = "starter"\nrepeats = 2\nmax_tokens = [8, 16]\n'
        '[[servers]]\nname = "here"\nbase_url = "http://localhost:8000/v1"\nmodels = ["a", "b"]\n'
        '[[servers]]\nname = "there"\nbase_url = "http://elsewhere:8000/v1"\nmodels = ["a"]\n'
    )
    plan = read_plan(tmp_path / "plan.toml")
    (tmp_path / "manifest.json").write_text(json.dumps({"plan": plan.as_dict()}))
    assert plan == read_plan(tmp_path / "manifest.json") == make_plan(_ENTRIES, "test")


@pytest.mark.parametrize(
    ("base_url", "host", "port"),
    [
        ("http://[::1]:18082/v1", "::1", 18082),
        ("http://Elsewhere:8000/v1", "elsewhere", 8000),
        ("https://elsewhere/v1", "elsewhere", 443),
    ],
)
def test_meter_of_a_plan_is_found_for_its_server_when_that_is_asked(base_url: str, host: str, port: int) -> None:
    """The address stands as the option ``servers`` reads it, an IPv6 address in brackets."""
    entries = {**_ENTRIES, "servers": [{"base_url": base_url, "models": ["a"]}]}
    (server,) = make_plan(entries, "test").servers
    address = Address.parse(server.address)
    assert (address.host, address.port) == (server.host, server.port) == (host, port)
    assert address.matches(host, port)
    assert not address.matches(host, port + 1)


def test_plan_of_the_documentation_is_a_plan_when_it_is_copied(tmp_path: Path) -> None:
    """As it stands on the page; the machines that it names need not be there."""
    page = (Path(__file__).parents[2] / "docs" / "study.md").read_text()
    (text,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "plan.toml").write_text(text)
    plan = read_plan(tmp_path / "plan.toml")
    assert [server.name for server in plan.servers] == ["workstation", "gpu-box"]


def test_plan_is_read_with_its_prompts_and_shortest_forms_when_it_lies_elsewhere(tmp_path: Path) -> None:
    """Prompts are found beside it; one model and one limit need no list, and a server's name is its address."""
    (tmp_path / "p.txt").write_text("Why?\n")
    (tmp_path / "plan.toml").write_text(
        'prompts = "p.txt"\nmax_tokens = 8\nwarm_up = 0\n[[servers]]\nbase_url = "http://h:8000/v1"\nmodels = "llm"\n'
    )
    plan = read_plan(tmp_path / "plan.toml")
    assert plan.prompts == str(tmp_path / "p.txt")
    assert (plan.max_tokens, plan.warm_up) == ((8,), 0)
    assert [(server.name, server.models) for server in plan.servers] == [("h:8000", ("llm",))]


@pytest.mark.parametrize("content", [None, "prompts = ", '{"format": 1}', "[]", "{"])
def test_error_names_the_file_when_it_is_no_plan(content: str | None, tmp_path: Path) -> None:
    """Neither there, nor TOML, nor a manifest."""
    path = tmp_path / ("plan.toml" if content == "prompts = " else "manifest.json")
    if content is not None:
        path.write_text(content)
    with pytest.raises(StudyError, match=re.escape(f"{path}: ")):
        read_plan(path)


def test_study_can_be_taken_up_in_another_manner_when_it_asks_the_same() -> None:
    """Slower, or more patient; other calls, or other questions, are another study."""
    plan = make_plan(_ENTRIES, "test")
    manners = {"concurrency": 2, "rest_seconds": 3.0, "timeout_seconds": 9.0, "warm_up": 0}
    assert with_changes(plan, **manners).digest == plan.digest
    for change in ({"seed": 1}, {"temperature": 0.5}, {"max_tokens": [8]}, {"repeats": 1}, {"stream": False}):
        assert with_changes(plan, **change).digest != plan.digest


_SERVER = {"name": "one", "base_url": "http://h/v1", "models": ["a"]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"repeat": 2}, "unknown: repeat"),
        ({"repeats": 0}, "repeats cannot be 0"),
        ({"order": "as-is"}, "order cannot be 'as-is'"),
        ({"servers": []}, "no server"),
        ({"servers": [{"base_url": "localhost", "models": ["a"]}]}, "base_url cannot be 'localhost'"),
        ({"servers": [{"base_url": "http://u:secret@h/v1", "models": ["a"]}]}, "holds credentials"),
        ({"servers": [{"base_url": "http://h/v1"}]}, "models missing"),
        ({"servers": [{"base_url": "http://h/v1", "models": []}]}, "models is empty"),
        ({"servers": [{"base_url": "http://h/v1", "models": ["a", "a"]}]}, "models cannot be .*each model once"),
        ({"servers": [{"base_url": "http://u:x/secret@h/v1", "models": ["a"]}]}, "holds credentials"),
        ({"servers": [{"base_url": "http://[::1", "models": ["a"]}]}, "base_url cannot be 'http://\\[::1'"),
        ({"servers": [{"base_url": "http://h:99999/v1", "models": ["a"]}]}, "base_url cannot be"),
        ({"servers": [{"base_url": "http://h/v1", "models": 5}]}, "models cannot be 5"),
        ({"servers": [{"base_url": "http://h/v1", "models": ["a"], "extra": "x"}]}, "extra cannot be 'x'"),
        ({"servers": [{**_SERVER, "extra": {"day": date(2026, 1, 1)}}]}, "extra cannot be .* what JSON can say"),
        ({"servers": [{**_SERVER, "extra": {"top_p": float("nan")}}]}, "extra cannot be .* what JSON can say"),
        ({"servers": [{"base_url": "http://h/v1", "models": ["a"], "api_key_variable": 5}]}, "api_key_variable cannot"),
        ({"servers": [_SERVER, {**_SERVER, "base_url": "http://h:2/v1"}]}, "servers with different names"),
        ({"servers": [{**_SERVER, "api": "anthropic"}]}, "api cannot be 'anthropic'. Allowed: auto, openai, ollama"),
        ({"concurrency": 0}, "concurrency cannot be 0"),
        ({"repeats": True}, "repeats cannot be True"),
        ({"repeats": 2**63}, r"repeats cannot be .* a whole number from 1, below 2\*\*63"),
        ({"temperature": -0.5}, "temperature cannot be -0.5"),
        ({"timeout_seconds": 0}, "timeout_seconds cannot be 0"),
        ({"score": 5}, "score cannot be 5"),
        ({"stream": "no"}, "stream cannot be 'no'. Allowed: true, false"),
        ({"tokenize": 0}, "tokenize cannot be 0"),
        ({"temperature": float("inf")}, "temperature cannot be inf"),
        ({"rest_seconds": float("inf")}, "rest_seconds cannot be inf"),
        ({"timeout_seconds": 1e11}, "timeout_seconds cannot be"),
        ({"seed": 2**63}, "seed cannot be"),
        ({"max_tokens": [2**63]}, "max_tokens cannot be"),
        ({"max_tokens": [0]}, "max_tokens cannot be"),
        ({"max_tokens": [8, 8]}, "max_tokens cannot be .*each number once"),
    ],
)
def test_error_names_the_entry_when_it_is_wrong(change: dict[str, Any], words: str) -> None:
    """One sentence, and no secret in it."""
    with pytest.raises(StudyError, match=words) as caught:
        make_plan({**_ENTRIES, **change}, "plan.toml")
    assert "secret" not in str(caught.value)


def test_error_counts_the_calls_when_a_study_has_too_many() -> None:
    """All of them are planned at once: that so many have no room in memory would be found out by the machine."""
    plan = make_plan({**_ENTRIES, "repeats": 10_000}, "plan.toml")
    with pytest.raises(StudyError, match=r"^3,000,000 calls are planned: .*10,000 times.* 1,000,000 at most"):
        jobs(plan, read_prompts("starter"))


@pytest.mark.parametrize("options", [["--model", "m"], ["--api", "openai"], ["--plan", "plan.toml", "--model", "m"]])
def test_error_asks_for_the_server_when_only_its_model_or_api_is_named(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Otherwise another model than that would be measured, and not those of the plan."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plan.toml").write_text(
        'prompts = "starter"\n[[servers]]\nbase_url = "http://127.0.0.1:9/v1"\nmodels = ["a"]\n'
    )
    assert main(["study", "collect", "starter", *options]) == 1
    assert "--model and --api need --base-url" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["plan.toml"]


def test_all_is_as_the_command_line_says_when_every_option_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None is left at its default in silence."""
    seen: list[tuple[Plan, Path, Options]] = []

    def collect(plan: Plan, folder: Path, options: Options, **_: object) -> Progress:
        seen.append((plan, folder, options))
        return Progress(1, 1, 1, 0, 0.0, 0.0)

    monkeypatch.setattr("otel_llm_energy.study.collect.collect", collect)
    words = (
        f"study collect starter --base-url http://h:1/v1 --model a b --api openai --out {tmp_path} --repeats 2"
        " --max-tokens 8 16 --warm-up 0 --seed 3 --temperature 0.5 --concurrency 4 --rest 0.25 --timeout 9.5"
        " --order by-model --no-stream --no-tokenize --score s.py:f --no-content --retry-failed --powercap /tree"
    )
    assert main(words.split()) == 0
    expected = Plan(
        prompts="starter",
        servers=(ServerPlan("h:1", "http://h:1/v1", ("a", "b"), "openai"),),
        repeats=2,
        max_tokens=(8, 16),
        warm_up=0,
        seed=3,
        temperature=0.5,
        concurrency=4,
        rest_seconds=0.25,
        timeout_seconds=9.5,
        order="by-model",
        stream=False,
        tokenize=False,
        score="s.py:f",
    )
    energy = {"meters": "rapl", "powercap_root": "/tree"}
    assert seen == [(expected, tmp_path, Options(content=False, retry_failed=True, energy=energy))]


@pytest.mark.parametrize(("estimated", "said"), [(True, "~1,234 J"), (False, "1,234 J")])
def test_progress_marks_joules_when_some_are_estimates(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    estimated: bool,
    said: str,
) -> None:
    """As every other place that shows them."""

    def collect(*_: object, on_progress: Callable[[Progress], None], **__: object) -> Progress:
        progress = Progress(2, 1, 1, 0, 1234.0, 60.0, estimated)
        on_progress(progress)
        return replace(progress, done=2)

    monkeypatch.setattr("otel_llm_energy.study.collect.collect", collect)
    assert main(f"study collect starter --base-url http://h:1/v1 --model a --out {tmp_path}".split()) == 0
    assert f"1 of 2 calls, {said}, 0:01:00 to go" in capsys.readouterr().err


def test_options_win_when_a_plan_says_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not given stays as in the plan; 0 is given, too."""
    plans: list[Plan] = []

    def collect(plan: Plan, *_: object, **__: object) -> Progress:
        plans.append(plan)
        return Progress(1, 1, 1, 0, 0.0, 0.0)

    monkeypatch.setattr("otel_llm_energy.study.collect.collect", collect)
    plan = make_plan({**_ENTRIES, "stream": False}, "test")
    (tmp_path / "manifest.json").write_text(json.dumps({"plan": plan.as_dict()}))
    assert main(["study", "collect", "--plan", str(tmp_path / "manifest.json"), "--warm-up", "0", "--rest", "0"]) == 0
    assert plans == [with_changes(plan, warm_up=0, rest_seconds=0.0)]

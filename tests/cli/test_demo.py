"""The demo for real: a real model, real calls, counters that follow real CPU use."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from otel_llm_energy.cli import CommandError, main
from otel_llm_energy.cli.model import MODEL_NAME
from otel_llm_energy.cli.questions import CALLS, _at_once
from otel_llm_energy.cli.screen import significant
from tests.support.answering import answering
from tests.support.children import environment_without_settings, free_port
from tests.support.powercap import MEMORY, PACKAGE, PowercapTree

if TYPE_CHECKING:
    from tests.conftest import LlamaServerFactory
    from tests.support.backends import Jaeger

_DEMO = [sys.executable, "-m", "otel_llm_energy.cli", "demo"]
_DEMO_SECONDS = 90
_ROUNDING = 1e-5  # attributes are rounded to six digits


def _run_demo(*arguments: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*_DEMO, *arguments],
        env=env or environment_without_settings(),
        capture_output=True,
        text=True,
        timeout=_DEMO_SECONDS,
        check=False,
    )


@pytest.fixture(scope="module")
def without_meter() -> dict[str, str]:
    """An environment in which no power meter can be found, whatever this machine has."""
    return environment_without_settings(
        OTEL_LLM_ENERGY_POWERCAP_ROOT="/nonexistent",
        OTEL_LLM_ENERGY_SCAPHANDRE_URL=f"http://127.0.0.1:{free_port()}/metrics",
    )


@pytest.fixture(scope="module")
def metered(powercap: PowercapTree) -> tuple[dict[str, Any], float]:
    """What ``--json`` says of a metered run, and what the counters moved meanwhile, J."""

    def counters_uj() -> int:
        return powercap.read_uj(PACKAGE) + powercap.read_uj(MEMORY)

    before_uj = counters_uj()
    done = _run_demo("--json", "--powercap", str(powercap.root))
    moved_joules = (counters_uj() - before_uj) / 1e6
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), moved_joules


def test_every_call_has_measured_joules_when_there_are_counters(metered: tuple[dict[str, Any], float]) -> None:
    """Each call says how many joules, within which bounds, by which meter."""
    calls = metered[0]["calls"]
    assert len(calls) == CALLS
    for call in calls:
        assert call["quality"] in ("measured", "shared", "degraded"), call
        assert call["meter"] == "rapl"
        assert 0 < call["lower_joules"] <= call["joules"] <= call["upper_joules"]
        assert call["joules_per_output_token"] == pytest.approx(call["joules"] / call["output_tokens"], rel=_ROUNDING)


def test_calls_share_the_server_when_four_are_asked_at_once(metered: tuple[dict[str, Any], float]) -> None:
    """Two slots and four calls: some shared a slot's time with another, and some had to queue."""
    calls = metered[0]["calls"]
    assert any(call["concurrency"] > 1.05 for call in calls)
    assert max(call["queue_seconds"] for call in calls) > 10 * min(call["queue_seconds"] for call in calls)


def test_balance_adds_up_when_all_calls_are_billed(metered: tuple[dict[str, Any], float]) -> None:
    """Metered is attributed or nobody's, counter by counter; the calls sum to what is attributed."""
    results, moved_joules = metered
    for channel in results["balance"]:
        accounted = channel["attributed_joules"] + sum(channel["unattributed_joules"].values())
        assert channel["pending_joules"] == 0
        assert accounted == pytest.approx(channel["metered_joules"], abs=1e-6)
        assert not channel["estimated"]
    attributed = sum(channel["attributed_joules"] for channel in results["balance"])
    assert sum(call["joules"] for call in results["calls"]) == pytest.approx(attributed, rel=_ROUNDING)
    assert sum(channel["metered_joules"] for channel in results["balance"]) <= moved_joules


def test_idle_power_is_known_when_the_baseline_was_waited_for(metered: tuple[dict[str, Any], float]) -> None:
    """The meters that were read are named, with their idle power; and the calls know what is above it."""
    read = metered[0]["meters"]["read"]
    assert [meter["channel"] for meter in read] == ["package-0", "package-0/dram"]
    assert all(meter["idle_watts"] > 0 for meter in read)
    assert all(call["above_idle_joules"] is not None for call in metered[0]["calls"])


@pytest.mark.e2e
def test_estimates_call_themselves_so_when_there_is_no_meter(
    without_meter: dict[str, str], llama_server: LlamaServerFactory
) -> None:
    """One sentence says that there is none; the user's own server is asked, whose model needs no name."""
    done = _run_demo("--base-url", llama_server(slots=2).base_url, env=without_meter)
    assert done.returncode == 0, done.stderr
    assert f"Asking {MODEL_NAME}" in done.stderr
    assert "Starting" not in done.stderr
    assert done.stdout.count("No power meter can be read on this machine") == 1
    assert sum("estimated cpu-estimate" in line for line in done.stdout.splitlines()) == CALLS
    assert "Σ ~" in done.stdout
    assert "= calls" in done.stdout
    assert max(len(line) for line in done.stdout.splitlines()) <= 100


def test_nothing_is_left_when_the_demo_is_broken_off_by_ctrl_c(without_meter: dict[str, str]) -> None:
    """Ctrl-C in the middle of the calls: the server is ended, the exit code says so, no traceback."""
    with subprocess.Popen(
        [*_DEMO, "--json"], env=without_meter, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as demo:
        assert demo.stderr is not None
        while "Asking" not in (line := demo.stderr.readline()):
            assert line, "the demo ended before it asked"
        (server,) = psutil.Process(demo.pid).children()
        demo.send_signal(signal.SIGINT)
        output, errors = demo.communicate(timeout=_DEMO_SECONDS)
    assert demo.returncode == 130, errors
    assert output == ""
    assert "Broken off." in errors
    assert "Traceback" not in errors
    assert not server.is_running()


@pytest.mark.parametrize(
    ("option", "named", "said"),
    [
        ("--scaphandre", "http://127.0.0.1:1/metrics", "http://127.0.0.1:1/metrics: no connection"),
        ("--powercap", "/nonexistent", "/nonexistent: no RAPL package here"),
        ("--powercap", "", ".: no RAPL package here"),
    ],
)
def test_error_names_the_meter_once_when_the_one_that_was_named_cannot_be_read(
    option: str, named: str, said: str
) -> None:
    """Who names a meter gets that one or an error, never an estimate in its place; also where the name is empty."""
    done = _run_demo("--json", "--base-url", "http://127.0.0.1:1/v1", "--model", "m", option, named)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"otel-llm-energy: {said}")
    assert done.stdout == ""


def test_error_names_the_server_when_it_does_not_answer(capfd: pytest.CaptureFixture[str]) -> None:
    """A wrong address is a sentence, not a traceback."""
    url = f"http://127.0.0.1:{free_port()}/v1"
    assert main(["demo", "--json", "--base-url", url]) == 1
    assert f"The server at {url} did not answer" in capfd.readouterr().err


@pytest.mark.parametrize("model", [[], ["--model", "m"]], ids=["the-first", "named"])
def test_error_names_the_server_when_it_is_no_model_server(
    model: list[str], without_meter: dict[str, str], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A web page, as at the address without /v1 of some servers; the client library takes it for an answer."""
    for name, value in without_meter.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("otel_llm_energy.cli.demo._wait_for_baseline", lambda energy: None)
    with answering("<html>Welcome</html>", "text/html") as url:
        assert main(["demo", "--json", "--base-url", url, *model]) == 1
    assert f"What answers at {url} is no OpenAI-compatible server." in capfd.readouterr().err


def test_error_of_one_question_is_not_lost_when_several_are_asked_at_once() -> None:
    """Each has a thread of its own."""

    def fail() -> None:
        raise CommandError("The server did not answer.")

    with pytest.raises(CommandError, match="did not answer"):
        _at_once([fail, lambda: None])


@pytest.mark.parametrize(
    ("option", "example"), [("--base-url", "http://localhost:8000/v1"), ("--otlp", "http://localhost:4318")]
)
@pytest.mark.parametrize("url", ["http://[::1", "http://localhost:99999", "localhost:4318"])
def test_error_names_the_option_when_it_is_no_url(
    option: str, example: str, url: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is fetched or asked: it was a traceback, in the end."""
    monkeypatch.setattr("otel_llm_energy.cli.demo._results", None)
    assert main(["demo", "--json", option, url]) == 1
    assert f"{option} cannot be {url!r}. Write it as {example} is written." in capfd.readouterr().err


@pytest.mark.parametrize("library", ["rich", "xllamacpp"])
def test_error_gives_the_pip_command_when_the_extra_is_missing(
    library: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A bare install says what to install before it downloads anything."""
    monkeypatch.setitem(sys.modules, library, None)
    assert main(["demo"]) == 1
    assert capfd.readouterr().err == (f"otel-llm-energy: {library} missing. Run: pip install 'otel-llm-energy[demo]'\n")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (0.012345, "0.0123"),
        (1.0, "1.00"),
        (9.999, "10.0"),
        (99.96, "100"),
        (1234.5, "1230"),
        (-4.56, "-4.56"),
    ],
)
def test_figure_has_three_digits_when_it_is_shown(value: float, shown: str) -> None:
    """Never more digits than are known, never an exponent."""
    assert significant(value) == shown


@pytest.mark.e2e
def test_spans_arrive_with_their_joules_when_an_otlp_endpoint_is_given(
    without_meter: dict[str, str], llama_server: LlamaServerFactory, jaeger: Jaeger
) -> None:
    """The spans that are shown are those that Jaeger has."""
    service = "demo-in-jaeger"
    done = _run_demo(
        *("--json", "--base-url", llama_server(slots=2).base_url, "--otlp", jaeger.otlp_http),
        env={**without_meter, "OTEL_SERVICE_NAME": service},
    )
    assert done.returncode == 0, done.stderr
    shown = {call["span_id"]: call["joules"] for call in json.loads(done.stdout)["calls"]}
    (trace,) = jaeger.await_traces(service)
    tags = {span["spanID"]: {tag["key"]: tag["value"] for tag in span["tags"]} for span in trace["spans"]}
    assert {span: tags[span]["llm.energy.joules"] for span in shown} == shown

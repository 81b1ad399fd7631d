"""A study measures as any app does: with the meters that the user named, its idle power, and the host's board."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.metrics import NoOpMeterProvider

from otel_llm_energy.cli import main
from otel_llm_energy.cli.model import MODEL_NAME
from otel_llm_energy.host.wire import State, channel_to_json
from otel_llm_energy.idle_memory import IdleMemory, machine_facts
from otel_llm_energy.instrument import Instrumentation
from otel_llm_energy.ledger.ledger import Ledger
from otel_llm_energy.meters import RaplMeter
from otel_llm_energy.meters.discovery import Discovery, OpenMeter
from otel_llm_energy.quantities import Channel, IdlePower, Reading
from otel_llm_energy.runtime import Runtime
from otel_llm_energy.servers.server import Server
from otel_llm_energy.settings import settings
from otel_llm_energy.stations import NoActivity
from otel_llm_energy.status import Status
from otel_llm_energy.study.collect import Options, collect
from otel_llm_energy.study.dataset import scan
from otel_llm_energy.study.plan import Plan, make_plan
from otel_llm_energy.tracing.books import Books
from otel_llm_energy.tracing.station import MachineAccess, Station
from tests.host.workers import crew
from tests.meters.exporters import exporter
from tests.support.powercap import PowercapTree
from tests.support.waiting import until

if TYPE_CHECKING:
    from tests.conftest import LlamaServerFactory

_RECORDED = Path(__file__).parents[1] / "meters" / "fixtures"
_IDLE_WATTS = {"package-0": 20.0, "package-0/dram": 2.0}


def _plan(folder: Path, base_url: str, **server: Any) -> Plan:
    (folder / "p.txt").write_text("Count to ten.\n")
    servers = [{"name": "llama", "base_url": base_url, "models": [MODEL_NAME], **server}]
    quick = {"max_tokens": 8, "rest_seconds": 0.0, "warm_up": 0}
    return make_plan({"prompts": str(folder / "p.txt"), "servers": servers, **quick}, "test")


def _status_once(
    plan: Plan, folder: Path, energy: dict[str, Any], holds: Callable[[Status], bool]
) -> tuple[Status, dict[str, Any], dict[str, Any]]:
    """Collect; the status once that holds, which is waited for before the calls, the only row and the session."""
    seen: list[Status] = []

    def before_calls(measuring: Instrumentation) -> None:
        until(lambda: holds(measuring.status()))
        seen.append(measuring.status())

    collect(plan, folder, Options(energy=energy), before_calls=before_calls)
    (path,) = (folder / "sessions").iterdir()
    (row,) = scan([folder]).collect().iter_rows(named=True)
    return seen[0], row, json.loads(path.read_text())


def test_processes_with_the_same_options_measure_for_each_other_when_a_study_runs_beside_them(
    tmp_path: Path, llama_server: LlamaServerFactory, powercap: PowercapTree
) -> None:
    """An app reads the meters and bills the study's calls: neither is degraded, and no joule counts twice."""
    base_url, board = llama_server(slots=2).base_url, tmp_path / "board"
    energy = {"meters": "rapl", "powercap_root": powercap.root, "idle_watts": _IDLE_WATTS, "board": board}
    with crew(base_url, powercap.root, board) as hired:
        app = hired.hire()
        until(lambda: bool(app.tell("status")["channels"]))
        _, row, session = _status_once(
            _plan(tmp_path, base_url),
            tmp_path / "out",
            energy,
            lambda status: status.board is not None and status.board.holder_pid == app.pid and bool(status.channels),
        )
        app.tell("ask 1 4")
        asked = app.finish()
    assert row["llm.energy.joules"] > 0
    assert row["llm.energy.reason"] != "board-mismatch"
    assert "board-mismatch" not in asked.reasons
    assert len(row["power_watts"]) >= 1  # of the readings at the call's edges
    assert session["meters"] == []


def test_idle_power_is_that_of_an_earlier_run_when_it_was_kept(
    tmp_path: Path, llama_server: LlamaServerFactory, powercap: PowercapTree
) -> None:
    """As after `measure_idle`."""
    kept = IdleMemory(tmp_path / "idle.json", machine_facts())
    meter = RaplMeter(powercap.root)
    kept.recall([OpenMeter(meter, tuple(meter.open()))])
    meter.close()
    kept.keep({name: [IdlePower(watts, watts, 60.0)] for name, watts in _IDLE_WATTS.items()})
    energy = {"meters": "rapl", "powercap_root": powercap.root, "idle_cache": tmp_path / "idle.json"}
    plan = _plan(tmp_path, llama_server().base_url)
    status, row, session = _status_once(plan, tmp_path / "out", energy, lambda status: bool(status.channels))
    assert {each.channel.id: each.idle_origin for each in status.channels} == dict.fromkeys(_IDLE_WATTS, "cached")
    assert row["llm.energy.method"].endswith("/cached-idle")
    assert row["power_watts"]
    assert {each["channel"] for each in session["meters"]} == _IDLE_WATTS.keys()


def test_exporter_is_read_once_when_the_plan_names_that_of_this_machine_for_a_server(
    tmp_path: Path, llama_server: LlamaServerFactory
) -> None:
    """A second client would freeze it, and its joules would count twice."""
    pages = [(_RECORDED / f"processes-{number}.txt").read_bytes() for number in range(3)]
    with exporter(*pages) as served:
        plan = _plan(tmp_path, llama_server().base_url, meter=served.url)
        energy = {"meters": "scaphandre", "scaphandre_url": served.url, "max_hold": 0}
        status, _, session = _status_once(
            plan, tmp_path / "out", energy, lambda status: bool(status.channels and status.left_out)
        )
    ids = [each.channel.id for each in status.channels]
    assert len(ids) == len(set(ids))
    assert [one["reason"] for one in session["left_out"]] == ["taken"]


@pytest.mark.e2e
def test_command_and_session_say_why_a_meter_is_left_out_when_another_works(
    tmp_path: Path,
    llama_server: LlamaServerFactory,
    powercap: PowercapTree,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nobody answers where Scaphandre is said to be."""
    monkeypatch.setenv("OTEL_LLM_ENERGY_METERS", "rapl,scaphandre")
    monkeypatch.setenv("OTEL_LLM_ENERGY_POWERCAP_ROOT", str(powercap.root))
    monkeypatch.setenv("OTEL_LLM_ENERGY_SCAPHANDRE_URL", "http://127.0.0.1:9/metrics")
    (tmp_path / "p.txt").write_text("Hello.\n")
    server = ["--base-url", llama_server().base_url, "--model", MODEL_NAME, "--max-tokens", "4", "--warm-up", "0"]
    assert main(["study", "collect", str(tmp_path / "p.txt"), *server, "--out", str(tmp_path / "out")]) == 0
    (path,) = (tmp_path / "out" / "sessions").iterdir()
    (left_out,) = json.loads(path.read_text())["left_out"]
    assert (left_out["name"], left_out["reason"]) == ("scaphandre", "meter-refused")
    assert f"scaphandre: {left_out['message']}" in capsys.readouterr().err


def test_study_is_not_relieved_of_the_meters_when_it_has_no_metrics() -> None:
    """An app that is started meanwhile would record them, but the study listens to their readings."""
    runtime = Runtime(settings({}, meters="cpu-estimate", board="off"), meter_provider=NoOpMeterProvider())
    assert not runtime._records()
    runtime.listen("127.0.0.1", 9, lambda readings: None)
    assert runtime._records()


@pytest.mark.parametrize("elsewhere", [(), (Channel("gpu-0", "gpu", "nvml"),)], ids=["all", "some"])
def test_readings_are_told_only_of_all_counters_when_another_process_reads_them(
    manual_powercap: PowercapTree, elsewhere: tuple[Channel, ...]
) -> None:
    """A GPU is not read at the edges of calls: the power of the CPU alone would be drawn as that of all."""
    meter = RaplMeter(manual_powercap.root)
    open_meter = OpenMeter(meter, tuple(meter.open()))
    station = Station(
        Books(Ledger(0)),
        MachineAccess(
            discover=lambda: Discovery((), ()),
            activity=NoActivity(),
            resolve=lambda host, port: Server(host, host, "local"),
            edge_meters=lambda: Discovery((open_meter,), ()),
        ),
        lambda: None,
    )
    told: list[Reading] = []
    station.reading_listeners.append(told.extend)
    channels = [{"channel": channel_to_json(each)} for each in (*open_meter.channels, *elsewhere)]
    station.follow(State(channels, [], None, 1.0, 0.0))
    station.read_edge()
    station.stop()
    assert {each.channel_id for each in told} == (set() if elsewhere else {each.id for each in open_meter.channels})

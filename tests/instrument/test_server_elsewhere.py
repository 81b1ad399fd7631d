"""A server that cannot be looked into: its part of the host's power comes from Scaphandre's figures of processes."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from openai import OpenAI
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import otel_llm_energy
from otel_llm_energy import ScaphandreMeter
from otel_llm_energy import conventions as names
from otel_llm_energy.meters import MeterError
from otel_llm_energy.quantities import Channel
from otel_llm_energy.servers import process_cpu_ns
from tests.conftest import LlamaServerFactory
from tests.meters.exporters import exporter as serving
from tests.support.backends import Scaphandre
from tests.support.burner import burning
from tests.support.children import free_port
from tests.support.powercap import PowerModel
from tests.support.waiting import until

RECORDED = Path(__file__).parents[1] / "meters" / "fixtures"
MODEL = PowerModel()
CALLS = 3


@pytest.mark.e2e
def test_a_neighbours_energy_is_not_the_calls_when_scaphandre_tells_the_processes_apart(
    llama_server: LlamaServerFactory,
    client: OpenAI,
    provider: TracerProvider,
    exporter: InMemorySpanExporter,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    """The real exporter, a real model, and a program that keeps the other CPU busy.

    The truth is what the server's own CPU time costs by the synthetic counters; a bill for all that the host drew above
    idle would be about twice that, and more where others use the machine too. How near it comes is for the benchmarks.
    Scaphandre knows a program's part from its second look at it on: before that there would be no neighbour for us.
    """
    server = llama_server()
    scaphandre: Scaphandre = request.getfixturevalue("scaphandre")  # after the server, or it has no command line
    address = urlsplit(server.base_url)
    command = f"cmdline:{sys.executable} -m otel_llm_energy.cli.model_server"
    meter = IdleKnown(scaphandre.url, process=command)
    handle = otel_llm_energy.instrument(
        tracer_provider=provider,
        meters="rapl",
        servers={f"{address.hostname}:{address.port}": meter},
        max_hold=60,
    )
    try:
        await_first_reading(handle)
        with burning("neighbour.py", tmp_path) as neighbour:
            until(lambda: meter.knows(neighbour.pid))
            before_ns = process_cpu_ns(server.pid)
            for _ in range(CALLS):
                client.chat.completions.create(
                    model="m", messages=[{"role": "user", "content": "Describe the ocean."}], max_tokens=100
                )
            after_ns = process_cpu_ns(server.pid)
            until(lambda: len(exporter.get_finished_spans()) == CALLS)
    finally:
        handle.uninstrument()
    assert before_ns is not None
    assert after_ns is not None
    truth = MODEL.watts_per_cpu * (1 + MODEL.memory_part) * (after_ns - before_ns) / 1e9
    said = [dict(span.attributes or {}) for span in exporter.get_finished_spans()]
    assert {(each[names.SCOPE], each[names.METER]) for each in said} == {("process", "scaphandre")}, said
    assert sum(float(str(each[names.ABOVE_IDLE_JOULES])) for each in said) == pytest.approx(truth, rel=0.3), said


class IdleKnown(ScaphandreMeter):
    """On a machine that others use too, idle power cannot be learned in seconds."""

    def open(self) -> Sequence[Channel]:
        watts = {"cpu": MODEL.idle_watts, "memory": MODEL.idle_watts * MODEL.memory_part}
        return [replace(channel, idle_watts=watts[channel.component]) for channel in super().open()]

    def knows(self, pid: int) -> bool:
        """Its newest figures show this process at work."""
        newest = self.host_powers()[-1:]
        return any(one.pid == pid and one.microwatts > 0 for host in newest for one in host.processes)


def await_first_reading(handle: otel_llm_energy.Instrumentation) -> None:
    """Wait until two readings were taken, so that calls lie between readings."""
    until(lambda: any(each.balance.metered_nj for each in handle.status().channels))


def test_one_exporter_is_asked_once_when_it_serves_two_servers(
    provider: TracerProvider, caplog: pytest.LogCaptureFixture
) -> None:
    """Two pollers would freeze it. Who each server is shows before the first call; the password never does."""
    pages = [(RECORDED / f"processes-{index}.txt").read_bytes() for index in range(3)]
    with serving(*pages) as served, caplog.at_level(logging.DEBUG):
        url = served.url.replace("//", "//joule:hush@")
        handle = otel_llm_energy.instrument(
            tracer_provider=provider,
            meters="rapl",
            servers={"ollama:11434": f"{url}#ollama", "vllm:8000": ScaphandreMeter(url, process="cmdline:vllm")},
        )
        try:
            until(lambda: (len(handle.status().servers), len(handle.status().channels)) == (2, 4))
            status = handle.status()
        finally:
            handle.uninstrument()
        assert len(served.requests) == 1
        assert b"ollama" not in served.requests[0], "what follows the # is ours"
    assert {key: server.process for key, server in status.servers.items()} == {
        "ollama:11434": "ollama",
        "vllm:8000": "cmdline:vllm",
    }
    assert {each.where for each in status.channels} == {f"ScaphandreMeter(url={served.url!r})"}
    assert {each.channel.host for each in status.channels} == {urlsplit(served.url).netloc}
    told = [str(status), *(record.getMessage() for record in caplog.records if record.name.startswith("otel_llm"))]
    assert not [text for text in told if "hush" in text]


def test_status_names_a_server_elsewhere_and_the_setting_when_nothing_meters_it(
    provider: TracerProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its calls are `remote`; who asks why must find the address there, and what to write for it, once."""
    monkeypatch.setenv("OPENAI_BASE_URL", "http://gpu-box.example:8000/v1")
    handle = otel_llm_energy.instrument(tracer_provider=provider, meters="cpu-estimate")
    try:
        (line,) = (line for line in str(handle.status()).splitlines() if "gpu-box" in line)
    finally:
        handle.uninstrument()
    assert line.startswith("server gpu-box.example:8000: is on another machine, and no meter is named for it")
    assert "servers={'gpu-box.example:8000': 'http://HOST:8080/metrics#PROCESS'}" in line


def test_two_hosts_are_told_apart_when_their_counters_have_the_same_names(
    provider: TracerProvider, tmp_path: Path
) -> None:
    """Each has a package-0: in status() and in the metrics their channels say where they are read."""
    pages = [(RECORDED / f"two-sockets-{index}.txt").read_bytes() for index in range(2)]
    reader = InMemoryMetricReader()
    with serving(*pages) as one, serving(*pages) as two:
        hosts = {urlsplit(each.url).netloc for each in (one, two)}
        handle = otel_llm_energy.instrument(
            tracer_provider=provider,
            meter_provider=MeterProvider([reader]),
            meters="rapl",
            powercap_root=tmp_path,  # nothing of this machine
            servers={"one:11434": one.url, "two:11434": two.url},
        )
        try:
            until(lambda: sum(each.balance.metered_nj > 0 for each in handle.status().channels) == 8)
            status = handle.status()
        finally:
            handle.uninstrument()
    assert {(each.channel.id, each.channel.host) for each in status.channels} == {
        (name, host) for name in ("package-0", "package-1", "package-0/dram", "package-1/dram") for host in hosts
    }
    assert all(host in str(status) for host in hosts)
    data = reader.get_metrics_data()
    assert data is not None
    points = [
        dict(point.attributes or {})
        for scope in data.resource_metrics[0].scope_metrics
        for metric in scope.metrics
        if metric.name in (names.METERED.name, names.METER_LAG.name)
        for point in metric.data.data_points
    ]
    assert len(points) >= 8
    assert {point[names.HOST] for point in points} == hosts


def test_nothing_is_to_be_started_here_when_it_is_a_servers_own_exporter_that_is_down(
    provider: TracerProvider, tmp_path: Path
) -> None:
    """It is that host's, even where it is reached by loopback; whose it is stands in its name."""
    address = f"127.0.0.1:{free_port()}"
    handle = otel_llm_energy.instrument(
        tracer_provider=provider,
        meters="rapl",
        powercap_root=tmp_path,  # nothing of this machine
        servers={"ollama:11434": f"http://{address}/metrics#ollama"},
    )
    try:
        until(lambda: len(handle.status().left_out) == 2)
        local, other = handle.status().left_out
    finally:
        handle.uninstrument()
    assert (local.name, bool(local.mend)) == ("rapl", True)
    assert (other.name, other.reason, other.mend) == (f"scaphandre of {address}", "meter-refused", "")


@pytest.mark.parametrize(
    ("idle_watts", "known"),
    [
        ({"package-0": 18, "package-1/dram": 2}, {"package-0": 18, "package-1/dram": 2}),
        (33, {"package-0": 33, "package-1": 33}),
    ],
)
def test_idle_power_is_that_of_a_servers_meter_too_when_it_is_given(
    idle_watts: float | dict[str, float],
    known: dict[str, float],
    provider: TracerProvider,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """By counter, or for each package; and no warning that this machine has no counter of that name."""
    with serving((RECORDED / "two-sockets-0.txt").read_bytes()) as served:
        handle = otel_llm_energy.instrument(
            tracer_provider=provider,
            meters="cpu-estimate",
            servers={"one:11434": served.url},
            idle_watts=idle_watts,
        )
        try:
            until(lambda: len(handle.status().channels) == 5)
            channels = handle.status().channels
        finally:
            handle.uninstrument()
    given = {each.channel.id: each.idle_watts for each in channels if each.channel.host and each.idle_origin == "given"}
    assert given == known
    assert "idle_watts" not in caplog.text


def test_measuring_idle_says_that_it_is_for_this_machine_alone_when_servers_have_meters(tmp_path: Path) -> None:
    """Who has a meter only there would look for the fault here."""
    with serving((RECORDED / "two-sockets-0.txt").read_bytes()) as served:
        url = served.url
        with pytest.raises(
            MeterError, match=r"no RAPL package here.*that of the meters in servers= is learned"
        ) as told:
            otel_llm_energy.measure_idle(1, meters="rapl", powercap_root=tmp_path, servers={"one:11434": url})
    assert told.value.reason == "meter-not-found"

"""Two hosts, each with a Scaphandre and an Ollama, and one Prometheus over both: each call is billed by its own host.

The hosts are network and process namespaces where these are permitted (root), else two addresses of loopback, which see
each other's processes; the test's output says which. Everything but the counters is real.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import ollama
import psutil
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import otel_llm_energy
from otel_llm_energy import PrometheusMeter, ScaphandreMeter
from otel_llm_energy import conventions as names
from otel_llm_energy.servers import process_cpu_ns
from tests.support.backends import Ollama, Prometheus, running_ollama, running_prometheus, running_scaphandre
from tests.support.burner import burning
from tests.support.hosts import Host, two_hosts
from tests.support.powercap import MEMORY, PACKAGE, PowercapTree
from tests.support.waiting import until

pytestmark = pytest.mark.e2e

PROMETHEUS_CONFIG = """\
scrape_configs:
  - job_name: scaphandre
    scrape_interval: 3s
    static_configs: [{{targets: {targets}}}]
"""
WATTS = (20.0, 50.0)
WATTS_PER_CPU = (60.0, 200.0)
_WAIT_SECONDS = 60


class Counters:
    """A host's counters, which follow its Ollama's own CPU time; what else the machine does is not this host's."""

    def __init__(self, tree: PowercapTree, server_pid: int, watts: float, watts_per_cpu: float) -> None:
        self._tree = tree
        self._server = psutil.Process(server_pid)
        self._watts, self._watts_per_cpu = watts, watts_per_cpu
        self._start_ns = time.monotonic_ns()
        self._cpu_ns: dict[int, int] = {}

    def joules(self, length_ns: float, cpu_ns: float) -> float:
        """What so much time and CPU time cost."""
        return (self._watts * length_ns + self._watts_per_cpu * cpu_ns) / 1e9

    def cpu_ns(self) -> int:
        """CPU time of the server and its children so far."""
        for process in [self._server, *self._server.children(recursive=True)]:
            self._cpu_ns[process.pid] = process_cpu_ns(process.pid) or self._cpu_ns.get(process.pid, 0)
        return sum(self._cpu_ns.values())

    def step(self) -> None:
        """Bring both counters up to now."""
        energy_uj = self.joules(time.monotonic_ns() - self._start_ns, self.cpu_ns()) * 1e6
        self._tree.set_uj(PACKAGE, round(0.9 * energy_uj))
        self._tree.set_uj(MEMORY, round(0.1 * energy_uj))


@dataclass(frozen=True)
class Metered:
    """A host under test."""

    host: Host
    ollama: Ollama
    counters: Counters
    scaphandre_url: str

    @property
    def address(self) -> str:
        """Of its Ollama, as ``host:port``."""
        return urlsplit(self.ollama.host).netloc

    @property
    def instance(self) -> str:
        """What Prometheus calls it."""
        return urlsplit(self.scaphandre_url).netloc

    @property
    def process(self) -> str | None:
        """Of hosts that see each other's processes, Ollama's is not to be told."""
        return "ollama" if self.host.namespaces else None


@contextmanager
def feeding(counters: list[Counters]) -> Iterator[None]:
    """The counters move for the length of the block."""
    stop = threading.Event()

    def feed() -> None:
        while not stop.wait(0.01):
            for each in counters:
                each.step()

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.fixture(scope="module")
def hosts(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Metered]]:
    """Both hosts, under way."""
    with ExitStack() as stack:
        found: list[Metered] = []
        for host, watts, watts_per_cpu in zip(stack.enter_context(two_hosts()), WATTS, WATTS_PER_CPU, strict=True):
            folder = tmp_path_factory.mktemp("host")
            tree = stack.enter_context(PowercapTree(folder / "powercap"))
            server = stack.enter_context(running_ollama(model_path, folder, host=host))
            scaphandre = stack.enter_context(running_scaphandre(tree.root, folder, host))
            found.append(Metered(host, server, Counters(tree, server.pid, watts, watts_per_cpu), scaphandre.url))
        kind = "namespaces" if found[0].host.namespaces else "loopback addresses (no namespaces: not root)"
        say(f"two hosts as {kind}: {', '.join(each.address for each in found)}")
        for each in found:
            ask(each)  # loads the model, before the counters begin
        stack.enter_context(feeding([each.counters for each in found]))
        yield found


@pytest.fixture(scope="module")
def prometheus(hosts: list[Metered], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """One over both hosts, which has scraped each a few times."""
    folder = tmp_path_factory.mktemp("prometheus")
    config = folder / "prometheus.yml"
    config.write_text(PROMETHEUS_CONFIG.format(targets=json.dumps([each.instance for each in hosts])))
    with running_prometheus(config, folder) as running:
        until(lambda: len(running.query("count_over_time(scaph_host_energy_microjoules[1m]) > 2")) == 2, _WAIT_SECONDS)
        yield running


@pytest.fixture
def exported() -> InMemorySpanExporter:
    """What the app exports."""
    return InMemorySpanExporter()


@pytest.fixture
def provider(exported: InMemorySpanExporter) -> Iterator[TracerProvider]:
    """The app's tracing."""
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exported))
    yield provider
    provider.shutdown()


def say(line: str) -> None:
    """For who runs this with ``-s``."""
    sys.stdout.write(f"\n{line}\n")


def ask(host: Metered) -> None:
    """A call of some length."""
    ollama.Client(host.ollama.host).generate(
        model=host.ollama.model,
        prompt="Describe the ocean.",
        options={"num_predict": 150, "seed": 1, "temperature": 0},
        keep_alive=-1,
    )


def billed(spans: list[ReadableSpan], host: Metered) -> dict[str, float]:
    """Sums over the calls that went to this host: joules above idle, and all; seconds of work."""
    mine = [
        dict(span.attributes or {})
        for span in spans
        if (span.attributes or {}).get("server.port") == urlsplit(host.ollama.host).port
    ]
    assert mine
    scope = "process" if host.process else "host"
    for said in mine:
        assert said[names.QUALITY] in ("measured", "degraded", "shared"), said.get(names.REASON)
        assert said[names.SCOPE] == scope, said
    work = ("llm.server.prefill_seconds", "llm.server.decode_seconds")
    return {
        "joules": sum(float(str(said[names.JOULES])) for said in mine),
        "seconds": sum(float(str(said[key])) for said in mine for key in work),
        "calls": len(mine),
    }


@pytest.mark.parametrize("meter", ["prometheus", "scaphandre"])
def test_each_call_is_billed_by_its_own_host(
    meter: str,
    hosts: list[Metered],
    prometheus: Prometheus,
    provider: TracerProvider,
    exported: InMemorySpanExporter,
    tmp_path: Path,
) -> None:
    """Calls to both at once: each gets the watts of its host, which differ by a factor of three, for its own work.

    A neighbour on the machine is no part of either host.
    """
    servers: dict[str, PrometheusMeter | ScaphandreMeter] = {}
    for each in hosts:
        if meter == "prometheus":
            servers[each.address] = PrometheusMeter(prometheus.url, instance=each.instance, process=each.process)
        else:
            servers[each.address] = ScaphandreMeter(each.scaphandre_url, process=each.process)
    if meter == "scaphandre":
        prometheus_is_to_pause(prometheus)
    handle = otel_llm_energy.instrument(
        tracer_provider=provider, meters="rapl", servers=servers, idle_cache="off", clients=["ollama"]
    )
    try:
        until(lambda: baseline_is_known(handle, len(hosts)), _WAIT_SECONDS)
        cpu_ns = [each.counters.cpu_ns() for each in hosts]
        with burning("neighbour.py", tmp_path, duty=0.3), ThreadPoolExecutor(2) as pool:
            for _ in range(3):
                list(pool.map(ask, hosts))
        cpu_ns = [each.counters.cpu_ns() - before for each, before in zip(hosts, cpu_ns, strict=True)]
        until(lambda: len(exported.get_finished_spans()) == 6, _WAIT_SECONDS)
    finally:
        handle.uninstrument()
    for each, used_ns in zip(hosts, cpu_ns, strict=True):
        bill = billed(list(exported.get_finished_spans()), each)
        truth = each.counters.joules(bill["seconds"] * 1e9, used_ns)
        say(f"{meter}, {each.address}: billed {bill['joules']:.1f} J, truth {truth:.1f} J")
        assert bill["joules"] == pytest.approx(truth, rel=0.2)


def prometheus_is_to_pause(prometheus: Prometheus) -> None:
    """Only one client may ask a Scaphandre."""
    psutil.Process(prometheus.pid).suspend()


def baseline_is_known(handle: otel_llm_energy.Instrumentation, hosts: int) -> bool:
    """Idle power of each host's socket has been learned."""
    sockets = [each for each in handle.status().channels if each.channel.id == "package-0"]
    return len(sockets) == hosts and all(each.idle_watts is not None for each in sockets)

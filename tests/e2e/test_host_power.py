"""The host's own power beside the calls': the real Scaphandre, which the agent scrapes, in the real Prometheus."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from otel_llm_energy.meters import PrometheusMeter
from tests.e2e.stack import awaited
from tests.support.backends import CONFIG, Collector, Prometheus, Scaphandre, running_prometheus
from tests.support.children import free_port
from tests.support.powercap import MEMORY, PACKAGE, PowercapTree

pytestmark = pytest.mark.e2e

_SCRAPES = 5
_LEAST_WATTS = 18.0  # the synthetic socket idles at 20 W
_SAFE_SECONDS = 2.0  # two requests closer than that freeze the exporter


@pytest.fixture
def prometheus(scaphandre: Scaphandre, tmp_path: Path) -> Iterator[Prometheus]:
    """Behind an agent that scrapes Scaphandre and a gateway whose other back ends are away."""
    folders = [tmp_path / name for name in ("agent", "gateway")]
    for folder in folders:
        folder.mkdir()
    with running_prometheus(CONFIG / "prometheus.yaml", tmp_path) as running:
        away = {name: f"127.0.0.1:{free_port()}" for name in ("JAEGER", "TEMPO")}
        outlets = {**away, "PROMETHEUS": running.url, "LOG_LEVEL": "fatal"}
        with Collector(["gateway.yaml"], folders[1], outlets) as gateway:
            sources = {"GATEWAY": gateway.otlp_grpc, "SCAPHANDRE": urlsplit(scaphandre.url).netloc}
            with Collector(["agent.yaml", "agent-scaphandre.yaml"], folders[0], sources):
                yield running


def test_power_of_host_and_sockets_is_in_prometheus_when_the_agent_scrapes_scaphandre(
    prometheus: Prometheus, powercap: PowercapTree
) -> None:
    """So seldom that each scrape finds the counters moved, and under the names that PrometheusMeter asks for."""
    before_uj = _counted_uj(powercap)
    samples = awaited(lambda: _samples(prometheus), lambda found: len(found) >= _SCRAPES)
    assert len(samples) >= _SCRAPES
    for (earlier, before), (later, after) in pairwise(samples):
        assert later - earlier > _SAFE_SECONDS
        assert after > before, "The exporter was frozen."
    assert before_uj <= samples[-1][1] <= _counted_uj(powercap)
    for name in ("scaph_host_power_microwatts", "scaph_socket_power_microwatts"):
        (series,) = prometheus.query(name)
        assert series["metric"]["job"] == "scaphandre"
        assert float(series["value"][1]) / 1e6 > _LEAST_WATTS
    meter = PrometheusMeter(prometheus.url)
    assert [channel.id for channel in meter.open()] == ["package-0", "package-0/dram"]
    assert {reading.channel_id for reading in meter.read()} == {"package-0", "package-0/dram"}


def _samples(prometheus: Prometheus) -> list[tuple[float, float]]:
    """When, s, and what the host's counter was, uJ."""
    series = prometheus.query("scaph_host_energy_microjoules[5m]")
    return [(at, float(value)) for each in series for at, value in each["values"]]


def _counted_uj(tree: PowercapTree) -> int:
    return tree.read_uj(PACKAGE) + tree.read_uj(MEMORY)

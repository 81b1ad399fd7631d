"""Workers of one service that name no instance do not overwrite each other's totals."""

from __future__ import annotations

from pathlib import Path

import pytest
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource

from otel_llm_energy import conventions
from tests.e2e.stack import awaited
from tests.support.backends import CONFIG, Collector, running_prometheus
from tests.support.children import free_port

pytestmark = pytest.mark.e2e


def test_workers_count_apart_when_they_say_which_process_they_are(tmp_path: Path) -> None:
    """The agent makes an instance of host and process where an older SDK names none."""
    (tmp_path / "gateway").mkdir()
    (tmp_path / "agent").mkdir()
    nowhere = f"127.0.0.1:{free_port()}"
    with running_prometheus(CONFIG / "prometheus.yaml", tmp_path) as prometheus:
        outlets = {"PROMETHEUS": prometheus.url, "JAEGER": nowhere, "TEMPO": nowhere}
        with (
            Collector(["gateway.yaml"], tmp_path / "gateway", outlets) as gateway,
            Collector(["agent.yaml"], tmp_path / "agent", {"GATEWAY": gateway.otlp_grpc}) as agent,
        ):
            for pid in (11, 12):
                _consume(joules=pid, pid=pid, endpoint=agent.otlp_http)
            found = awaited(
                lambda: prometheus.query("llm_energy_consumption_joules_total"), lambda all_: len(all_) == 2
            )
    assert {one["metric"]["instance"]: one["value"][1] for one in found} == {"host:11": "11", "host:12": "12"}


def _consume(joules: float, pid: int, endpoint: str) -> None:
    """What one worker exports."""
    resource = Resource({"service.name": "workers", "host.name": "host", "process.pid": pid})
    provider = MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter(f"{endpoint}/v1/metrics"))], resource)
    metric = conventions.CONSUMPTION
    provider.get_meter("test").create_counter(metric.name, metric.unit).add(joules)
    provider.shutdown()

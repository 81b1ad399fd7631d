"""Collectors that crash, a back end that is away, and sampling: what is lost, and what is not."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

from otel_llm_energy import conventions as names
from tests.e2e.spans import JaegerSpan, spans_of
from tests.e2e.stack import Stack, awaited, run_app, running_app, running_stack
from tests.e2e.whole_way import SPANS
from tests.support.backends import CONFIG, Collector, Jaeger, Ollama, Tempo, running_prometheus
from tests.support.children import free_port
from tests.support.powercap import PowercapTree

if TYPE_CHECKING:
    from tests.conftest import LlamaServerFactory

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

_QUESTIONS = SPANS // 4
_OUTAGE_SECONDS = float(os.environ.get("E2E_OUTAGE_SECONDS", "6"))
_AGENT_OUTAGE_SECONDS = 3.0
_PROMETHEUS_OUTAGE_SECONDS = 8.0
_CALLS = 80
_KEEP_ABOVE_JOULES = 40.0
_SAME = 1e-3


@pytest.fixture
def stack(tmp_path: Path, tempo: Tempo) -> Iterator[Stack]:
    """Agent, gateway, Tempo and Prometheus; no Jaeger yet."""
    with running_stack(tmp_path, tempo) as running:
        yield running


def test_no_span_is_lost_when_collectors_crash_in_mid_run_and_jaeger_is_away(
    stack: Stack, llama_server: LlamaServerFactory, ollama: Ollama, powercap: PowercapTree
) -> None:
    """The gateway is killed, then the agent, each for some seconds; Jaeger comes only when all is over."""
    env = {
        "OPENAI_BASE_URL": llama_server().base_url,
        "OLLAMA_HOST": ollama.host,
        "APP_MODEL": ollama.model,
        "APP_QUESTIONS": str(_QUESTIONS),
        "APP_NOBODY": f"http://127.0.0.1:{free_port()}/v1",
        "OTEL_LLM_ENERGY_POWERCAP_ROOT": str(powercap.root),
    }
    with running_app("whole_way.py", "outages", stack.agent.otlp_http, env) as app:
        assert app.stdout is not None
        for line in app.stdout:
            if line == "answered 1\n":
                _crash(stack.gateway, _OUTAGE_SECONDS)
            if line == "answered 4\n":
                _crash(stack.agent, _AGENT_OUTAGE_SECONDS)
        assert app.wait() == 0
    with stack.jaeger() as jaeger:
        found = awaited(lambda: _by_id(jaeger, "outages"), lambda spans: len(spans) >= SPANS)
    assert len(found) == SPANS
    roots = [span for span in found.values() if span.parent_id is None]
    assert len(roots) == _QUESTIONS
    assert all(names.SUBTREE_JOULES in root.attributes for root in roots)


def test_totals_stay_whole_when_a_tenth_of_the_traces_is_kept(
    tmp_path: Path, llama_server: LlamaServerFactory, powercap: PowercapTree, tempo: Tempo
) -> None:
    """Prometheus has what the ledger billed; every trace above the threshold is in Jaeger, and few of the others."""
    sampling = {"KEEP_ABOVE_JOULES": str(_KEEP_ABOVE_JOULES), "DECISION_WAIT": "5s"}
    env = {
        "OPENAI_BASE_URL": llama_server().base_url,
        "APP_CALLS": str(_CALLS),
        "OTEL_LLM_ENERGY_POWERCAP_ROOT": str(powercap.root),
    }
    with running_stack(tmp_path, tempo, sampling) as stack, stack.jaeger() as jaeger:
        calls: dict[str, float] = json.loads(run_app("many_calls.py", "sampled", stack.gateway.otlp_http, env))
        expected = {trace_id for trace_id, joules in calls.items() if joules > _KEEP_ABOVE_JOULES}
        kept = awaited(lambda: {span.trace_id for span in _by_id(jaeger, "sampled").values()}, expected.issubset)
        (total,) = stack.prometheus.query('sum(llm_energy_consumption_joules_total{job="sampled"})')
        (count,) = stack.prometheus.query('sum(llm_energy_operation_joules_count{job="sampled"})')
    assert len(calls) == _CALLS
    assert len(expected) >= _CALLS // 8
    assert expected <= kept
    assert len(kept - expected) < (_CALLS - len(expected)) / 2  # 7 of 70 on average
    assert float(total["value"][1]) == pytest.approx(sum(calls.values()), rel=_SAME)
    assert float(count["value"][1]) == _CALLS


def test_total_of_a_process_arrives_when_prometheus_is_away_until_it_has_ended(tmp_path: Path) -> None:
    """It sends no sample after that one, which would make up for it."""
    port = free_port()
    outlets = {
        "JAEGER": f"127.0.0.1:{free_port()}",
        "TEMPO": f"127.0.0.1:{free_port()}",
        "PROMETHEUS": f"http://127.0.0.1:{port}",
    }
    with Collector(["gateway.yaml"], tmp_path, outlets) as gateway:
        exporter = OTLPMetricExporter(f"{gateway.otlp_http}/v1/metrics")
        process = MeterProvider([PeriodicExportingMetricReader(exporter)])
        process.get_meter("test").create_counter(names.CONSUMPTION.name, "J").add(42.0)
        process.shutdown()
        time.sleep(_PROMETHEUS_OUTAGE_SECONDS)  # the outage itself
        with running_prometheus(CONFIG / "prometheus.yaml", tmp_path, port) as prometheus:
            (total,) = awaited(lambda: prometheus.query("sum(llm_energy_consumption_joules_total)"), bool)
    assert float(total["value"][1]) == 42.0


def _crash(collector: Collector, seconds: float) -> None:
    collector.kill()
    time.sleep(seconds)  # the outage itself
    collector.start()


def _by_id(jaeger: Jaeger, service: str) -> dict[str, JaegerSpan]:
    """What has arrived, once each: after a crash some may come twice."""
    return {span.span_id: span for span in spans_of(jaeger.traces(service))}

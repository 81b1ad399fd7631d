"""LLM spans of other libraries whose calls nobody observes: each is a call of its own where its server is known."""

from __future__ import annotations

import gc
import json
import time
import urllib.request
import weakref
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from openai import OpenAI
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import otel_llm_energy
from otel_llm_energy import Instrumentation
from otel_llm_energy import conventions as names
from tests.conftest import LlamaServerFactory
from tests.instrument.asking import QUESTION, ask, measuring, said
from tests.support.powercap import PowercapTree
from tests.support.waiting import until

_CHAT = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": "llama.cpp"}


@pytest.fixture
def base_url(llama_server: LlamaServerFactory) -> str:
    return llama_server().base_url


@pytest.fixture
def address(base_url: str) -> dict[str, Any]:
    parts = urlsplit(base_url)
    return {"server.address": parts.hostname, "server.port": parts.port}


@pytest.fixture
def reader() -> InMemoryMetricReader:
    return InMemoryMetricReader()


@pytest.fixture
def energy(provider: TracerProvider, reader: InMemoryMetricReader, powercap: PowercapTree) -> Iterator[Instrumentation]:
    with measuring(provider, powercap, meter_provider=MeterProvider([reader])) as energy:
        yield energy


@pytest.fixture
def tracer(provider: TracerProvider) -> trace.Tracer:
    return provider.get_tracer("another")


def ask_unobserved(base_url: str) -> dict[str, Any]:
    """With a client that is not ours to see."""
    body = {"model": "m", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 16}
    request = urllib.request.Request(f"{base_url}/chat/completions", json.dumps(body).encode())
    request.add_header("content-type", "application/json")
    with urllib.request.urlopen(request) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


def operations(reader: InMemoryMetricReader) -> int:
    """How many calls the metrics counted."""
    data = reader.get_metrics_data()
    metrics = data.resource_metrics[0].scope_metrics if data and data.resource_metrics else []
    points = [p for each in metrics for m in each.metrics if m.name == names.OPERATION.name for p in m.data.data_points]
    return sum(getattr(point, "count", 0) for point in points)


@pytest.mark.parametrize(
    "key", ["gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens", "llm.token_count.completion"]
)
def test_span_that_names_its_server_is_billed(
    key: str,
    base_url: str,
    address: dict[str, Any],
    energy: Instrumentation,
    tracer: trace.Tracer,
    exporter: InMemorySpanExporter,
) -> None:
    """By the server's work in its time; tokens by whichever name, old or new."""
    theirs = {**_CHAT, **address}
    with tracer.start_as_current_span("app"), tracer.start_as_current_span("theirs", attributes=theirs) as span:
        ask_unobserved(base_url)
        span.set_attribute(key, 16)
    energy.force_flush()
    bill = said(exporter, "theirs")
    assert bill[names.QUALITY] in ("measured", "shared", "degraded"), bill
    assert bill[names.JOULES] > 0
    assert bill[names.JOULES_PER_OUTPUT_TOKEN] == pytest.approx(bill[names.JOULES] / 16, rel=1e-4)
    assert said(exporter, "app")[names.SUBTREE_JOULES] == bill[names.JOULES]


def test_span_is_billed_up_to_its_end_when_that_is_told_later(
    base_url: str,
    address: dict[str, Any],
    energy: Instrumentation,
    tracer: trace.Tracer,
    exporter: InMemorySpanExporter,
) -> None:
    """What the server did for others since then is not its own."""
    theirs = {**_CHAT, **address}
    ask_unobserved(base_url)
    with tracer.start_as_current_span("at once", attributes=theirs):
        ask_unobserved(base_url)
    later = tracer.start_span("later", attributes=theirs)
    ask_unobserved(base_url)
    ended_unix_ns = time.time_ns()
    for _ in range(5):
        ask_unobserved(base_url)
    later.end(ended_unix_ns)
    energy.force_flush()
    assert said(exporter, "later")[names.JOULES] < 3 * said(exporter, "at once")[names.JOULES]


def test_there_is_one_bill_when_the_call_is_observed_as_well(
    client: OpenAI,
    address: dict[str, Any],
    energy: Instrumentation,
    tracer: trace.Tracer,
    exporter: InMemorySpanExporter,
    reader: InMemoryMetricReader,
) -> None:
    """The client's claim is the span's."""
    with tracer.start_as_current_span("theirs", attributes={**_CHAT, **address}):
        ask(client)
    energy.force_flush()
    assert said(exporter, "theirs")[names.JOULES] > 0
    assert "llm.server.decode_seconds" in said(exporter, "theirs")
    assert names.SUBTREE_JOULES not in said(exporter, "theirs")
    assert len(exporter.get_finished_spans()) == 1
    assert operations(reader) == 1


def test_there_is_one_bill_when_two_libraries_make_a_span_for_one_call(
    client: OpenAI,
    address: dict[str, Any],
    energy: Instrumentation,
    tracer: trace.Tracer,
    exporter: InMemorySpanExporter,
    reader: InMemoryMetricReader,
) -> None:
    """An agent framework's and, below it, that of an instrumentation of its client: the inner one's is the bill."""
    with tracer.start_as_current_span("outer", attributes={**_CHAT, **address}):
        with tracer.start_as_current_span("inner", attributes={**_CHAT, **address}):
            ask(client)
        with tracer.start_as_current_span("again", attributes=_CHAT):
            ask(client)
    energy.force_flush()
    outer, inner, again = (said(exporter, name) for name in ("outer", "inner", "again"))
    assert inner[names.QUALITY] != "shared"
    assert names.JOULES not in outer
    assert names.QUALITY not in outer
    assert outer[names.SUBTREE_JOULES] == pytest.approx(inner[names.JOULES] + again[names.JOULES], rel=1e-4)
    assert operations(reader) == 2


def test_span_that_names_its_server_when_it_ends_is_billed_for_what_was_not_shared_out_yet(
    base_url: str, energy: Instrumentation, tracer: trace.Tracer, exporter: InMemorySpanExporter
) -> None:
    """OpenLLMetry's ``gen_ai.openai.api_base`` comes then; the figure is there, or a reason."""
    with tracer.start_as_current_span("theirs", attributes=_CHAT) as span:
        ask_unobserved(base_url)
        span.set_attribute("gen_ai.openai.api_base", f"{base_url}/")
    energy.force_flush()
    bill = said(exporter, "theirs")
    assert bill.get(names.REASON) != "server_unknown"
    assert names.JOULES in bill or names.REASON in bill


def test_span_without_a_server_says_that_it_is_unknown(
    base_url: str, energy: Instrumentation, tracer: trace.Tracer, exporter: InMemorySpanExporter
) -> None:
    """Never a figure; containers and notes say nothing at all."""
    with tracer.start_as_current_span("agent", attributes={"gen_ai.operation.name": "invoke_agent"}):
        with tracer.start_as_current_span("theirs", attributes=_CHAT):
            ask_unobserved(base_url)
        note = tracer.start_span("note", attributes=_CHAT, start_time=1_000)
        note.end(1_000)
    energy.force_flush()
    bill = said(exporter, "theirs")
    assert (bill[names.QUALITY], bill[names.REASON]) == ("unavailable", "server_unknown")
    assert names.JOULES not in bill
    for name in ("agent", "note"):
        assert not any(key.startswith("llm.energy") for key in said(exporter, name))


def test_conversation_is_on_llm_spans_of_other_libraries(
    energy: Instrumentation, tracer: trace.Tracer, exporter: InMemorySpanExporter
) -> None:
    """On those that are LLM spans, and not over an id of their own."""
    own = {"gen_ai.conversation.id": "own"}
    with otel_llm_energy.conversation("ours"), tracer.start_as_current_span("app"):
        tracer.start_span("theirs", attributes=_CHAT).end()
        tracer.start_span("named", attributes={**_CHAT, **own}).end()
    energy.force_flush()
    ids = {span.name: (span.attributes or {}).get("gen_ai.conversation.id") for span in exporter.get_finished_spans()}
    assert ids == {"app": None, "theirs": "ours", "named": "own"}


@pytest.mark.usefixtures("energy")
def test_span_that_is_dropped_without_an_end_is_not_kept(tracer: trace.Tracer, address: dict[str, Any]) -> None:
    """It may hold a prompt, and nobody ends it any more."""
    span = tracer.start_span("chat", attributes={**_CHAT, **address})
    dropped = weakref.ref(span)
    del span
    until(lambda: (gc.collect(), dropped() is None)[1])

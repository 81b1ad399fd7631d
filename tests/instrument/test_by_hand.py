"""A processor that is wired by hand, beside an exporter that is to get no energy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from openai import OpenAI
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, NumberDataPoint
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import otel_llm_energy
from otel_llm_energy import EnergySpanProcessor, RaplMeter, conventions
from otel_llm_energy.instrument import active_runtime
from otel_llm_energy.tracing.enrich import Style
from tests.support.powercap import PowercapTree
from tests.support.waiting import until

if TYPE_CHECKING:
    from tests.conftest import LlamaServerFactory


def test_only_the_wired_exporter_gets_joules_when_a_processor_is_wired_by_hand(
    llama_server: LlamaServerFactory, powercap: PowercapTree
) -> None:
    """`instrument` measures for the processor and leaves the provider's other exporters alone."""
    with_energy, without = InMemorySpanExporter(), InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(EnergySpanProcessor(SimpleSpanProcessor(with_energy)))
    provider.add_span_processor(SimpleSpanProcessor(without))
    handle = otel_llm_energy.instrument(tracer_provider=provider, meters=RaplMeter(powercap.root))
    try:
        assert handle.status().tracing == "wired by hand"
        _ask(llama_server().base_url)
        assert provider.force_flush()
    finally:
        handle.uninstrument()
        provider.shutdown()
    (enriched,), (plain,) = with_energy.get_finished_spans(), without.get_finished_spans()
    assert (enriched.attributes or {})[conventions.JOULES]
    assert conventions.QUALITY not in (plain.attributes or {})


@pytest.mark.parametrize("told", ["at its start", "at its end"])
def test_call_of_another_library_is_one_call_when_its_span_comes_to_two_wired_processors(
    told: str, powercap: PowercapTree
) -> None:
    """A claim for each would halve its joules; one that nobody closes would take part of those of all later calls."""
    exporters = [InMemorySpanExporter(), InMemorySpanExporter()]
    provider = TracerProvider(shutdown_on_exit=False)
    for exporter in exporters:
        provider.add_span_processor(EnergySpanProcessor(SimpleSpanProcessor(exporter)))
    handle = otel_llm_energy.instrument(tracer_provider=provider, meters=RaplMeter(powercap.root))
    runtime = active_runtime()
    assert runtime is not None
    books = runtime.desk.stations[0].books
    theirs = {"gen_ai.operation.name": "chat", "server.address": "127.0.0.1", "server.port": 9}
    try:
        until(lambda: bool(handle.status().channels))
        span = provider.get_tracer("another").start_span("theirs", attributes=theirs if told == "at its start" else {})
        span.set_attributes(theirs)
        span.end()
        handle.force_flush()
        assert (books.opened, books.closed) == (1, 1)
    finally:
        handle.uninstrument()
    first, second = (exporter.get_finished_spans()[0].attributes or {} for exporter in exporters)
    assert conventions.QUALITY in first
    assert first == second


def test_processors_hold_for_as_long_as_each_was_told_when_they_are_wired_by_hand(powercap: PowercapTree) -> None:
    """Else for as long as `instrument` was told. One that holds nothing is for a user's tests."""
    processors = [EnergySpanProcessor(SimpleSpanProcessor(InMemorySpanExporter()), max_hold_seconds=0)]
    processors.append(EnergySpanProcessor(SimpleSpanProcessor(InMemorySpanExporter())))
    provider = TracerProvider(shutdown_on_exit=False)
    for processor in processors:
        provider.add_span_processor(processor)
    handle = otel_llm_energy.instrument(tracer_provider=provider, meters=RaplMeter(powercap.root), max_hold=7)
    try:
        until(lambda: [processor.gate.max_hold_seconds for processor in processors] == [0, 7])
    finally:
        handle.uninstrument()


def test_processors_say_as_much_as_each_was_told_when_they_are_wired_by_hand(powercap: PowercapTree) -> None:
    """Else as much as `instrument` was told, also if it is told something else the next time."""
    exporters = [InMemorySpanExporter(), InMemorySpanExporter()]
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(EnergySpanProcessor(SimpleSpanProcessor(exporters[0]), style=Style("minimal")))
    provider.add_span_processor(EnergySpanProcessor(SimpleSpanProcessor(exporters[1])))
    said: list[tuple[bool, bool, bool]] = []
    for options in ({"detail": "full", "grid_intensity": 400}, {"detail": "full"}, {}):
        _work(provider, powercap, **options)
        own, told = (exporter.get_finished_spans()[-1].attributes or {} for exporter in exporters)
        assert (conventions.JOULES in own, conventions.METER in own) == (True, False)
        said.append((conventions.METER in told, conventions.METHOD in told, conventions.CO2E_GRAMS in told))
    assert said == [(True, True, True), (True, True, False), (True, False, False)]


def _work(provider: TracerProvider, powercap: PowercapTree, **options: Any) -> None:
    """Work of this process, measured with these options."""
    handle = otel_llm_energy.instrument(tracer_provider=provider, meters=RaplMeter(powercap.root), **options)
    try:
        until(lambda: bool(handle.status().channels))
        with otel_llm_energy.measure("work"):
            sum(range(1_000_000))
        handle.force_flush()
    finally:
        handle.uninstrument()


def test_spans_pass_through_the_wired_processor_when_nothing_measures_any_more(
    powercap: PowercapTree,
) -> None:
    """After `uninstrument` the processor that was wired by hand still hands everything on."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(EnergySpanProcessor(SimpleSpanProcessor(exporter)))
    otel_llm_energy.instrument(tracer_provider=provider, meters=RaplMeter(powercap.root)).uninstrument()
    provider.get_tracer("app").start_span("later").end()
    provider.shutdown()
    assert [span.name for span in exporter.get_finished_spans()] == ["later"]


def test_each_span_of_a_wired_processor_is_counted_once_when_it_is_measured_for_again(powercap: PowercapTree) -> None:
    """It outlives each `uninstrument`, and so do the instruments of the meter provider."""
    reader = InMemoryMetricReader()
    metering, tracing = MeterProvider([reader], shutdown_on_exit=False), TracerProvider(shutdown_on_exit=False)
    tracing.add_span_processor(EnergySpanProcessor(SimpleSpanProcessor(InMemorySpanExporter())))
    counted = []
    for _ in range(3):
        handle = otel_llm_energy.instrument(
            tracer_provider=tracing, meter_provider=metering, meters=RaplMeter(powercap.root)
        )
        with otel_llm_energy.measure("work"):
            pass
        handle.force_flush()
        counted.append(_forwarded(reader))
        handle.uninstrument()
        counted.append(_forwarded(reader))
    assert [count - counted[0] for count in counted] == [0, 0, 1, 1, 2, 2]


def _forwarded(reader: InMemoryMetricReader) -> float:
    data = reader.get_metrics_data()
    assert data is not None
    said = [metric for of in data.resource_metrics for scope in of.scope_metrics for metric in scope.metrics]
    points = [each.data.data_points for each in said if each.name == conventions.FORWARDED_SPANS.name]
    return sum(point.value for point in points[0] if isinstance(point, NumberDataPoint))


def _ask(base_url: str) -> None:
    client = OpenAI(base_url=base_url, api_key="none")
    client.chat.completions.create(
        model="smollm2", messages=[{"role": "user", "content": "Describe the ocean."}], max_tokens=20
    )

"""Tracers that make their spans with the tracer provider of now."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from otel_llm_energy.tracing.following_tracer import FollowingTracerProvider
from otel_llm_energy.tracing.gate import Gate
from otel_llm_energy.tracing.joining import Joining
from otel_llm_energy.tracing.processor import NoDesk

PROVIDERS = 3


class Wrapper(trace.NoOpTracer):
    """Like logfire's tracer, which is handed out once, and holds the SDK's of now."""

    tracer: trace.Tracer

    def start_span(self, name: str, *args: Any, **kwargs: Any) -> trace.Span:
        return self.tracer.start_span(name, *args, **kwargs)


class Wrapping(trace.TracerProvider):
    """Like logfire's provider, which stays when tracing is configured again."""

    def __init__(self) -> None:
        self.wrapper = Wrapper()

    def get_tracer(self, *args: Any, **kwargs: Any) -> trace.Tracer:
        return self.wrapper


class Names:
    """Notes which spans start at a gate."""

    def __init__(self) -> None:
        self.started_names: list[str] = []

    def started(self, gate: Gate, span: Span, parent_context: Context | None) -> None:
        self.started_names.append(span.name)

    def ended(self, span: ReadableSpan) -> None: ...

    def billed_elsewhere(self, span: ReadableSpan) -> bool:
        return False

    def claim_late(self, span: ReadableSpan) -> None: ...


@pytest.mark.parametrize("is_wrapped", [False, True], ids=["another provider", "behind the same one"])
def test_span_is_the_new_providers_and_joined_when_tracing_is_set_up_again(
    is_wrapped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the first span on, before anybody has looked whether there is another provider by now."""
    wrapping = Wrapping()
    joining = Joining(None, lambda downstream: Gate(downstream, NoDesk()), lambda gate: None, lambda: None)
    tracer = FollowingTracerProvider(joining).get_tracer("of a client")
    for _ in range(PROVIDERS):
        provider, exporter, watch = TracerProvider(shutdown_on_exit=False), InMemorySpanExporter(), Names()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        wrapping.wrapper.tracer = provider.get_tracer("inner")
        now = wrapping if is_wrapped else provider
        monkeypatch.setattr(trace, "get_tracer_provider", lambda now=now: now)
        tracer.start_span("one").end()
        gates = joining.gates  # those of processors wired by hand, which other tests have left, may be among them
        gates[-1].watch = watch
        tracer.start_span("two").end()
        assert [span.name for span in exporter.get_finished_spans()] == ["one", "two"]
        assert watch.started_names == ["two"], "the gate does not stand before this provider's processors"
        assert joining.gates == gates, "a gate was made where there was one"

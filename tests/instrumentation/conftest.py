"""Spans, observers and a replaying server for the client wrappers. Needs nothing of the energy layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from otel_llm_instrumentation import CallView, add_observer, remove_observer
from otel_llm_instrumentation.ollama import OllamaInstrumentor
from otel_llm_instrumentation.openai import OpenAIInstrumentor
from tests.instrumentation.replay import ReplayServer, replaying


@dataclass
class Watched:
    """What the wrappers reported: finished spans, and calls as observers saw them start and end."""

    provider: TracerProvider = field(default_factory=TracerProvider)
    exporter: InMemorySpanExporter = field(default_factory=InMemorySpanExporter)
    started: list[CallView] = field(default_factory=list)
    first_chunks: list[CallView] = field(default_factory=list)
    ended: list[CallView] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))

    def call_started(self, call: CallView) -> None:
        self.started.append(call)

    def first_chunk(self, call: CallView) -> None:
        self.first_chunks.append(call)

    def call_ended(self, call: CallView) -> None:
        self.ended.append(call)

    @property
    def spans(self) -> list[ReadableSpan]:
        return list(self.exporter.get_finished_spans())

    def only_span(self) -> ReadableSpan:
        """The one span of the one call, which has ended once."""
        assert len(self.spans) == len(self.started) == len(self.ended) == 1
        return self.spans[0]


@pytest.fixture
def server() -> Iterator[ReplayServer]:
    """Replays what the test gives it."""
    with replaying() as running:
        yield running


@pytest.fixture
def watched() -> Iterator[Watched]:
    """Both libraries instrumented, and an observer."""
    seen = Watched()
    instrumentors = [OpenAIInstrumentor(), OllamaInstrumentor()]
    for instrumentor in instrumentors:
        instrumentor.instrument(tracer_provider=seen.provider, skip_dep_check=True)
    add_observer(seen)
    yield seen
    remove_observer(seen)
    for instrumentor in instrumentors:
        instrumentor.uninstrument()

"""What the scripts beside this one share: an app's own set-up of tracing, and its question."""

from __future__ import annotations

from openai import OpenAI
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

QUESTION = {
    "model": "smollm2-135m",
    "messages": [{"role": "user", "content": "Write one sentence about the ocean."}],
    "max_tokens": 8,
    "temperature": 0,
}


def set_up_tracing(provider: TracerProvider | None = None) -> TracerProvider:
    """As the OpenTelemetry documentation tells."""
    provider = provider or TracerProvider()
    trace.set_tracer_provider(provider)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


def ask(client: OpenAI | None = None) -> str:
    """One call."""
    answer = (client or OpenAI()).chat.completions.create(**QUESTION)  # type: ignore[call-overload]
    return str(answer.choices[0].message.content)


def ask_as_agent(tracer: trace.Tracer) -> None:
    """One call below two spans of the app."""
    with tracer.start_as_current_span("request"), tracer.start_as_current_span("agent"):
        ask()

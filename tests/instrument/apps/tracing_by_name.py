"""A framework that imported ``set_tracer_provider`` by name long before, and serves requests in threads."""

import threading

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import get_tracer, set_tracer_provider

import otel_llm_energy

otel_llm_energy.instrument()

from app import ask  # noqa: E402 - the client library is imported after the one line

provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
set_tracer_provider(provider)


def serve(name: str) -> None:
    with get_tracer("app").start_as_current_span(name):
        ask()


for name in ("first request", "second request"):
    thread = threading.Thread(target=serve, args=(name,))
    thread.start()
    thread.join()

"""Spans are exported one by one in the thread that ends them, to a collector that accepts and never answers."""

import sys

from app import ask
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

import otel_llm_energy

provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter()))
trace.set_tracer_provider(provider)
otel_llm_energy.instrument()
for _ in range(3):
    ask()
sys.stdout.write("answered\n")
sys.stdout.flush()

"""Processors that run in a pool of threads, one added before the one line and one after."""

from app import ask_as_agent, set_up_tracing
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ConcurrentMultiSpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

import otel_llm_energy

provider = set_up_tracing(TracerProvider(active_span_processor=ConcurrentMultiSpanProcessor()))
otel_llm_energy.instrument()
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
ask_as_agent(trace.get_tracer("app"))

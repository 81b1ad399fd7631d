"""The processor is wired by hand before the app's own, and the one line connects it with what is measured."""

from app import ask_as_agent
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

import otel_llm_energy
from otel_llm_energy import EnergySpanProcessor

provider = TracerProvider()
provider.add_span_processor(EnergySpanProcessor(BatchSpanProcessor(OTLPSpanExporter())))
trace.set_tracer_provider(provider)
otel_llm_energy.instrument()
ask_as_agent(trace.get_tracer("app"))

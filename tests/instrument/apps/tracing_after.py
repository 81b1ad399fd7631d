"""The one line comes first, as where a framework sets up tracing late; a tracer was made even before."""

from app import ask_as_agent, set_up_tracing
from opentelemetry import trace

import otel_llm_energy

tracer = trace.get_tracer("made at import")
otel_llm_energy.instrument()
set_up_tracing()
ask_as_agent(tracer)

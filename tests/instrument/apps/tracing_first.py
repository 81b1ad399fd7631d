"""Tracing is set up, then the one line. Nobody flushes or shuts anything down."""

from app import ask_as_agent, set_up_tracing
from opentelemetry import trace

import otel_llm_energy

set_up_tracing()
otel_llm_energy.instrument()
ask_as_agent(trace.get_tracer("app"))

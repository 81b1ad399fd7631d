"""The one line, twice."""

from app import ask_as_agent, set_up_tracing
from opentelemetry import trace

import otel_llm_energy

set_up_tracing()
first = otel_llm_energy.instrument()
assert otel_llm_energy.instrument() is first
ask_as_agent(trace.get_tracer("app"))

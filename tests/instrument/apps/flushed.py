"""A function in the cloud: it flushes right after the call, and is frozen or killed."""

import os

from app import ask_as_agent, set_up_tracing
from opentelemetry import trace

import otel_llm_energy

provider = set_up_tracing()
otel_llm_energy.instrument()
ask_as_agent(trace.get_tracer("app"))
flushed = provider.force_flush()
os._exit(0 if flushed else 1)

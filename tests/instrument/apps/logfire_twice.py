"""Logfire is configured, and then configured again: the second time makes a new pipeline. It exports by OTLP itself.

The first call after that is when it is noticed, at the latest.
"""

import logfire
from app import ask

import otel_llm_energy

logfire.configure(send_to_logfire=False, console=False)
otel_llm_energy.instrument()
with logfire.span("first"):
    ask()
logfire.configure(send_to_logfire=False, console=False)
ask()
with logfire.span("second"):
    ask()

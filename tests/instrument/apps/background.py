"""A request that answers while a call that it started goes on in the background."""

import contextvars
import threading

from app import ask, set_up_tracing
from opentelemetry import trace

import otel_llm_energy

set_up_tracing()
otel_llm_energy.instrument()
tracer = trace.get_tracer("app")
answered = threading.Event()


def later() -> None:
    with tracer.start_as_current_span("task"):
        answered.wait()
        ask()


with tracer.start_as_current_span("job"):
    with tracer.start_as_current_span("request"):
        ask()
        thread = threading.Thread(target=contextvars.copy_context().run, args=(later,))
        thread.start()
    answered.set()
    thread.join()

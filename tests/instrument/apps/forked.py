"""A server that forks its workers after the one line, and works itself too."""

import os
import warnings

from app import ask, set_up_tracing
from opentelemetry import trace

import otel_llm_energy

# Python 3.12 and newer say so of every process with threads, and batch processors have one, too.
warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork", category=DeprecationWarning)
provider = set_up_tracing()
otel_llm_energy.instrument()
tracer = trace.get_tracer("app")
with tracer.start_as_current_span("before"):
    ask()
child = os.fork()
with tracer.start_as_current_span("parent" if child else "child"):
    ask()
provider.force_flush()
if child == 0:
    os._exit(0)
os.waitpid(child, 0)

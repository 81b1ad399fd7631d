"""Frozen into one file, as some tools do: the code came along, the package's metadata did not."""

import importlib.metadata

from app import ask_as_agent, set_up_tracing
from opentelemetry import trace

found = importlib.metadata.Distribution.from_name


def found_but_ours(name: str) -> importlib.metadata.Distribution:
    if name == "otel-llm-energy":
        raise importlib.metadata.PackageNotFoundError(name)
    return found(name)


importlib.metadata.Distribution.from_name = staticmethod(found_but_ours)

import otel_llm_energy  # noqa: E402 - after the metadata is gone

set_up_tracing()
otel_llm_energy.instrument()
ask_as_agent(trace.get_tracer("app"))

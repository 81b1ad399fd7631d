"""OpenTelemetry instrumentation of LLM client libraries; knows nothing of energy."""

from otel_llm_instrumentation.calls import (
    CallObserver,
    CallView,
    ServerTimings,
    add_observer,
    remove_observer,
)
from otel_llm_instrumentation.conversations import conversation

__all__ = ["CallObserver", "CallView", "ServerTimings", "add_observer", "conversation", "remove_observer"]

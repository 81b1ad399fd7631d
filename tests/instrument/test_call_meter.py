"""What the observer keeps of a call for its bill."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from opentelemetry.context import Context
from opentelemetry.sdk.trace import Span, SpanProcessor, TracerProvider
from opentelemetry.trace import INVALID_SPAN

from otel_llm_energy.call_meter import CallMeter
from otel_llm_energy.tracing.claims import Claim
from otel_llm_energy.tracing.forward import Downstream
from otel_llm_energy.tracing.gate import Gate
from otel_llm_energy.tracing.processor import NoDesk


class _Runtime:
    """Keeps the claims; there is no meter provider."""

    gates = ()
    is_ready = True

    def __init__(self) -> None:
        self.desk = self.joining = self
        self.unobserved = SimpleNamespace(open={})
        self.closed: list[Claim] = []

    def open(self, *_: object) -> None: ...

    def close(self, claim: Claim, *_: object) -> None:
        self.closed.append(claim)


def _call() -> Any:
    return SimpleNamespace(
        span=INVALID_SPAN,
        owns_span=True,
        in_process=False,
        started_ns=1,
        ended_ns=None,
        response_id=None,
        context=Context(),
        operation="chat",
        provider="openai",
        request_model="smollm2",
        response_model=None,
        server_address="127.0.0.1",
        server_port=8080,
        input_tokens=3,
        cached_input_tokens=None,
        output_tokens=4,
        timings=None,
        error_type=None,
        reached_server=True,
    )


def test_call_keeps_the_attributes_of_its_metrics_when_no_meter_provider_is_set_yet() -> None:
    """One may be set between the call's end and its settling, and then counts it."""
    runtime: Any = _Runtime()
    call = _call()
    meter = CallMeter(runtime)
    meter.call_started(call)
    meter.call_ended(call)
    (claim,) = runtime.closed
    assert claim.attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "smollm2",
        "server.address": "127.0.0.1",
        "server.port": 8080,
    }


def test_call_that_could_not_be_opened_is_closed_all_the_same() -> None:
    """Its span waits for that, and so does a `measure()` around it."""

    def fail(*_: object) -> None:
        raise OSError("no meter")

    runtime: Any = _Runtime()
    runtime.open = fail
    meter, call = CallMeter(runtime), _call()
    with pytest.raises(OSError, match="no meter"):
        meter.call_started(call)
    meter.call_ended(call)
    assert len(runtime.closed) == 1


def test_span_of_another_library_is_looked_at_when_one_of_ours_was_started_before() -> None:
    runtime: Any = _Runtime()
    looked_at: list[Span] = []
    runtime.unobserved.started = lambda gate, span, parent_context: looked_at.append(span)
    meter, gate = CallMeter(runtime), Gate(Downstream(SpanProcessor()), NoDesk())
    provider = TracerProvider(shutdown_on_exit=False)
    chat = {"gen_ai.operation.name": "chat"}
    ours, ollamas, other = (
        cast(Span, provider.get_tracer(scope).start_span("chat", attributes=chat))
        for scope in ("otel_llm_instrumentation.openai", "otel_llm_instrumentation.ollama", "of.another.library")
    )
    for span in (ours, other, ours, ollamas, other):
        meter.started(gate, span, None)
    assert looked_at == [other, other]

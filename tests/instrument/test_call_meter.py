"""What the observer keeps of a call for its bill."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry.context import Context
from opentelemetry.trace import INVALID_SPAN

from otel_llm_energy.call_meter import CallMeter
from otel_llm_energy.tracing.claims import Claim


class _Runtime:
    """Keeps the claims; there is no meter provider."""

    gates = ()
    is_ready = True
    unobserved = SimpleNamespace(open={})

    def __init__(self) -> None:
        self.desk = self.joining = self
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

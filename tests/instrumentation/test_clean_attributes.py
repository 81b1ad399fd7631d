"""Attributes that are added past the SDK's cleaning: what a span says must be the same as with it."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.trace import INVALID_SPAN

from otel_llm_instrumentation.attributes import add_clean

_AT_START = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai"}
_AT_END = {
    "gen_ai.provider.name": "llama.cpp",
    "gen_ai.response.finish_reasons": ("stop", "length"),
    "gen_ai.usage.output_tokens": 7,
    "llm.server.decode_seconds": 0.25,
    "gen_ai.request.stream": True,
}


@pytest.mark.parametrize(
    "limits",
    [
        SpanLimits(),
        SpanLimits(max_span_attributes=6),
        SpanLimits(max_span_attributes=4),
        SpanLimits(max_span_attributes=0),
        SpanLimits(max_span_attribute_length=3),
    ],
)
def test_span_says_what_it_would_with_the_sdk_cleaning_all_when_limits_apply(limits: SpanLimits) -> None:
    """Values, counts of dropped ones and truncation are the SDK's."""
    tracer = TracerProvider(span_limits=limits, shutdown_on_exit=False).get_tracer("test")
    ours, theirs = (tracer.start_span("chat", attributes=_AT_START) for _ in range(2))
    add_clean(ours, dict(_AT_END))
    theirs.set_attributes(_AT_END)
    for span in (ours, theirs):
        span.end()
    assert isinstance(ours, ReadableSpan)
    assert isinstance(theirs, ReadableSpan)
    assert dict(ours.attributes or {}) == dict(theirs.attributes or {})
    assert ours.dropped_attributes == theirs.dropped_attributes


def test_span_that_has_ended_stays_as_it_is_when_attributes_come_late(caplog: pytest.LogCaptureFixture) -> None:
    """The SDK refuses them, with a word in the log."""
    span = TracerProvider(shutdown_on_exit=False).get_tracer("test").start_span("chat", attributes=_AT_START)
    span.end()
    add_clean(span, dict(_AT_END))
    assert isinstance(span, ReadableSpan)
    assert dict(span.attributes or {}) == _AT_START
    assert "ended span" in caplog.text


def test_nothing_happens_when_the_span_does_not_record() -> None:
    """A span without attributes takes none."""
    add_clean(INVALID_SPAN, dict(_AT_END))

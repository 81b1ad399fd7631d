"""LLM spans of other libraries whose calls nobody observes."""

from __future__ import annotations

from typing import Any

from opentelemetry.sdk.trace import ReadableSpan

from otel_llm_energy.tracing.claims import Claim
from otel_llm_energy.tracing.unobserved import UnobservedCalls


def _ended(response_id: str) -> Claim:
    claim = Claim()
    claim.response_id = response_id
    return claim


def test_span_is_looked_up_while_calls_end_in_other_threads() -> None:
    """There is one more call that has ended each time the span's id is compared with that of another."""

    class Compared(str):
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            calls.note_ended(_ended("chatcmpl-3"))
            return super().__eq__(other)

    no_desk: Any = None
    calls = UnobservedCalls(no_desk)
    calls.note_ended(_ended("chatcmpl-1"))
    calls.note_ended(_ended(Compared("chatcmpl-2")))
    assert calls.billed_elsewhere(ReadableSpan("chat", attributes={"gen_ai.response.id": "chatcmpl-1"}))


def test_calls_of_long_ago_are_forgotten_once_others_are_settled() -> None:
    """A span that some library makes afterwards comes soon after its call, not thousands of calls later."""
    no_desk: Any = None
    calls = UnobservedCalls(no_desk)
    for number in range(1000):
        calls.note_ended(_ended(f"chatcmpl-{number}"))
    calls.settled([])
    old, new = (ReadableSpan("chat", attributes={"gen_ai.response.id": f"chatcmpl-{number}"}) for number in (0, 999))
    assert calls.billed_elsewhere(new)
    assert not calls.billed_elsewhere(old)

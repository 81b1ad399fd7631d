"""LLM spans of other libraries whose calls nobody observes."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span

from otel_llm_energy.tracing.claims import Claim, ServerReport
from otel_llm_energy.tracing.gate import Gate
from otel_llm_energy.tracing.unobserved import UnobservedCalls
from tests.tracing.fakes import Pipeline

_THEIRS = {"gen_ai.operation.name": "chat", "server.address": "localhost", "server.port": 8080}


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


class Watched(Pipeline):
    """A pipeline all of whose LLM spans are another library's, and the calls that are opened and closed for them."""

    def __init__(self) -> None:
        super().__init__()
        self.opened: list[Claim] = []
        self.closed: list[Claim] = []
        self.calls = UnobservedCalls(self)
        self.gate.watch = self

    def open(self, claim: Claim, *server: Any, since_ns: int | None = None) -> None:
        self.opened.append(claim)

    def close(self, claim: Claim, report: ServerReport | None = None, *, ended_ns: int | None = None) -> None:
        self.closed.append(claim)

    def started(self, gate: Gate, span: Span, parent_context: Context | None) -> None:
        self.calls.started(gate, span, parent_context)

    def ended(self, span: ReadableSpan) -> None:
        self.calls.ended(span)

    def billed_elsewhere(self, span: ReadableSpan) -> bool:
        return False

    def claim_late(self, span: ReadableSpan) -> None: ...


def test_claim_is_withdrawn_when_its_span_was_thrown_away_without_an_end() -> None:
    """Open, it would be at work beside all later calls of its server, which would wait for it."""
    line = Watched()
    line.tracer.start_span("thrown away", attributes=_THEIRS)
    gc.collect()
    later = line.tracer.start_span("later", attributes=_THEIRS)
    thrown_away, kept = line.opened
    assert line.closed == [thrown_away]
    assert (thrown_away.withdrawn, thrown_away.reached_server) == (True, False)
    assert not kept.withdrawn
    later.end()
    assert line.closed == [thrown_away, kept]


def test_call_counts_when_the_collection_that_frees_its_span_ends_it() -> None:
    """As it does a stream's that was thrown away in a cycle."""
    line = Watched()

    def stream(cycle: list[Iterator[None]]) -> Iterator[None]:
        with line.tracer.start_as_current_span("stream", attributes=_THEIRS):
            yield

    cycle: list[Iterator[None]] = []
    cycle.append(stream(cycle))
    next(cycle[0])
    del cycle
    gc.collect()
    line.calls.settled([])
    assert line.closed == line.opened
    assert not line.closed[0].withdrawn

"""LLM spans of other libraries whose calls nobody observes: each is a call of its own, if its server is known."""

from __future__ import annotations

import time
import weakref
from collections import deque
from collections.abc import Iterable
from typing import Final, Protocol

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span
from opentelemetry.trace import SpanContext

from otel_llm_energy.syscalls import monotonic_ns
from otel_llm_energy.tracing.claims import CallFacts, Claim, ServerReport, Tokens
from otel_llm_energy.tracing.gate import Gate
from otel_llm_energy.tracing.span_facts import (
    Attributes,
    facts_of,
    is_embedding,
    marks_a_call,
    operation_of,
    provider_of,
    raw_attributes,
    server_of,
    timings_of,
    tokens_of,
)

_MOST_OPEN: Final = 4096  # spans that never end must not fill the memory
_MOST_ENDED: Final = 256
_CLOCKS_APART_NS: Final = 1_000_000
_AFTERWARDS_NS: Final = 500_000_000


class CallDesk(Protocol):
    """Where calls are opened and closed (`otel_llm_energy.tracing.desk.SettlingDesk`)."""

    def open(
        self,
        claim: Claim,
        host: str | None,
        port: int | None,
        provider: str,
        operation: str,
        *,
        since_ns: int | None = None,
    ) -> None: ...

    def close(self, claim: Claim, report: ServerReport | None = None, *, ended_ns: int | None = None) -> None: ...


class _OpenCall(weakref.ref[Span]):
    """The claim of a span that is open, and the weak reference to it."""

    __slots__ = ("claim",)

    claim: Claim


class UnobservedCalls:
    """Opens a claim for each LLM span that names its server when it starts, and closes it when the span ends.

    A client wrapper that sees the call itself adopts the claim: there is one bill, and it is the better informed one.
    The claim of a span that is thrown away without an end is withdrawn: open, it would take a part of later calls'
    energy, and these would wait for it.

    Args:
        desk: where the claims are opened and closed.

    Attributes:
        open: what `give_up_above`, `adopt` and `ended` look for, by span id; they do nothing where it is empty.
        note_ended: told of each call that has ended and has its bill on a span; it is the deque's own method.
    """

    def __init__(self, desk: CallDesk) -> None:
        self.open: dict[int, _OpenCall] = {}
        self._desk = desk
        # Looked at a little later: a collection that frees a span may end it next, as it closes a generator.
        self._thrown_away: deque[_OpenCall] = deque()
        self._ended: deque[Claim] = deque()
        self.note_ended = self._ended.append

    def settled(self, claims: Iterable[Claim]) -> None:
        """Withdraw and forget what is of no use any more; here, since to free calls takes longer than to note them."""
        self._withdraw_thrown_away()
        while len(self._ended) > _MOST_ENDED:
            self._ended.popleft()

    def started(self, gate: Gate, span: Span, parent_context: Context | None) -> None:
        """An LLM span of another library starts: if it says who answers, its claim opens."""
        attributes = raw_attributes(span)
        host, port = server_of(attributes)
        if host is None or not marks_a_call(attributes):
            return
        self.give_up_above(gate, span.get_span_context(), operation_of(attributes))
        if len(self.open) >= _MOST_OPEN:
            return
        call = _OpenCall(span, self._thrown_away.append)
        call.claim = Claim(span.get_span_context())
        known = self.open.setdefault(call.claim.span_context.span_id, call)  # another gate may have had it before
        gate.bind(span, known.claim, parent_context, ends_for_certain=False)
        if known is call:
            self._begin(call.claim, span, attributes, (host, port))

    def give_up_above(self, gate: Gate, context: SpanContext, operation: str) -> None:
        """A call of this operation begins at a span: the LLM spans of other libraries above it are only its parents.

        Where two libraries make a span for one call, one below the other, each would have a share of its energy.
        """
        if not self.open:
            return
        self._withdraw_thrown_away()
        for span_id in gate.above(context):
            call = self.open.get(span_id)
            if call is not None and is_embedding(call.claim.facts.operation) == is_embedding(operation):
                self._withdraw(span_id)

    def _withdraw_thrown_away(self) -> None:
        while self._thrown_away:
            try:
                call = self._thrown_away.popleft()
            except IndexError:  # another thread was faster
                return
            span_id = call.claim.span_context.span_id
            if self.open.get(span_id) is call:
                self._withdraw(span_id)

    def _withdraw(self, span_id: int) -> None:
        claim = self.adopt(span_id)
        if claim is not None:
            claim.withdrawn = True
            claim.reached_server = False
            self._desk.close(claim)

    def adopt(self, span_id: int) -> Claim | None:
        """The open claim of a span, for somebody who will close it; ``None`` if there is none (any more)."""
        call = self.open.pop(span_id, None) if self.open else None
        return None if call is None else call.claim

    def ended(self, span: ReadableSpan) -> None:
        """Close the claim of a span that is about to end, if it is still ours."""
        claim = None if span.context is None else self.adopt(span.context.span_id)
        if claim is not None:
            self._close(claim, span, raw_attributes(span))

    def claim_late(self, gates: Iterable[Gate], span: ReadableSpan) -> None:
        """An LLM span ends that had no call: it may say by now who answered. What was metered since is not all lost."""
        attributes = raw_attributes(span)
        host, port = server_of(attributes)
        if host is not None and span.start_time is not None and span.context is not None:
            claim = Claim(span.context)
            for gate in gates:  # those to which it comes next have nothing to claim any more
                gate.bind(span, claim, ends_for_certain=False)
            self._begin(claim, span, attributes, (host, port))
            self._close(claim, span, attributes)

    def _begin(
        self, claim: Claim, span: Span | ReadableSpan, attributes: Attributes, server: tuple[str, int | None]
    ) -> None:
        provider, operation = provider_of(attributes), operation_of(attributes)
        claim.facts = CallFacts(operation)
        # Some libraries make a span afterwards, or end it long after the call, and say when that was.
        self._desk.open(claim, *server, provider, operation, since_ns=_past_ns(span.start_time))

    def _close(self, claim: Claim, span: ReadableSpan, attributes: Attributes) -> None:
        tokens = tokens_of(attributes)
        claim.input_tokens, claim.output_tokens = tokens.input, tokens.output
        claim.facts = facts_of(attributes)
        self._desk.close(claim, timings_of(attributes), ended_ns=_past_ns(span.end_time))

    def billed_elsewhere(self, span: ReadableSpan) -> bool:
        """Whether this LLM span describes a call that has its bill on another span.

        Some libraries make their span when the call is over, or where nothing links it to the call.
        """
        attributes = raw_attributes(span)
        response_id, tokens = attributes.get("gen_ai.response.id"), tokens_of(attributes)
        offset_ns = time.time_ns() - time.monotonic_ns()
        start_ns, end_ns = (span.start_time or 0) - offset_ns, (span.end_time or 0) - offset_ns
        ended = self._ended.copy()  # other threads' calls end meanwhile
        return any(_is_of(call, response_id, tokens, start_ns, end_ns) for call in reversed(ended))


def _is_of(call: Claim, response_id: object, tokens: Tokens, start_ns: int, end_ns: int) -> bool:
    """Whether a span with this id of an answer, these tokens and times (monotonic clock) is of a call that has ended.

    It is if the server gave it the same id, or if it took as many tokens and took place within the span, or right
    before it.
    """
    if response_id is not None and call.response_id == response_id:
        return True
    if call.ended_ns is None or tokens.output is None:
        return False
    within = start_ns - _CLOCKS_APART_NS <= call.opened_ns and call.ended_ns <= end_ns + _CLOCKS_APART_NS
    before = -_CLOCKS_APART_NS <= start_ns - call.ended_ns <= _AFTERWARDS_NS
    return (within or before) and (call.input_tokens, call.output_tokens) == (tokens.input, tokens.output)


def _past_ns(unix_ns: int | None) -> int | None:
    """A time in the past on the monotonic clock; ``None`` for now. A future one is of a wall clock that was stepped."""
    now_ns = monotonic_ns()
    past_ns = time.time_ns() - (unix_ns or 0)
    return now_ns - past_ns if _CLOCKS_APART_NS < past_ns < now_ns else None

"""LLM spans of other libraries whose calls nobody observes: each is a call of its own, if its server is known."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol
from urllib.parse import urlsplit

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span
from opentelemetry.trace import INVALID_SPAN_CONTEXT, SpanContext
from opentelemetry.util.types import AttributeValue

from otel_llm_energy import conventions
from otel_llm_energy.quantities import NS_PER_SECOND
from otel_llm_energy.servers.announced import URL_PORTS
from otel_llm_energy.syscalls import monotonic_ns
from otel_llm_energy.tracing import enrich
from otel_llm_energy.tracing.claims import CallFacts, Claim, ServerReport
from otel_llm_energy.tracing.gate import Gate

_Attributes = Mapping[str, AttributeValue]

_MOST_OPEN: Final = 4096  # spans that never end must not fill the memory
_MOST_TOLD: Final = 256
_MOST_SECONDS: Final = 1e12
_CLOCKS_APART_NS: Final = 1_000_000
_AFTERWARDS_NS: Final = 500_000_000
_PROVIDER_KEYS: Final = ("gen_ai.provider.name", "gen_ai.system", "llm.provider", "llm.system")
_OPERATION_KEYS: Final = ("gen_ai.operation.name", "llm.request.type", "openinference.span.kind")
_MODEL_KEYS: Final = ("gen_ai.request.model", "llm.model_name")


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


@dataclass(frozen=True, slots=True)
class _Report:
    """The server's own timings, as a span tells them (``llm.server.*``)."""

    prefill_seconds: float | None
    decode_seconds: float | None
    load_seconds: float | None
    end_unix_ns: int | None


class UnobservedCalls:
    """Opens a claim for each LLM span that names its server when it starts, and closes it when the span ends.

    A client wrapper that sees the call itself adopts the claim: there is one bill, and it is the better informed one.

    Args:
        desk: where the claims are opened and closed.
    """

    def __init__(self, desk: CallDesk) -> None:
        self._desk = desk
        self._open: dict[int, Claim] = {}  # by span id
        self._told: deque[Claim] = deque(maxlen=_MOST_TOLD)  # calls that have ended and have their bill on a span

    def tell(self, claim: Claim) -> None:
        """A call has ended that has its bill on a span."""
        self._told.append(claim)

    def started(self, gate: Gate, span: Span, parent_context: Context | None) -> None:
        """An LLM span of another library starts: if it says who answers, its claim opens."""
        attributes = enrich.raw_attributes(span)
        host, port = _server(attributes)
        if host is None or not enrich.marks_a_call(attributes) or len(self._open) >= _MOST_OPEN:
            return
        self.give_up_above(gate, span.get_span_context(), _first(attributes, _OPERATION_KEYS))
        claim = self._claim(gate, span, attributes, (host, port), parent_context)
        self._open[claim.span_context.span_id] = claim

    def give_up_above(self, gate: Gate, context: SpanContext, operation: str) -> None:
        """A call of this operation begins at a span: the LLM spans of other libraries above it are only its parents.

        Where two libraries make a span for one call, one below the other, each would have a share of its energy.
        """
        if not self._open:
            return
        for span_id in gate.above(context):
            claim = self._open.get(span_id)
            if claim is not None and _is_embedding(claim.facts.operation) == _is_embedding(operation):
                self._open.pop(span_id, None)
                claim.withdrawn = True
                claim.reached_server = False
                self._desk.close(claim)

    def adopt(self, span_id: int) -> Claim | None:
        """The open claim of a span, for somebody who will close it; ``None`` if there is none (any more)."""
        return self._open.pop(span_id, None) if self._open else None

    def ended(self, span: ReadableSpan) -> None:
        """Close the claim of a span that is about to end, if it is still ours."""
        claim = None if span.context is None else self.adopt(span.context.span_id)
        if claim is not None:
            self._close(claim, span, enrich.raw_attributes(span))

    def claim_late(self, gate: Gate, span: ReadableSpan) -> None:
        """An LLM span ends that had no call: it may say by now who answered. What was metered since is not all lost."""
        attributes = enrich.raw_attributes(span)
        host, port = _server(attributes)
        if host is not None and span.start_time is not None and span.context is not None:
            self._close(self._claim(gate, span, attributes, (host, port)), span, attributes)

    def _claim(
        self,
        gate: Gate,
        span: Span | ReadableSpan,
        attributes: _Attributes,
        server: tuple[str, int | None],
        parent_context: Context | None = None,
    ) -> Claim:
        claim = Claim(span.get_span_context() or INVALID_SPAN_CONTEXT)
        gate.bind(span, claim, parent_context, ends_for_certain=False)
        provider, operation = _first(attributes, _PROVIDER_KEYS), _first(attributes, _OPERATION_KEYS)
        claim.facts = CallFacts(operation)
        # Some libraries make a span afterwards, or end it long after the call, and say when that was.
        self._desk.open(claim, *server, provider, operation, since_ns=_past_ns(span.start_time))
        return claim

    def _close(self, claim: Claim, span: ReadableSpan, attributes: _Attributes) -> None:
        tokens = enrich.tokens_said(attributes)
        claim.input_tokens, claim.output_tokens = tokens.input, tokens.output
        claim.facts = _facts(attributes)
        self._desk.close(claim, _report(attributes), ended_ns=_past_ns(span.end_time))

    def told_elsewhere(self, span: ReadableSpan) -> bool:
        """Whether this LLM span describes a call that has its bill on another span.

        Some libraries make their span when the call is over, or where nothing links it to the call. It is the same
        call if the server gave it the same id, or if it took as many tokens and took place within the span, or right
        before it.
        """
        attributes = enrich.raw_attributes(span)
        response_id, tokens = attributes.get("gen_ai.response.id"), enrich.tokens_said(attributes)
        offset_ns = time.time_ns() - time.monotonic_ns()
        start_ns, end_ns = (span.start_time or 0) - offset_ns, (span.end_time or 0) - offset_ns
        for told in reversed(self._told):
            if response_id is not None and told.response_id == response_id:
                return True
            if told.ended_ns is None or tokens.output is None:
                continue
            within = start_ns - _CLOCKS_APART_NS <= told.opened_ns and told.ended_ns <= end_ns + _CLOCKS_APART_NS
            before = -_CLOCKS_APART_NS <= start_ns - told.ended_ns <= _AFTERWARDS_NS
            if (within or before) and (told.input_tokens, told.output_tokens) == (tokens.input, tokens.output):
                return True
        return False


def _past_ns(unix_ns: int | None) -> int | None:
    """A time in the past on the monotonic clock; ``None`` for now. A future one is of a wall clock that was stepped."""
    now_ns = monotonic_ns()
    past_ns = time.time_ns() - (unix_ns or 0)
    return now_ns - past_ns if _CLOCKS_APART_NS < past_ns < now_ns else None


def _server(attributes: _Attributes) -> tuple[str | None, int | None]:
    """Who answers, by ``server.address`` or by the address that OpenLLMetry gives."""
    address, port = attributes.get("server.address"), attributes.get("server.port")
    if isinstance(address, str) and "://" not in address:
        return address or None, port if isinstance(port, int) else None
    url = address or attributes.get("gen_ai.openai.api_base")
    if not isinstance(url, str):
        return None, None
    try:
        parts = urlsplit(url)
        return parts.hostname, parts.port or URL_PORTS.get(parts.scheme)
    except ValueError:
        return None, None


def _report(attributes: _Attributes) -> _Report | None:
    prefill = _seconds(attributes, conventions.SERVER_PREFILL_SECONDS)
    decode = _seconds(attributes, conventions.SERVER_DECODE_SECONDS)
    load = _seconds(attributes, conventions.SERVER_LOAD_SECONDS)
    if prefill is None and decode is None and load is None:
        return None
    end = _seconds(attributes, conventions.SERVER_END_TIME)
    return _Report(prefill, decode, load, None if end is None else int(end * NS_PER_SECOND))


def _seconds(attributes: _Attributes, key: str) -> float | None:
    value = attributes.get(key)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < _MOST_SECONDS:
        return float(value)
    return None


def _first(attributes: _Attributes, keys: tuple[str, ...]) -> str:
    return next((value for key in keys if isinstance(value := attributes.get(key), str)), "")


def _is_embedding(operation: str | None) -> bool:
    return (operation or "").lower().startswith("embedding")


def _facts(attributes: _Attributes) -> CallFacts:
    host, port = _server(attributes)
    return CallFacts(
        operation=_first(attributes, _OPERATION_KEYS).lower() or None,
        provider=_first(attributes, _PROVIDER_KEYS) or None,
        request_model=_first(attributes, _MODEL_KEYS) or None,
        response_model=_first(attributes, ("gen_ai.response.model",)) or None,
        address=host,
        port=port,
        error_type=_first(attributes, ("error.type",)) or None,
    )

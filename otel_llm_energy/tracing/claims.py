"""A claim: one call's right to a share of the metered energy, from the call's start to its bill."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

from opentelemetry.trace import INVALID_SPAN_CONTEXT, SpanContext

from otel_llm_energy.ledger.bill import Bill
from otel_llm_energy.ledger.entry import Entry

if TYPE_CHECKING:
    from otel_llm_energy.tracing.books import Books


class Claim:
    """One call's claim. It belongs to the call, not to a span: unsampled calls have one too.

    The desk sets ``bill`` once, then tells its listeners; the facts are final before that.

    Attributes:
        span_context: of the span that displays the bill; invalid if there is none.
        input_tokens, cached_input_tokens, output_tokens: as the server reported them, else ``None``.
        attributes: of the metrics (operation, provider, models, server), and nothing else.
        opened_ns, first_chunk_ns: of the call, on the monotonic clock.
        books, entry: the desk's: where the claim is kept; ``None`` where nothing meters its server.
        reason: the desk's: why ``books`` is ``None``.
        reached_server: False if nobody worked on the call.
        partial: one of several claims of one piece of work: its joules per token would say nothing.
        bill: ``None`` until settled.
    """

    __slots__ = (
        "__weakref__",
        "attributes",
        "bill",
        "books",
        "cached_input_tokens",
        "entry",
        "first_chunk_ns",
        "input_tokens",
        "opened_ns",
        "output_tokens",
        "partial",
        "reached_server",
        "reason",
        "span_context",
    )

    def __init__(self, span_context: SpanContext = INVALID_SPAN_CONTEXT) -> None:
        self.span_context = span_context
        self.opened_ns = 0
        self.first_chunk_ns: int | None = None
        self.books: Books | None = None
        self.entry: Entry | None = None
        self.reason: str | None = None
        self.attributes: dict[str, str | int] = {}
        self.input_tokens: int | None = None
        self.cached_input_tokens: int | None = None
        self.output_tokens: int | None = None
        self.partial = False
        self.reached_server = True
        self.bill: Bill | None = None


def metric_attributes(
    *,
    operation: str | None,
    provider: str | None,
    request_model: str | None,
    response_model: str | None,
    address: str | None,
    port: int | None,
    error_type: str | None,
) -> dict[str, str | int]:
    """What is known of a call, as the attributes of its metrics."""
    known: dict[str, str | int | None] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": provider,
        "gen_ai.request.model": request_model,
        "gen_ai.response.model": response_model,
        "server.address": address,
        "server.port": port,
        "error.type": error_type,
    }
    return {key: value for key, value in known.items() if value is not None}


class ClaimListener(Protocol):
    """Told of settled claims, by the settling thread; must not block."""

    def settled(self, claims: Iterable[Claim]) -> None: ...


class Desk(Protocol):
    """Where claims are settled. Thread-safe."""

    def hasten(self, timeout_seconds: float) -> None:
        """Ask for readings now and wait until all claims closed by now are settled, or for the timeout."""

    def force(self, claims: Iterable[Claim], reason: str) -> None:
        """Settle these claims now from what is known, degraded or unavailable for ``reason``, and tell listeners."""

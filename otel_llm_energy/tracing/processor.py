"""The span processor for those who wire their tracing by hand."""

from __future__ import annotations

import weakref
from collections.abc import Iterable

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor

from otel_llm_energy.ledger.bill import unavailable
from otel_llm_energy.tracing.claims import Claim, Desk
from otel_llm_energy.tracing.enrich import Style
from otel_llm_energy.tracing.forward import Downstream
from otel_llm_energy.tracing.gate import DEFAULT_MAX_HELD, DEFAULT_MAX_HOLD_SECONDS, Gate

# The processors of this process, for `instrument()` to find: made before it or after, on whichever provider.
_wired: weakref.WeakSet[EnergySpanProcessor] = weakref.WeakSet()


def wired_processors() -> list[EnergySpanProcessor]:
    """The processors that were wired by hand and still exist."""
    return list(_wired)


class NoDesk:
    """Stands in while nothing measures: every call is settled at once as unavailable."""

    def hasten(self, timeout_seconds: float) -> None:
        """There is nothing to wait for."""

    def force(self, claims: Iterable[Claim], reason: str) -> None:
        for claim in claims:
            if claim.bill is None:
                claim.bill = unavailable(reason)


class EnergySpanProcessor(SpanProcessor):
    """Adds the energy of LLM calls to spans before they reach ``next_processor``.

    Only where the spans of a provider are to reach some exporters with energy and others without: `instrument()`, which
    measures, takes care of whole providers by itself, and adopts the processors that it finds wired by hand. ::

        provider.add_span_processor(EnergySpanProcessor(BatchSpanProcessor(OTLPSpanExporter())))

    A finished span cannot be changed, so ``next_processor`` gets enriched copies; do not add it to the provider as
    well, or the spans are exported twice.

    Args:
        next_processor: what exports.
        desk: what settles the calls; ``None`` to set ``gate.desk`` later.
        style: how much the spans say; ``None``: as much as `instrument()` says, else what is standard.
        max_hold_seconds: a span waits at most so long for its energy, seconds; 0 never holds. ``None``: as long as
            `instrument()` says, else 30 s.
        max_held: when more spans wait than that, the oldest leaves (`Gate`).

    Attributes:
        gate: binds spans to calls, and listens to the desk.
    """

    def __init__(
        self,
        next_processor: SpanProcessor,
        desk: Desk | None = None,
        *,
        style: Style | None = None,
        max_hold_seconds: float | None = None,
        max_held: int = DEFAULT_MAX_HELD,
    ) -> None:
        _wired.add(self)
        self.gate = Gate(
            Downstream(next_processor),
            desk or NoDesk(),
            style=style,
            max_hold_seconds=DEFAULT_MAX_HOLD_SECONDS if max_hold_seconds is None else max_hold_seconds,
            max_held=max_held,
        )
        self.gate.keeps_max_hold = max_hold_seconds is not None
        self.gate.keeps_style = style is not None

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        self.gate.on_start(span, parent_context)

    def _on_ending(self, span: Span) -> None:
        self.gate.on_ending(span)

    def on_end(self, span: ReadableSpan) -> None:
        self.gate.on_end(span)

    def shutdown(self) -> None:
        self.gate.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self.gate.force_flush(timeout_millis)

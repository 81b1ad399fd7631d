"""A finished span as it leaves the gate, with all that is to be said on it."""

from __future__ import annotations

from opentelemetry.sdk.trace import ReadableSpan

from otel_llm_energy.ledger.bill import Bill
from otel_llm_energy.tracing import enrich
from otel_llm_energy.tracing.claims import Claim, Tokens, Whole
from otel_llm_energy.tracing.combining import combined
from otel_llm_energy.tracing.tree import Subtree


class Outgoing:
    """A finished span and all that is to be said on it."""

    __slots__ = ("bills", "span", "total")

    def __init__(self, span: ReadableSpan, subtree: Subtree | None) -> None:
        self.span = span
        self.bills: tuple[tuple[Claim | Whole, Bill], ...] = ()
        self.total: enrich.Total | None = None
        if subtree is not None:
            self.bills = tuple(subtree.bills)
            if subtree.wholes:
                self.bills += tuple((whole, parts.bill) for whole, parts in subtree.wholes.items())
            incomplete = subtree.incomplete or subtree.waiting > 0
            if subtree.has_calls_below:
                self.total = enrich.Total(subtree.energy_nj, incomplete, subtree.estimated)

    def enriched(self, style: enrich.Style) -> ReadableSpan:
        """The copy that goes on; the span itself if there is nothing to say."""
        values: dict[str, enrich.Value] = {}
        if self.bills:
            bill, tokens = self._in_one()
            values = enrich.call_attributes(bill, tokens, style)
        if self.total is not None:
            values = {**enrich.total_attributes(self.total, style), **values}
        return enrich.enriched_copy(self.span, values) if values else self.span

    def _in_one(self) -> tuple[Bill, Tokens]:
        if len(self.bills) == 1:
            counted, bill = self.bills[0]
            return bill, Tokens(counted.input_tokens, counted.output_tokens)
        bill = combined([bill for _, bill in self.bills])
        return bill, enrich.combined_tokens(counted for counted, _ in self.bills)

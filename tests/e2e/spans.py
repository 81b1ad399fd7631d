"""Spans as Jaeger's API gives them, in a form that assertions can read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from otel_llm_energy import conventions as names


@dataclass(frozen=True, slots=True)
class JaegerSpan:
    """One span: its ids, its name, its parent's id (``None`` for a root), its length and its attributes."""

    trace_id: str
    span_id: str
    name: str
    parent_id: str | None
    seconds: float
    attributes: Mapping[str, Any]

    @property
    def is_llm_call(self) -> bool:
        """Whether this is the span of one call of a model."""
        return "gen_ai.operation.name" in self.attributes

    def joules(self, key: str = names.JOULES) -> float:
        """An energy attribute of this span, J."""
        return float(self.attributes[key])


def spans_of(traces: Iterable[Mapping[str, Any]]) -> list[JaegerSpan]:
    """All spans of these traces, in the order in which they started."""
    found = [span for trace in traces for span in trace["spans"]]
    return [_span(span) for span in sorted(found, key=lambda span: int(span["startTime"]))]


def _span(span: Mapping[str, Any]) -> JaegerSpan:
    parents = [reference["spanID"] for reference in span["references"] if reference["refType"] == "CHILD_OF"]
    return JaegerSpan(
        trace_id=span["traceID"],
        span_id=span["spanID"],
        name=span["operationName"],
        parent_id=parents[0] if parents else None,
        seconds=span["duration"] / 1e6,
        attributes={tag["key"]: tag["value"] for tag in span["tags"]},
    )

"""What a process has measured, as it says to the test that started it."""

from __future__ import annotations

from typing import Any

from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter


def measured(spans: InMemorySpanExporter, reader: InMemoryMetricReader) -> dict[str, Any]:
    """The attributes of its calls, and the sum of each counter."""
    data = reader.get_metrics_data()
    scopes = [scope for resource in data.resource_metrics for scope in resource.scope_metrics] if data else []
    totals = {
        metric.name: sum(getattr(point, "value", 0) or 0 for point in metric.data.data_points)
        for scope in scopes
        for metric in scope.metrics
    }
    calls = [dict(span.attributes or {}) for span in spans.get_finished_spans()]
    return {"calls": calls, "totals": totals}

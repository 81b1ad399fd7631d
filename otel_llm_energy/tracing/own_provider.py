"""Tracing for an app that has none: built from public classes, by the standard ``OTEL_*`` variables."""

from __future__ import annotations

import logging
import os
from typing import Final

from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import ConsoleMetricExporter, MetricExporter, PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter

from otel_llm_energy.tracing.metrics import records

_HTTP: Final = "http/protobuf"
_PROTOCOLS: Final = (_HTTP, "grpc")

_logger = logging.getLogger(__name__)


def set_up_tracing() -> trace.TracerProvider:
    """Set the global tracer provider, and the meter provider if there is none, and say so once.

    Exports by OTLP over HTTP unless ``OTEL_TRACES_EXPORTER``, ``OTEL_METRICS_EXPORTER`` (otlp, console, none) or
    ``OTEL_EXPORTER_OTLP_PROTOCOL`` say otherwise.
    """
    provider = TracerProvider()
    exporter = _span_exporter()
    if exporter is not None:
        provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    if not records(metrics.get_meter_provider()):
        metric_exporter = _metric_exporter()
        readers = [] if metric_exporter is None else [PeriodicExportingMetricReader(metric_exporter)]
        metrics.set_meter_provider(MeterProvider(metric_readers=readers))
    _logger.info("No tracer provider was set up before the first LLM call: made one that exports by OTLP.")
    return trace.get_tracer_provider()


def _span_exporter() -> SpanExporter | None:
    kind = _choice("OTEL_TRACES_EXPORTER", ("otlp", "console", "none"))
    if kind == "none":
        return None
    if kind == "console":
        return ConsoleSpanExporter()
    if _protocol("TRACES") == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcSpanExporter

        return GrpcSpanExporter()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()


def _metric_exporter() -> MetricExporter | None:
    kind = _choice("OTEL_METRICS_EXPORTER", ("otlp", "console", "none"))
    if kind == "none":
        return None
    if kind == "console":
        return ConsoleMetricExporter()
    if _protocol("METRICS") == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as GrpcMetricExporter

        return GrpcMetricExporter()
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter

    return OTLPMetricExporter()


def _protocol(signal: str) -> str:
    variable = f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL"
    return _choice(variable if os.environ.get(variable) else "OTEL_EXPORTER_OTLP_PROTOCOL", _PROTOCOLS)


def _choice(variable: str, choices: tuple[str, ...]) -> str:
    """The first of a comma-separated variable; the first choice where it is unset or unknown."""
    value = os.environ.get(variable, "").split(",")[0].strip().lower()
    if value and value not in choices:
        _logger.warning("%s=%s is not known here. Allowed: %s. Using %s.", variable, value, choices, choices[0])
    return value if value in choices else choices[0]

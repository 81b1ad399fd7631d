"""Tracing for an app that has none: built from public classes, by the standard ``OTEL_*`` variables."""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import ConsoleMetricExporter, MetricExporter, PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter

from otel_llm_energy.tracing.metrics import is_shut_down, records

_CONFIG_FILE: Final = "OTEL_CONFIG_FILE"
_HTTP: Final = "http/protobuf"
_PROTOCOLS: Final = (_HTTP, "grpc")
_EXPORTERS: Final = ("otlp", "console", "none")
_LONGEST_SHUTDOWN_SECONDS: Final = 30.0  # the SDK's own default

_logger = logging.getLogger(__name__)


def set_up_tracing() -> trace.TracerProvider:
    """Set the global tracer provider, and the meter provider if there is none, and say so once.

    Exports by OTLP over HTTP unless ``OTEL_TRACES_EXPORTER``, ``OTEL_METRICS_EXPORTER`` (some of otlp, console, none)
    or ``OTEL_EXPORTER_OTLP_PROTOCOL`` say otherwise.
    """
    if os.environ.get(_CONFIG_FILE):
        _logger.warning(
            "%s is not heeded where an app has no tracing of its own; opentelemetry-instrument heeds it.", _CONFIG_FILE
        )
    provider = TracerProvider(shutdown_on_exit=False)
    kinds = _choices("OTEL_TRACES_EXPORTER", _EXPORTERS)
    with _warning_of("Spans"):
        for exporter in [_span_exporter(kind) for kind in kinds if kind != "none"]:
            provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    shut_down: Callable[[], None] = provider.shutdown
    if not records(metrics.get_meter_provider()):
        with _warning_of("Metrics"):
            shut_down = _set_up_metrics(provider)
    atexit.register(shut_down)
    _logger.info("No tracer provider was set up before the first LLM call: made one, exporter %s.", ", ".join(kinds))
    return trace.get_tracer_provider()


def _set_up_metrics(provider: TracerProvider) -> Callable[[], None]:
    """Returns what ends both providers at the exit."""
    kinds = _choices("OTEL_METRICS_EXPORTER", _EXPORTERS)
    exporters = [_metric_exporter(kind) for kind in kinds if kind != "none"]
    readers = [PeriodicExportingMetricReader(exporter) for exporter in exporters]
    meter_provider = MeterProvider(metric_readers=readers, shutdown_on_exit=False)
    metrics.set_meter_provider(meter_provider)
    return _ShutDownTogether(provider, meter_provider) if readers else provider.shutdown


@contextmanager
def _warning_of(what: str) -> Iterator[None]:
    """The SDK raises where a variable has a value that it does not allow: that costs these, and nothing else."""
    try:
        yield
    except Exception:
        _logger.warning("%s are not exported: what the OTEL_... variables ask for cannot be made.", what, exc_info=True)


class _ShutDownTogether:
    """At exit, shuts both providers down at once: each waits some seconds for a collector that is not there.

    Its thread sleeps until then, since none can be started any more while the interpreter is exiting. The providers
    have no hooks of their own: from Python 3.14 on these would run, and complain, though both are shut down by then.
    """

    def __init__(self, tracer_provider: TracerProvider, meter_provider: MeterProvider) -> None:
        self._tracer_provider = tracer_provider
        self._meter_provider = meter_provider
        self._exiting = threading.Event()
        self._thread = threading.Thread(target=self._run, name="otel-llm-energy exit", daemon=True)
        self._thread.start()

    def __call__(self) -> None:
        if not self._thread.is_alive():  # in a forked child
            self._tracer_provider.shutdown()
            self._end_metrics()
            return
        self._exiting.set()
        self._tracer_provider.shutdown()
        self._thread.join(_LONGEST_SHUTDOWN_SECONDS)

    def _run(self) -> None:
        self._exiting.wait()
        self._end_metrics()

    def _end_metrics(self) -> None:
        if is_shut_down(self._meter_provider):  # by the app
            return
        try:
            self._meter_provider.shutdown()
        except Exception:  # where the SDK does it, it would be written out and go no further
            _logger.warning("The last metrics could not be exported.", exc_info=True)


def _span_exporter(kind: str) -> SpanExporter:
    if kind == "console":
        return ConsoleSpanExporter()
    if _protocol("TRACES") == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcSpanExporter

        return GrpcSpanExporter()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()


def _metric_exporter(kind: str) -> MetricExporter:
    if kind == "console":
        return ConsoleMetricExporter()
    if _protocol("METRICS") == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as GrpcMetricExporter

        return GrpcMetricExporter()
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter

    return OTLPMetricExporter()


def _protocol(signal: str) -> str:
    variable = f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL"
    return _choices(variable if os.environ.get(variable) else "OTEL_EXPORTER_OTLP_PROTOCOL", _PROTOCOLS)[0]


def _choices(variable: str, choices: tuple[str, ...]) -> list[str]:
    """The words of a comma-separated variable; the first choice where it is unset, or none of them is known."""
    words = [word.strip().lower() for word in os.environ.get(variable, "").split(",") if word.strip()]
    known = list(dict.fromkeys(word for word in words if word in choices)) or [choices[0]]
    if not set(words) <= set(choices):
        wanted, using = ",".join(words), ",".join(known)
        _logger.warning("%s=%s is not known here. Allowed: %s. Using %s.", variable, wanted, choices, using)
    return known

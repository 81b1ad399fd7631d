"""Where the spans, metrics and complaints of one instrumentor go."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from opentelemetry._logs import LoggerProvider, LogRecord, get_logger
from opentelemetry.context import Context
from opentelemetry.metrics import MeterProvider, get_meter
from opentelemetry.trace import TracerProvider, get_tracer

from otel_llm_instrumentation import semconv
from otel_llm_instrumentation.backlog import Backlog
from otel_llm_instrumentation.content import wanted_capture
from otel_llm_instrumentation.unread import Unread

_DISTRIBUTION = "otel-llm-energy"
_logger = logging.getLogger("otel_llm_instrumentation")


class Telemetry:
    """One instrumentor's tracer and metrics, from `instrument` to `uninstrument`.

    Providers that are set later serve as well: what the API hands out are proxies until then.
    """

    __slots__ = (
        "_complaints",
        "_events",
        "backlog",
        "capture",
        "duration",
        "first_chunk",
        "token_usage",
        "tracer",
        "unread",
    )

    def __init__(
        self,
        scope: str,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        logger_provider: LoggerProvider | None = None,
    ) -> None:
        version_of_scope = _version()
        self.capture = wanted_capture()
        self._events = get_logger(scope, version_of_scope, logger_provider) if self.capture.in_event else None
        self._complaints: set[str] = set()
        self.backlog = Backlog()
        self.unread = Unread()
        self.tracer = get_tracer(scope, version_of_scope, tracer_provider)
        meter = get_meter(scope, version_of_scope, meter_provider)
        self.duration = meter.create_histogram(
            semconv.DURATION_METRIC,
            unit="s",
            description="Duration of a GenAI operation.",
            explicit_bucket_boundaries_advisory=semconv.DURATION_BOUNDARIES_SECONDS,
        )
        self.first_chunk = meter.create_histogram(
            semconv.FIRST_CHUNK_METRIC,
            unit="s",
            description="Time from the start of a streamed GenAI operation to the first chunk of its answer.",
            explicit_bucket_boundaries_advisory=semconv.DURATION_BOUNDARIES_SECONDS,
        )
        self.token_usage = meter.create_histogram(
            semconv.TOKEN_USAGE_METRIC,
            unit="{token}",
            description="Input and output tokens used.",
            explicit_bucket_boundaries_advisory=semconv.TOKEN_USAGE_BOUNDARIES,
        )

    @property
    def records_metrics(self) -> bool:
        """Whether there is a meter provider. The API does not say so: its proxy is asked for the real instrument."""
        return getattr(self.duration, "_real_instrument", self.duration) is not None

    def emit_details(self, attributes: Mapping[str, Any], context: Context) -> None:
        """Tell of a call and its content in an event, which can be structured."""
        if self._events is not None:
            self._events.emit(
                LogRecord(
                    timestamp=time.time_ns(),
                    context=context,
                    event_name=semconv.DETAILS_EVENT,
                    attributes=dict(attributes),
                )
            )

    def complain(self, what: str, level: int = logging.WARNING) -> None:
        """Log the exception that is being handled, once for each ``what``; the app's call goes on."""
        if what not in self._complaints:
            self._complaints.add(what)
            _logger.log(level, "%s failed; the app's call is not affected", what, exc_info=True)


def _version() -> str:
    try:
        return version(_DISTRIBUTION)
    except PackageNotFoundError:
        return ""

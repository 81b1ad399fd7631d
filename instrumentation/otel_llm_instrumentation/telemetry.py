"""Where the spans, metrics and complaints of one instrumentor go."""

from __future__ import annotations

import logging
from importlib.metadata import PackageNotFoundError, version

from opentelemetry.metrics import MeterProvider, get_meter
from opentelemetry.trace import TracerProvider, get_tracer

from otel_llm_instrumentation import semconv

_DISTRIBUTION = "otel-llm-energy"
_logger = logging.getLogger("otel_llm_instrumentation")


class Telemetry:
    """One instrumentor's tracer and metrics, from `instrument` to `uninstrument`.

    Providers that are set later serve as well: what the API hands out are proxies until then.
    """

    __slots__ = ("_complaints", "duration", "token_usage", "tracer")

    def __init__(
        self,
        scope: str,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
    ) -> None:
        version_of_scope = _version()
        self._complaints: set[str] = set()
        self.tracer = get_tracer(scope, version_of_scope, tracer_provider)
        meter = get_meter(scope, version_of_scope, meter_provider)
        self.duration = meter.create_histogram(
            semconv.DURATION_METRIC,
            unit="s",
            description="Duration of a GenAI operation.",
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

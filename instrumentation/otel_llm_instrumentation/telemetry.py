"""Where the spans, metrics and complaints of one instrumentor go."""

from __future__ import annotations

import logging
from importlib.metadata import PackageNotFoundError, version

from opentelemetry.metrics import Meter, MeterProvider, get_meter_provider
from opentelemetry.trace import TracerProvider, get_tracer

from otel_llm_instrumentation import semconv

_DISTRIBUTION = "otel-llm-energy"
_logger = logging.getLogger("otel_llm_instrumentation")


class Instruments:
    """The GenAI client metrics."""

    __slots__ = ("duration", "token_usage")

    def __init__(self, meter: Meter) -> None:
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


class Telemetry:
    """One instrumentor's tracer and instruments, from `instrument` to `uninstrument`.

    Providers that are set later serve as well: the API's tracer is a proxy until then, and the meter provider is
    looked up at each call.
    """

    def __init__(
        self,
        scope: str,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
    ) -> None:
        self._scope = scope
        self._version = _version()
        self._meter_provider = meter_provider
        self._metered_by: MeterProvider | None = None
        self._instruments: Instruments | None = None
        self._complaints: set[str] = set()
        self.tracer = get_tracer(scope, self._version, tracer_provider)

    def instruments(self) -> Instruments | None:
        """The metrics to record; ``None`` while there is only a provider of the API itself, which records nothing."""
        provider = self._meter_provider or get_meter_provider()
        if provider is not self._metered_by:
            idle = type(provider).__module__.startswith("opentelemetry.metrics")
            self._instruments = None if idle else Instruments(provider.get_meter(self._scope, self._version))
            self._metered_by = provider
        return self._instruments

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

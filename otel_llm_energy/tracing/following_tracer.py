"""Tracers that follow the tracer provider of now: the app may set up tracing after `instrument()`, and again."""

from __future__ import annotations

from typing import Any, Protocol

from opentelemetry import trace


class ProviderOfNow(Protocol):
    """Says which tracer provider is the right one (`otel_llm_energy.tracing.joining.Joining`)."""

    def is_joined(self, provider: trace.TracerProvider, tracer: trace.Tracer) -> bool:
        """Whether the provider is still the right one, and nothing is to be done for spans of its tracer."""

    def provider_for_call(self) -> trace.TracerProvider:
        """The provider that is right now."""

    def check_tracer(self, tracer: trace.Tracer) -> None:
        """See to it that the spans of this tracer of it get energy."""


class FollowingTracerProvider(trace.TracerProvider):
    """Hands out tracers that ask for the real provider when they start a span.

    Args:
        now: asked at each span, so it must be cheap.
    """

    def __init__(self, now: ProviderOfNow) -> None:
        self._now = now

    def get_tracer(
        self,
        instrumenting_module_name: str,
        instrumenting_library_version: str | None = None,
        schema_url: str | None = None,
        attributes: Any = None,
    ) -> trace.Tracer:
        scope = (instrumenting_module_name, instrumenting_library_version, schema_url, attributes)
        return _FollowingTracer(self._now, scope)


class _FollowingTracer(trace.Tracer):
    def __init__(self, now: ProviderOfNow, scope: tuple[Any, ...]) -> None:
        self._now = now
        self._scope = scope
        self._made: tuple[trace.TracerProvider, trace.Tracer] | None = None

    def _tracer(self) -> trace.Tracer:
        made = self._made
        if made is not None and self._now.is_joined(*made):
            return made[1]
        provider = self._now.provider_for_call()
        if made is None or made[0] is not provider:
            made = self._made = (provider, provider.get_tracer(*self._scope))
        self._now.check_tracer(made[1])
        return made[1]

    def start_span(self, *args: Any, **kwargs: Any) -> trace.Span:
        return self._tracer().start_span(*args, **kwargs)

    def start_as_current_span(self, *args: Any, **kwargs: Any) -> Any:
        return self._tracer().start_as_current_span(*args, **kwargs)

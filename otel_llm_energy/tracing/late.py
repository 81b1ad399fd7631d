"""A tracer that makes up its mind at the first call: the app may set up tracing after `instrument()`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from opentelemetry import trace


class LateTracerProvider(trace.TracerProvider):
    """Hands out tracers that ask for the real provider when they start a span.

    Args:
        provider: the provider that is right now; called at each span, so it must be cheap.
    """

    def __init__(self, provider: Callable[[], trace.TracerProvider]) -> None:
        self._provider = provider

    def get_tracer(
        self,
        instrumenting_module_name: str,
        instrumenting_library_version: str | None = None,
        schema_url: str | None = None,
        attributes: Any = None,
    ) -> trace.Tracer:
        scope = (instrumenting_module_name, instrumenting_library_version, schema_url, attributes)
        return _LateTracer(self._provider, scope)


class _LateTracer(trace.Tracer):
    def __init__(self, provider: Callable[[], trace.TracerProvider], scope: tuple[Any, ...]) -> None:
        self._provider = provider
        self._scope = scope
        self._made: tuple[trace.TracerProvider, trace.Tracer] | None = None

    def _tracer(self) -> trace.Tracer:
        provider = self._provider()
        made = self._made
        if made is None or made[0] is not provider:
            made = self._made = (provider, provider.get_tracer(*self._scope))
        return made[1]

    def start_span(self, *args: Any, **kwargs: Any) -> trace.Span:
        return self._tracer().start_span(*args, **kwargs)

    def start_as_current_span(self, *args: Any, **kwargs: Any) -> Any:
        return self._tracer().start_as_current_span(*args, **kwargs)

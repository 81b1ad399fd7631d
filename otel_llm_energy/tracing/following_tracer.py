"""Tracers that follow the tracer provider of now: the app may set up tracing after `instrument()`, and again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from opentelemetry import trace


class FollowingTracerProvider(trace.TracerProvider):
    """Hands out tracers that ask for the real provider when they start a span.

    Args:
        provider: the provider that is right now; called at each span, so it must be cheap.
        check: told which tracer makes the span, before it does.
    """

    def __init__(
        self, provider: Callable[[], trace.TracerProvider], check: Callable[[trace.Tracer], None] = lambda tracer: None
    ) -> None:
        self._provider = provider
        self._check = check

    def get_tracer(
        self,
        instrumenting_module_name: str,
        instrumenting_library_version: str | None = None,
        schema_url: str | None = None,
        attributes: Any = None,
    ) -> trace.Tracer:
        scope = (instrumenting_module_name, instrumenting_library_version, schema_url, attributes)
        return _FollowingTracer(self._provider, self._check, scope)


class _FollowingTracer(trace.Tracer):
    def __init__(
        self,
        provider: Callable[[], trace.TracerProvider],
        check: Callable[[trace.Tracer], None],
        scope: tuple[Any, ...],
    ) -> None:
        self._provider = provider
        self._check = check
        self._scope = scope
        self._made: tuple[trace.TracerProvider, trace.Tracer] | None = None

    def _tracer(self) -> trace.Tracer:
        provider = self._provider()
        made = self._made
        if made is None or made[0] is not provider:
            made = self._made = (provider, provider.get_tracer(*self._scope))
        self._check(made[1])
        return made[1]

    def start_span(self, *args: Any, **kwargs: Any) -> trace.Span:
        return self._tracer().start_span(*args, **kwargs)

    def start_as_current_span(self, *args: Any, **kwargs: Any) -> Any:
        return self._tracer().start_as_current_span(*args, **kwargs)

"""Notices at once when the app sets up tracing after `instrument()`."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable

from opentelemetry import trace

_logger = logging.getLogger(__name__)


class Arrival:
    """Wraps `opentelemetry.trace.set_tracer_provider`, since the API has no hook, until it was called or `leave`.

    Without it the spans that the app opens before our next look would have no place in the tree: no ancestor of the
    first call would get its total. Whoever imported the function by name before us is noticed at that next look.

    Args:
        on_set: told in the app's thread that there is a provider now.
    """

    def __init__(self, on_set: Callable[[], None]) -> None:
        self._on_set = on_set
        self._original = original = trace.set_tracer_provider

        @functools.wraps(original)
        def set_tracer_provider(tracer_provider: trace.TracerProvider) -> None:
            original(tracer_provider)
            self._arrived()

        self._ours = set_tracer_provider
        trace.set_tracer_provider = set_tracer_provider

    def leave(self) -> None:
        """Take the wrapper off again, unless somebody has put another one on top: ours then only passes on."""
        self._on_set = lambda: None
        if trace.set_tracer_provider is self._ours:
            trace.set_tracer_provider = self._original

    def _arrived(self) -> None:
        try:
            self._on_set()
        except Exception:
            _logger.warning("The tracer provider that was just set could not be joined.", exc_info=True)

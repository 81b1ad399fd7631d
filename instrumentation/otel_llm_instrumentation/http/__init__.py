"""OpenTelemetry instrumentation of bare HTTP: apps that POST to an LLM server without a client library.

One hook each at ``requests.Session.send``, at ``send`` of the clients of ``httpx`` and ``httpx2``, and at
``aiohttp.ClientSession._request``. Only what goes to a known route *and* has a body of that route's shape is a call
(`otel_llm_instrumentation.http.routes`); all else passes through. A streamed answer is read as the app reads it, not a
byte ahead; aiohttp's, which comes in by itself, is seen as it arrives. A request that a client library makes for a call
of its own is that call's: it gets no second span. No request is changed, and no content is captured unless
``OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT`` asks for it.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar

from otel_llm_instrumentation.http.watchers import AiohttpWatcher, HTTPXWatcher, RequestsWatcher
from otel_llm_instrumentation.instrumentor import ClientInstrumentor


class HTTPInstrumentor(ClientInstrumentor):
    """Puts a span on every bare call of an LLM server, and tells observers of it. Never imports an HTTP library."""

    _watcher_types: ClassVar = {
        "requests": RequestsWatcher,
        "httpx": HTTPXWatcher,
        "httpx2": HTTPXWatcher,
        "aiohttp": AiohttpWatcher,
    }

    def instrumentation_dependencies(self) -> Collection[str]:
        return ()  # whichever of them there is


__all__ = ["HTTPInstrumentor"]

"""OpenTelemetry instrumentation of the ``ollama`` client, 0.3 and later.

One hook, at ``Client._request`` and ``AsyncClient._request``, sees module functions, functions bound before
`OllamaInstrumentor.instrument`, and every client. Chat, generate and embeddings become spans; the rest passes
through. Ollama's own durations come along. No request is changed, and no content is captured unless
``OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT`` asks for it.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar

from otel_llm_instrumentation.instrumentor import ClientInstrumentor
from otel_llm_instrumentation.ollama.watcher import OllamaWatcher


class OllamaInstrumentor(ClientInstrumentor):
    """Puts a span on every call of the ``ollama`` client, and tells observers of it. Never imports ``ollama``."""

    _watcher_types: ClassVar = {"ollama": OllamaWatcher}

    def instrumentation_dependencies(self) -> Collection[str]:
        return ("ollama >= 0.3.0",)


__all__ = ["OllamaInstrumentor"]

"""OpenTelemetry instrumentation of the ``openai`` client, 1.26 and later, and of what speaks through it.

One hook, at ``OpenAI.request`` and ``AsyncOpenAI.request``, sees every surface: resources and helpers, raw and
streaming responses, Azure, subclasses, ``with_options`` and clients made before `OpenAIInstrumentor.instrument`.
Chat and text completions, responses and embeddings become spans; the rest passes through. No request is changed, and
no content is captured unless ``OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT`` asks for it.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar

from otel_llm_instrumentation.instrumentor import ClientInstrumentor
from otel_llm_instrumentation.openai.watcher import OpenAIWatcher


class OpenAIInstrumentor(ClientInstrumentor):
    """Puts a span on every call of the ``openai`` client, and tells observers of it. Never imports ``openai``."""

    _watcher_types: ClassVar = {"openai": OpenAIWatcher}

    def instrumentation_dependencies(self) -> Collection[str]:
        return ("openai >= 1.26.0",)


__all__ = ["OpenAIInstrumentor"]

"""What an app says by hand of its own work; `otel_llm_energy.instrument` sees the calls of client libraries itself."""

from __future__ import annotations

from collections.abc import Mapping

from opentelemetry.util.types import AttributeValue

from otel_llm_energy.instrument import active_runtime
from otel_llm_energy.tracing.measurement import Measurement


def measure(name: str, attributes: Mapping[str, AttributeValue] | None = None) -> Measurement:
    """Make a span, and put the energy that this process and its children use within on it.

    For models that run in this process: transformers, llama-cpp-python, GPT4All's own package. LLM servers that are
    called within, and other measurements within, have their joules on their own spans. What takes more than an hour has
    none: measure its parts. Without `instrument()` it is only a span. ::

        with otel_llm_energy.measure("generate") as m:
            answer = model(prompt)
            m.output_tokens = answer["usage"]["completion_tokens"]

        @otel_llm_energy.measure("embed")
        async def embed(text): ...

    Args:
        name: of the span.
        attributes: of the span, and of the metrics: few values, such as ``gen_ai.request.model``.
    """
    return Measurement(name, attributes, active_runtime)

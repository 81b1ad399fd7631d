"""The one question that tests ask the real model, and what they look at afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from openai import OpenAI
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import otel_llm_energy
from otel_llm_energy import Instrumentation
from tests.support.powercap import PowercapTree
from tests.support.waiting import until

QUESTION = "Write one sentence about the ocean."


def ask(client: OpenAI, max_tokens: int = 8) -> str:
    """The model's answer; always the same."""
    answer = client.chat.completions.create(
        model="smollm2-135m",
        messages=[{"role": "user", "content": QUESTION}],
        max_tokens=max_tokens,
        temperature=0,
        seed=1,
    )
    return answer.choices[0].message.content or ""


@contextmanager
def measuring(provider: TracerProvider, powercap: PowercapTree, **options: Any) -> Iterator[Instrumentation]:
    """The one line on these counters, with the idle power that they have; once they are read."""
    energy = otel_llm_energy.instrument(
        tracer_provider=provider,
        meters="rapl",
        powercap_root=powercap.root,
        idle_watts={"package-0": 20, "package-0/dram": 2},
        **options,
    )
    try:
        until(lambda: bool(energy.status().channels))
        yield energy
    finally:
        energy.uninstrument()


def calls(exporter: InMemorySpanExporter) -> list[ReadableSpan]:
    """The spans of LLM calls that were exported."""
    return [s for s in exporter.get_finished_spans() if "gen_ai.operation.name" in (s.attributes or {})]


def said(exporter: InMemorySpanExporter, name: str) -> dict[str, Any]:
    """The attributes of the one span of this name."""
    (span,) = [span for span in exporter.get_finished_spans() if span.name == name]
    return dict(span.attributes or {})

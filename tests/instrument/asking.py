"""The one question that tests ask the real model, and how they wait for what comes later."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from openai import OpenAI
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import otel_llm_energy
from otel_llm_energy import Instrumentation
from tests.support.powercap import PowercapTree

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


def until(condition: Callable[[], bool], timeout_seconds: float = 20) -> None:
    """Return once ``condition()`` holds; fail if that takes too long."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline, "That took too long."
        time.sleep(0.02)


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

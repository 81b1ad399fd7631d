"""Joules per token of several models of one Ollama, asked the same questions in turns."""

import os
import sys
import time
from collections import defaultdict

import ollama
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import otel_llm_energy

QUESTIONS = ("Describe the ocean.", "Tell a tale of a fox.", "How do birds fly?")

spans = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(spans))
trace.set_tracer_provider(provider)
energy = otel_llm_energy.instrument()

models = sys.argv[1:]
for model in models:
    ollama.generate(model, "Hello.", options={"num_predict": 1})  # loads it, which is not what is compared
time.sleep(float(os.environ.get("REST_SECONDS", "5")))  # the idle power is learned while nothing runs
energy.force_flush()
spans.clear()

for question in QUESTIONS:
    for model in models:  # in turns, so that what else the machine does meets all of them
        ollama.generate(model, question, options={"num_predict": 30, "temperature": 0, "seed": 1})
energy.force_flush()

by_model: defaultdict[str, list[ReadableSpan]] = defaultdict(list)
for span in spans.get_finished_spans():
    by_model[str((span.attributes or {})["gen_ai.request.model"])].append(span)


def total(of: list[ReadableSpan], key: str) -> float | None:
    """Sum of an attribute; None where a span lacks it: what is not known is not 0."""
    values = [(span.attributes or {}).get(key) for span in of]
    return sum(float(value) for value in values if isinstance(value, (int, float))) if None not in values else None


def per_token(of: list[ReadableSpan], key: str) -> str:
    """Joules over tokens, both of all calls."""
    joules, tokens = total(of, key), total(of, "gen_ai.usage.output_tokens")
    return "-" if joules is None or not tokens else f"{joules / tokens:.3f}"


print(f"{'model':<24}{'J/token':>10}{'above idle':>12}{'tokens':>8}  quality")
for model in models:
    of = by_model[model]
    qualities = ", ".join(sorted({str((span.attributes or {})["llm.energy.quality"]) for span in of}))
    tokens = total(of, "gen_ai.usage.output_tokens")
    joules, above = per_token(of, "llm.energy.joules"), per_token(of, "llm.energy.above_idle_joules")
    print(f"{model:<24}{joules:>10}{above:>12}{tokens or 0:>8.0f}  {qualities}")

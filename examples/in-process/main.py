"""A model that runs in this process, measured by hand; shown as a tree on the console, as in a notebook."""

import os
from pathlib import Path

import xllamacpp
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import otel_llm_energy

spans = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(spans))
trace.set_tracer_provider(provider)
energy = otel_llm_energy.instrument()

cache = Path(os.environ.get("OTEL_LLM_ENERGY_CACHE", Path.home() / ".cache" / "otel-llm-energy"))
parameters = xllamacpp.CommonParams()
parameters.model.path = str(cache / "SmolLM2-135M-Instruct.Q4_1.gguf")
parameters.n_ctx, parameters.ui, parameters.verbosity = 2048, False, 0
parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1

with trace.get_tracer("example").start_as_current_span("a story in two parts"):
    with otel_llm_energy.measure("load the model"):
        model = xllamacpp.Server(parameters)
    for part in ("beginning", "end"):
        with otel_llm_energy.measure(f"write the {part}"):
            asked = {"messages": [{"role": "user", "content": f"Write the {part} of a tale."}], "max_tokens": 60}
            model.handle_chat_completions(asked)

energy.force_flush()
finished = sorted(spans.get_finished_spans(), key=lambda span: span.start_time or 0)
for span in finished:
    attributes = span.attributes or {}
    joules = attributes.get("llm.energy.joules", attributes.get("llm.energy.subtree_joules"))
    mark = "  " if span.parent else "Σ "
    words = " ".join(str(attributes.get(f"llm.energy.{name}", "")) for name in ("quality", "reason"))
    print(f"{mark}{span.name:<24}{joules:10.4g} J  {words}".rstrip())

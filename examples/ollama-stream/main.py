"""An Ollama script that streams, with tracing of its own, and the one line."""

import os

import ollama
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

import otel_llm_energy

provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
trace.set_tracer_provider(provider)

energy = otel_llm_energy.instrument()  # before or after the set-up of tracing: both work

# The total of both calls will be on this span.
with trace.get_tracer("example").start_as_current_span("tell two tales"):
    for animal in ("fox", "hen"):
        messages = [{"role": "user", "content": f"Tell a tale of a {animal} in three sentences."}]
        for part in ollama.chat(os.environ.get("MODEL", "smollm2"), messages=messages, stream=True):
            print(part.message.content, end="", flush=True)
        print("\n")

energy.force_flush()
print(energy.status())

"""A user's script: their own set-up of tracing, a plain OpenAI client, and the one line."""

from openai import OpenAI
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

import otel_llm_energy

QUESTIONS = ("Write one sentence about the ocean.", "Name three colours.", "Tell a short story about a fox.")

provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
trace.set_tracer_provider(provider)

energy = otel_llm_energy.instrument()

client = OpenAI()
with trace.get_tracer("app").start_as_current_span("answer questions"):
    for question in QUESTIONS:
        client.chat.completions.create(
            model="smollm2-135m", messages=[{"role": "user", "content": question}], max_tokens=60, temperature=0
        )
    stream = client.chat.completions.create(
        model="smollm2-135m",
        messages=[{"role": "user", "content": QUESTIONS[0]}],
        max_tokens=60,
        temperature=0,
        stream=True,
    )
    for _ in stream:
        pass

energy.force_flush()

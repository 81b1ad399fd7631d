"""Three users at once and an embedding, through a client that names its server by base_url; the one line before."""

import os
from concurrent.futures import ThreadPoolExecutor

from openai import OpenAI
from opentelemetry import context, trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

import otel_llm_energy

provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
trace.set_tracer_provider(provider)
energy = otel_llm_energy.instrument()

client = OpenAI(base_url=os.environ["OPENAI_BASE_URL"], api_key=os.environ.get("OPENAI_API_KEY", "unused"))
model = client.models.list().data[0].id
QUESTIONS = ("Name three colours.", "What is rain?", "Describe a mountain in two sentences.")

with trace.get_tracer("example").start_as_current_span("three at once") as span:
    here = context.get_current()

    def ask(question: str) -> str:
        token = context.attach(here)  # a thread has no context of its own
        try:
            answer = client.chat.completions.create(
                model=model, messages=[{"role": "user", "content": question}], max_tokens=60
            )
        finally:
            context.detach(token)
        return answer.choices[0].message.content or ""

    with ThreadPoolExecutor(3) as pool:
        for question, answer in zip(QUESTIONS, pool.map(ask, QUESTIONS), strict=True):
            print(f"{question}\n  {answer}")

energy.force_flush()
print(energy.status())

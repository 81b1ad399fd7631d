"""A user's service: two model servers and one that is away, a trace for each question, a sign of life after each.

``OTEL_*`` says where spans and metrics go. ``APP_QUESTIONS`` is how many to ask. The last line is what the
ledger says.
"""

import json
import os
from contextlib import suppress

import ollama
from openai import APIConnectionError, OpenAI
from opentelemetry import metrics, trace
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import otel_llm_energy

SECRET = "the secret of the ocean"
OPTIONS = {"num_predict": 30, "temperature": 0}


provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
kept = InMemorySpanExporter()
provider.add_span_processor(SimpleSpanProcessor(kept))
trace.set_tracer_provider(provider)
metrics.set_meter_provider(MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter())]))
energy = otel_llm_energy.instrument()
openai = OpenAI()
nobody = OpenAI(base_url=os.environ["APP_NOBODY"], max_retries=0)


def ask(question: str, stream: bool) -> None:
    """One question to each of the two servers."""
    answer = openai.chat.completions.create(
        model="smollm2-135m",
        messages=[{"role": "user", "content": question}],
        max_tokens=30,
        temperature=0,
        stream=stream,
    )
    if stream:
        for _ in answer:
            pass
    ollama.chat(os.environ["APP_MODEL"], messages=[{"role": "user", "content": question}], options=OPTIONS)


def ask_nobody() -> None:
    """A call that takes no energy of a server."""
    with suppress(APIConnectionError):
        nobody.completions.create(model="none", prompt="Is anybody there?")


for number in range(int(os.environ["APP_QUESTIONS"])):
    with (
        otel_llm_energy.conversation(f"conversation-{number % 3}"),
        trace.get_tracer("app").start_as_current_span("answer a question") as span,
    ):
        # As older instrumentations wrote it; what ours capture is on the spans of the calls.
        span.add_event("gen_ai.client.inference.operation.details", {"gen_ai.output.messages": SECRET})
        ask(f"Tell me {number + 2} facts about {SECRET}.", stream=number % 2 == 1)
        ask_nobody()
    print(f"answered {number}", flush=True)

energy.force_flush()
balances = [channel.balance for channel in energy.status().channels]
print(
    json.dumps(
        {
            "metered": sum(each.metered_nj for each in balances) / 1e9,
            "billed": sum(each.billed_nj for each in balances) / 1e9,
            "unattributed": sum(sum(each.unattributed_nj.values()) for each in balances) / 1e9,
            "with_content": sum(SECRET in str((span.attributes or {}).items()) for span in kept.get_finished_spans()),
        }
    ),
    flush=True,
)

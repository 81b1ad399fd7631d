"""A user's service with many short calls, each a trace of its own, and a long one now and then.

``APP_CALLS`` is how many; every eighth is long. The last line is what each trace took, J, before anything was sampled.
"""

import json
import os

from openai import OpenAI
from opentelemetry import metrics, trace
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import otel_llm_energy

kept = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
provider.add_span_processor(SimpleSpanProcessor(kept))
trace.set_tracer_provider(provider)
metrics.set_meter_provider(MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter())]))
energy = otel_llm_energy.instrument()
client = OpenAI()

for number in range(int(os.environ["APP_CALLS"])):
    client.chat.completions.create(
        model="smollm2-135m",
        messages=[{"role": "user", "content": "Count."}],
        max_tokens=60 if number % 8 == 7 else 2,
        temperature=0,
        extra_body={"ignore_eos": True},
    )

energy.force_flush()
print(
    json.dumps(
        {
            f"{span.context.trace_id:032x}": span.attributes["llm.energy.joules"]
            for span in kept.get_finished_spans()
            if span.context and span.attributes
        }
    )
)

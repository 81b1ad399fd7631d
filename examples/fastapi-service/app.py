"""A web service that asks a model for each of its users; traced and measured by the one line."""

import os
import platform
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from openai import AsyncOpenAI
from opentelemetry import metrics, trace
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

import otel_llm_energy

# All of this in each worker, since gunicorn imports the app there. Without an instance of its own each worker's totals
# would overwrite the others' in Prometheus.
resource = Resource.create({SERVICE_INSTANCE_ID: f"{platform.node()}:{os.getpid()}"})
tracing = TracerProvider(resource=resource)
tracing.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
trace.set_tracer_provider(tracing)
metrics.set_meter_provider(MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter())], resource))
energy = otel_llm_energy.instrument()


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Hands on what is held when the worker is told to end: it ends by the signal, without Python's exit hooks."""
    yield
    energy.force_flush()


app = FastAPI(lifespan=lifespan)
client = AsyncOpenAI()
tracer = trace.get_tracer("service")


@app.get("/tale/{animal}")
async def tale(animal: str) -> dict[str, str | None]:
    """A tale in two steps: a plan and the tale. The span around them has the sum of both."""
    with tracer.start_as_current_span("tell a tale"):
        plan = await ask(f"In one sentence, what happens to a {animal}?")
        return {"tale": await ask(f"Tell a short tale of a {animal}. {plan}")}


async def ask(question: str) -> str | None:
    answer = await client.chat.completions.create(
        model=os.environ.get("MODEL", "smollm2-135m"),
        messages=[{"role": "user", "content": question}],
        max_tokens=40,
    )
    return answer.choices[0].message.content

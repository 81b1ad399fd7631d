"""A web app of several gunicorn workers; each writes down what it has measured when it ends."""

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI
from openai import AsyncOpenAI
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import otel_llm_energy
from tests.support.measured import measured

spans = InMemorySpanExporter()
tracing = TracerProvider()
tracing.add_span_processor(SimpleSpanProcessor(spans))
reader = InMemoryMetricReader()
energy = otel_llm_energy.instrument(tracer_provider=tracing, meter_provider=MeterProvider([reader]))


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """uvicorn ends a worker by the signal itself, past gunicorn's hooks and atexit: an app's own place is here."""
    yield
    write_results()


app = FastAPI(lifespan=lifespan)


@app.get("/ask")
async def ask() -> int:
    """One call; who made it."""
    async with AsyncOpenAI() as client:
        await client.chat.completions.create(
            model="smollm2-135m", messages=[{"role": "user", "content": "Tell a tale of the sea."}], max_tokens=24
        )
    return os.getpid()


@app.get("/seat")
async def seat() -> dict[str, int | str | None]:
    """Who reads the meters, as this worker knows."""
    board = energy.status().board
    return {"pid": os.getpid(), "role": board.role if board else None, "holder": board.holder_pid if board else None}


def write_results() -> None:
    """All that this worker has measured."""
    energy.uninstrument()
    folder = Path(os.environ["RESULTS"])
    (folder / f"{os.getpid()}.json").write_text(json.dumps(measured(spans, reader)))

"""A FastAPI app that sets up tracing when it starts, after the one line was imported; async calls, some at once."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from app import QUESTION, set_up_tracing
from fastapi import FastAPI, Request, Response
from fastapi.testclient import TestClient
from openai import AsyncOpenAI
from opentelemetry import trace

import otel_llm_energy

otel_llm_energy.instrument()
tracer = trace.get_tracer("web")


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    set_up_tracing()
    yield


web = FastAPI(lifespan=lifespan)


@web.middleware("http")
async def traced(request: Request, call_next) -> Response:  # type: ignore[no-untyped-def]
    with tracer.start_as_current_span("middleware"):
        return await call_next(request)


@web.get("/ask")
async def ask_two() -> int:
    client = AsyncOpenAI()
    answers = await asyncio.gather(*[client.chat.completions.create(**QUESTION) for _ in range(2)])  # type: ignore[call-overload]
    return len(answers)


with TestClient(web) as client:
    assert client.get("/ask").json() == 2

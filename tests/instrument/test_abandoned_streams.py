"""Streams that an app throws away: nobody closes them, and openai's hold themselves in a reference cycle."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterator

import openai
import pytest
import requests
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from otel_llm_energy import Instrumentation
from otel_llm_energy import conventions as names
from tests.conftest import LlamaServerFactory
from tests.instrument.asking import QUESTION, calls, measuring
from tests.support.powercap import PowercapTree

_BODY = {"model": "m", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 16, "stream": True}


@pytest.fixture
def energy(provider: TracerProvider, powercap: PowercapTree) -> Iterator[Instrumentation]:
    with measuring(provider, powercap) as energy:
        yield energy


def _broken_off(base_url: str) -> None:
    client = openai.OpenAI(base_url=base_url, api_key="none")
    for _ in client.chat.completions.create(**_BODY):  # type: ignore[call-overload]
        break


def _broken_off_async(base_url: str) -> None:
    async def ask() -> None:
        client = openai.AsyncOpenAI(base_url=base_url, api_key="none")
        async for _ in await client.chat.completions.create(**_BODY):  # type: ignore[call-overload]
            break
        gc.collect()

    asyncio.run(ask())


def _held_in_a_cycle(base_url: str) -> None:
    answer = requests.post(f"{base_url}/chat/completions", json=_BODY, stream=True, timeout=20)
    next(answer.iter_lines())
    answer.itself = answer  # type: ignore[attr-defined]


@pytest.mark.parametrize("throw_away", [_broken_off, _broken_off_async, _held_in_a_cycle])
def test_span_and_its_parent_have_joules_when_a_stream_is_collected(
    energy: Instrumentation,
    provider: TracerProvider,
    exporter: InMemorySpanExporter,
    llama_server: LlamaServerFactory,
    throw_away: Callable[[str], None],
) -> None:
    """The span ends while it is collected, when weak references to what is thrown away with it are gone already."""
    with provider.get_tracer("app").start_as_current_span("request"):
        throw_away(llama_server().base_url)
        gc.collect()
    energy.force_flush()
    (call,) = calls(exporter)
    joules = (call.attributes or {})[names.JOULES]
    request = exporter.get_finished_spans()[-1]
    assert isinstance(joules, float)
    assert joules > 0
    assert (request.name, (request.attributes or {})[names.SUBTREE_JOULES]) == ("request", joules)

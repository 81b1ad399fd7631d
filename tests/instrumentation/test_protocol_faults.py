"""Whatever comes over the wire: the app sees exactly what it would see without us."""

from __future__ import annotations

import asyncio
import functools
import re
from collections.abc import Callable, Iterator
from typing import Any

import aiohttp
import httpx
import ollama
import openai
import pytest
import requests

from otel_llm_instrumentation.http import HTTPInstrumentor
from otel_llm_instrumentation.ollama import OllamaInstrumentor
from otel_llm_instrumentation.openai import OpenAIInstrumentor
from tests.instrumentation import faults
from tests.instrumentation.bare import ASK
from tests.instrumentation.conftest import Watched
from tests.instrumentation.replay import ReplayServer, replaying

pytestmark = pytest.mark.suite

_SECONDS = 20
_INSTRUMENTORS = (OpenAIInstrumentor, OllamaInstrumentor, HTTPInstrumentor)


@pytest.fixture(scope="module")
def server() -> Iterator[ReplayServer]:
    """One for all of them: each answer closes its connection."""
    with replaying() as running:
        yield running


@functools.cache  # making clients is what costs here
def _openai_client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0, timeout=_SECONDS)


@functools.cache
def _ollama_client(url: str) -> ollama.Client:
    return ollama.Client(host=url, timeout=_SECONDS)


@functools.cache
def _httpx_client() -> httpx.Client:
    return httpx.Client(timeout=_SECONDS)


def _openai(url: str, stream: bool) -> Iterator[object]:
    answer: Any = _openai_client(url).chat.completions.create(**ASK, stream=stream)
    yield from answer if stream else [answer]


def _openai_raw(url: str, stream: bool) -> Iterator[object]:
    answer = _openai_client(url).chat.completions.with_raw_response.create(**ASK, stream=stream)
    yield dict(answer.headers)
    parsed: Any = answer.parse()
    yield from parsed if stream else [parsed]


def _ollama(url: str, stream: bool) -> Iterator[object]:
    answer: Any = _ollama_client(url).chat(**ASK, stream=stream)
    yield from answer if stream else [answer]


def _requests(url: str, stream: bool) -> Iterator[object]:
    body = {**ASK, "stream": stream}
    with requests.post(f"{url}/v1/chat/completions", json=body, stream=stream, timeout=_SECONDS) as response:
        yield response.status_code, dict(response.headers)
        yield from response.iter_content(None) if stream else [response.content, response.json()]


def _requests_lines(url: str, stream: bool) -> Iterator[object]:
    body = {**ASK, "stream": stream}
    with requests.post(f"{url}/api/chat", json=body, stream=stream, timeout=_SECONDS) as response:
        yield from response.iter_lines(chunk_size=1 << 16)  # with its default it takes minutes for 10 MB


def _httpx(url: str, stream: bool) -> Iterator[object]:
    body = {**ASK, "stream": stream}
    with _httpx_client().stream("POST", f"{url}/v1/chat/completions", json=body) as response:
        yield response.status_code, dict(response.headers)
        yield from response.iter_lines() if stream else [response.read(), response.json()]


def _httpx_async(url: str, stream: bool) -> Iterator[object]:
    read: list[object] = []

    async def ask() -> None:
        async with httpx.AsyncClient(timeout=_SECONDS, verify=False) as client:
            body = {**ASK, "stream": stream}
            async with client.stream("POST", f"{url}/api/chat", json=body) as response:
                async for piece in response.aiter_bytes():
                    read.append(piece)

    try:
        asyncio.run(ask())
    finally:
        yield b"".join(map(bytes, read))  # type: ignore[arg-type]


def _aiohttp(url: str, stream: bool) -> Iterator[object]:
    read: list[object] = []

    async def ask() -> None:
        body = {**ASK, "stream": stream}
        address = f"{url}/v1/chat/completions"
        async with aiohttp.ClientSession() as session, session.post(address, json=body) as response:
            read.append((response.status, dict(response.headers)))
            if stream:
                pieces = [piece async for piece in response.content.iter_any()]
                read.append(b"".join(pieces))  # where they are cut depends on when they come
            else:
                read.extend([await response.read(), await response.text(), await response.json()])

    try:
        asyncio.run(ask())
    finally:
        yield from read


def _aiohttp_lines(url: str, stream: bool) -> Iterator[object]:
    read: list[object] = []

    async def ask() -> None:
        body = {**ASK, "stream": stream}
        async with aiohttp.ClientSession() as session, session.post(f"{url}/api/chat", json=body) as response:
            async for line in response.content:
                read.append(line)

    try:
        asyncio.run(ask())
    finally:
        yield from read


_SSE_CLIENTS = {
    "openai": _openai,
    "openai raw": _openai_raw,
    "requests": _requests,
    "httpx": _httpx,
    "aiohttp": _aiohttp,
}
_NDJSON_CLIENTS = {
    "ollama": _ollama,
    "requests lines": _requests_lines,
    "httpx async": _httpx_async,
    "aiohttp lines": _aiohttp_lines,
}
_Ask = Callable[[str, bool], Iterator[object]]


def _cases() -> list[Any]:
    dialects = [(faults.SSE, _SSE_CLIENTS), (faults.NDJSON, _NDJSON_CLIENTS)]
    return [
        pytest.param(reply, ask, stream, id=f"{client}, {'streamed' if stream else 'whole'}: {name}")
        for dialect, clients in dialects
        for stream, replies in ((True, faults.streamed(dialect)), (False, faults.whole(dialect)))
        for name, reply in replies.items()
        for client, ask in clients.items()
    ]


def _outcome(ask: _Ask, url: str, stream: bool) -> list[str]:
    """All that the app gets, in order, and the error that it gets at last."""
    seen: list[str] = []
    try:
        for piece in ask(url, stream):
            seen.append(repr(piece))
    except Exception as error:  # noqa: BLE001 - whatever it is, it must be the same
        seen.append(f"{type(error).__qualname__}: {error}")
    return [re.sub(r"0x[0-9a-f]+", "0x", text) for text in seen]


@pytest.mark.parametrize(("reply", "ask", "stream"), _cases())
def test_app_sees_the_same_when_an_answer_is_faulty(reply: Any, ask: _Ask, stream: bool, server: ReplayServer) -> None:
    """Pieces, errors and their texts; and the call has ended, with nothing made up."""
    server.reply = reply
    plain = _outcome(ask, server.url, stream)
    watched = Watched()
    for instrumentor in _INSTRUMENTORS:
        instrumentor().instrument(tracer_provider=watched.provider, skip_dep_check=True)
    try:
        assert _outcome(ask, server.url, stream) == plain
    finally:
        for instrumentor in _INSTRUMENTORS:
            instrumentor().uninstrument()
    [span] = watched.spans
    for key, value in (span.attributes or {}).items():
        assert "tokens" not in key or (type(value) is int and value >= 0)
        assert "seconds" not in key or (type(value) is float and value >= 0)


def test_there_are_enough_faults_when_they_are_counted() -> None:
    """At least forty, for each of the ways to speak to a server."""
    for dialect in (faults.SSE, faults.NDJSON):
        assert len(faults.streamed(dialect)) >= 40
        assert len(faults.whole(dialect)) >= 40

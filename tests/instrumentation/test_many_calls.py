"""Many calls, at once and one after another: nothing of ours is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import io
import json
import resource
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
import requests
import urllib3
from opentelemetry.context import get_current
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import get_current_span
from requests.adapters import BaseAdapter

from otel_llm_instrumentation import CallView, add_observer, remove_observer
from otel_llm_instrumentation.http import HTTPInstrumentor
from otel_llm_instrumentation.openai import OpenAIInstrumentor
from tests.instrumentation import payloads
from tests.instrumentation.bare import ASK, bare
from tests.instrumentation.conftest import Watched

__all__ = ["bare"]

_AT_ONCE = 1000
_IN_A_ROW = 10_000
_WARM = 500
_STREAM = b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in payloads.chunks())
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


@asynccontextmanager
async def _streaming_server(everybody: asyncio.Event) -> AsyncIterator[str]:
    """Sends a first chunk to each, and the rest once everybody is there."""
    first, rest = _STREAM[: _STREAM.index(b"\n\n") + 2], _STREAM[_STREAM.index(b"\n\n") + 2 :]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(_HEAD + first)
            await writer.drain()
            await everybody.wait()
            writer.write(rest)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=_AT_ONCE)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def many_files() -> Iterator[None]:
    """A descriptor for each end of each connection."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard if hard < 8192 else max(soft, 8192), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.suite
async def test_nothing_is_left_when_a_thousand_streams_were_open_at_once(bare: Watched, many_files: None) -> None:
    """A third is read to its end, a third is broken off, a third is cancelled: no span, task, file or context stays."""
    before, context = _open_files(), get_current()
    arrived, everybody = 0, asyncio.Event()

    async def use(number: int) -> None:
        nonlocal arrived
        async with await client.chat.completions.create(**ASK, stream=True) as stream:
            await stream.__anext__()
            assert not get_current_span().get_span_context().is_valid
            arrived += 1
            if arrived == _AT_ONCE:
                everybody.set()
            await everybody.wait()
            if number % 3 == 0:
                assert len([chunk async for chunk in stream]) == len(payloads.chunks()) - 1
            elif number % 3 == 1:
                raise asyncio.CancelledError

    async with (
        _streaming_server(everybody) as url,
        openai.AsyncOpenAI(base_url=url, api_key="k", max_retries=0, timeout=100) as client,
    ):
        await asyncio.gather(*(use(number) for number in range(_AT_ONCE)), return_exceptions=True)
    for _ in range(5):
        await asyncio.sleep(0)
        gc.collect()
    assert len(bare.spans) == len(bare.started) == len(bare.ended) == _AT_ONCE
    read = [call.output_tokens for call in bare.ended if call.output_tokens is not None]
    assert read == [8] * len(range(0, _AT_ONCE, 3))
    cancelled = [call.error_type for call in bare.ended if call.error_type is not None]
    assert cancelled == ["CancelledError"] * len(range(1, _AT_ONCE, 3))
    assert get_current() == context
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert _open_files() <= before


class _Canned(BaseAdapter):
    """Answers in this process: what grows is the client's or ours."""

    def send(self, request: requests.PreparedRequest, *_: object, **__: object) -> requests.Response:
        response = requests.Response()
        response.status_code = 200
        response.headers["content-type"] = "text/event-stream"
        response.raw = urllib3.HTTPResponse(io.BytesIO(_STREAM), preload_content=False)
        response.url, response.request = request.url or "", request
        return response

    def close(self) -> None: ...


def _openai_calls() -> Callable[[], None]:
    httpx: Any = pytest.importorskip("httpx")

    def answer(request: Any) -> Any:
        if b'"stream":true' in request.content.replace(b" ", b""):
            return httpx.Response(200, headers={"content-type": "text/event-stream"}, content=_STREAM)
        return httpx.Response(200, json=payloads.CHAT)

    http_client = httpx.Client(transport=httpx.MockTransport(answer))
    client = openai.OpenAI(base_url="http://127.0.0.1:9/v1", api_key="k", http_client=http_client)

    def call() -> None:
        client.chat.completions.create(**ASK)
        for _ in client.chat.completions.create(**ASK, stream=True):
            pass
        for _ in client.chat.completions.create(**ASK, stream=True):
            break

    return call


def _bare_calls() -> Callable[[], None]:
    session = requests.Session()
    session.mount("http://", _Canned())

    def call() -> None:
        body = {**ASK, "stream": True}
        for read in (list, next, lambda lines: None):
            response = session.post("http://127.0.0.1:9/v1/chat/completions", json=body, stream=True)
            read(response.iter_lines())

    return call


class _Counting:
    """An observer that keeps nothing alive."""

    def __init__(self) -> None:
        self.latest: deque[weakref.ref[object]] = deque(maxlen=_WARM)
        self.open = 0

    def call_started(self, call: CallView) -> None:
        self.latest.append(weakref.ref(call))
        self.open += 1

    def first_chunk(self, call: CallView) -> None: ...

    def call_ended(self, call: CallView) -> None:
        self.open -= 1


@pytest.mark.e2e
@pytest.mark.parametrize("calls", [_openai_calls, _bare_calls], ids=["openai", "requests"])
def test_memory_is_flat_when_ten_thousand_calls_were_made(calls: Callable[[], Callable[[], None]]) -> None:
    """Whole, streamed and broken off: after the first hundreds not one object more stays alive."""
    observer = _Counting()
    instrumentors = [OpenAIInstrumentor(), HTTPInstrumentor()]
    for instrumentor in instrumentors:
        instrumentor.instrument(tracer_provider=TracerProvider(), skip_dep_check=True)
    add_observer(observer)
    try:
        call = calls()
        objects = []
        for rounds in (_WARM, _IN_A_ROW // 3 - _WARM):
            for _ in range(rounds):
                call()
            gc.collect()
            assert observer.open == 0
            assert not [ref for ref in observer.latest if ref() is not None]
            objects.append(len(gc.get_objects()))
    finally:
        remove_observer(observer)
        for instrumentor in instrumentors:
            instrumentor.uninstrument()
    grown = objects[1] - objects[0]
    assert grown < _WARM, f"{grown} objects more after {_IN_A_ROW} calls"

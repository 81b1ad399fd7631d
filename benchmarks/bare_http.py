"""What does a bare call of requests, httpx or aiohttp cost more when watched, and a POST that is no call of an LLM?

The transport answers at once, within this process. With and without take turns; CPU time, of which the medians count.
"""

from __future__ import annotations

import argparse
import asyncio
import atexit
import io
import json
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import aiohttp
import httpx
import requests
import urllib3
from opentelemetry.sdk.trace import TracerProvider
from requests.adapters import BaseAdapter

from otel_llm_instrumentation.http import HTTPInstrumentor

_CHUNKS = 100
_ASK = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}
_TYPE = {"content-type": "text/event-stream"}
_PIECE = b"data: " + json.dumps({"id": "1", "choices": [{"index": 0, "delta": {"content": "tok"}}]}).encode() + b"\n\n"


class _Pieces(io.RawIOBase):
    """A body that arrives a chunk at a time."""

    def __init__(self, count: int) -> None:
        self._left = count

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        self._left -= 1
        if self._left < 0:
            self.close()
            return b""
        return _PIECE


class _Canned(BaseAdapter):
    """Answers requests with so many chunks."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self._count = count

    def send(self, request: requests.PreparedRequest, *_: object, **__: object) -> requests.Response:
        response = requests.Response()
        response.status_code, response.request, response.url = 200, request, request.url or ""
        response.headers.update(_TYPE)
        response.raw = urllib3.HTTPResponse(_Pieces(self._count), preload_content=False)  # type: ignore[arg-type]
        return response

    def close(self) -> None: ...


class _Stream(httpx.SyncByteStream):
    """Answers httpx with so many chunks."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __iter__(self) -> Iterator[bytes]:
        return iter([_PIECE] * self._count)


class _Wire(asyncio.Transport):
    """A connection that answers a request of aiohttp with so many chunks, each in a turn of its own of the loop."""

    def __init__(self, protocol: asyncio.Protocol, count: int) -> None:
        super().__init__()
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        self._protocol = protocol
        self._answer = [head, *[b"%x\r\n%s\r\n" % (len(_PIECE), _PIECE)] * count, b"0\r\n\r\n"]

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if bytes(data[:4]) == b"POST":
            asyncio.get_running_loop().call_soon(self._send, 0)

    def _send(self, number: int) -> None:
        self._protocol.data_received(self._answer[number])
        if number + 1 < len(self._answer):
            asyncio.get_running_loop().call_soon(self._send, number + 1)

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        self._protocol.connection_lost(None)


class _Connector(aiohttp.BaseConnector):
    """Connects to nothing but that."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self._count = count

    async def _create_connection(self, *_: object, **__: object) -> Any:
        protocol = self._factory()
        protocol.connection_made(_Wire(protocol, self._count))
        return protocol


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks bare_http", description=__doc__)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--calls", type=int, default=200, help="calls a turn")
    options = parser.parse_args(arguments)
    print(f"{'µs of CPU, medians':24} {'plain':>8} {'watched':>8} {'added':>8}")
    added = {name: _compare(name, call, options) for name, call in _calls().items()}
    for library in ("requests", "httpx", "aiohttp"):
        per_chunk = (added[f"{library}, {_CHUNKS} chunks"] - added[f"{library}, 1 chunk"]) / (_CHUNKS - 1)
        print(f"{library}: {per_chunk:.2f} µs more for each further chunk")
    return 0


def _calls() -> dict[str, Callable[[], None]]:
    """What is measured, by name."""
    return {
        "requests, 1 chunk": _requests(1, "/v1/chat/completions"),
        f"requests, {_CHUNKS} chunks": _requests(_CHUNKS, "/v1/chat/completions"),
        "requests, no LLM": _requests(1, "/form"),
        "httpx, 1 chunk": _httpx(1, "/v1/chat/completions"),
        f"httpx, {_CHUNKS} chunks": _httpx(_CHUNKS, "/v1/chat/completions"),
        "httpx, no LLM": _httpx(1, "/form"),
        "aiohttp, 1 chunk": _aiohttp(1, "/v1/chat/completions"),
        f"aiohttp, {_CHUNKS} chunks": _aiohttp(_CHUNKS, "/v1/chat/completions"),
        "aiohttp, no LLM": _aiohttp(1, "/form"),
    }


def _requests(count: int, path: str) -> Callable[[], None]:
    session = requests.Session()
    session.mount("http://", _Canned(count))

    def call() -> None:
        for _ in session.post(f"http://h{path}", json=_ASK, stream=True).iter_content(1 << 12):
            pass

    return call


def _httpx(count: int, path: str) -> Callable[[], None]:
    def answer(_request: Any) -> httpx.Response:
        return httpx.Response(200, headers=_TYPE, stream=_Stream(count))

    client = httpx.Client(transport=httpx.MockTransport(answer))

    def call() -> None:
        with client.stream("POST", f"http://h{path}", json=_ASK) as response:
            for _ in response.iter_bytes():
                pass

    return call


def _aiohttp(count: int, path: str) -> Callable[[], None]:
    loop = asyncio.new_event_loop()

    async def open_session() -> aiohttp.ClientSession:
        return aiohttp.ClientSession(connector=_Connector(count))

    session = loop.run_until_complete(open_session())
    atexit.register(lambda: loop.run_until_complete(session.close()))

    async def ask() -> None:
        async with session.post(f"http://h{path}", json=_ASK) as response:
            async for _ in response.content.iter_any():
                pass

    return lambda: loop.run_until_complete(ask())


def _compare(name: str, call: Callable[[], None], options: argparse.Namespace) -> float:
    plain, watched = [], []
    for _ in range(options.turns + 1):
        plain.append(_microseconds(call, options.calls))
        HTTPInstrumentor().instrument(tracer_provider=TracerProvider())
        watched.append(_microseconds(call, options.calls))
        HTTPInstrumentor().uninstrument()
    before, after = statistics.median(plain[1:]), statistics.median(watched[1:])  # the first turn warms up
    print(f"{name:24} {before:8.1f} {after:8.1f} {after - before:8.1f}")
    return after - before


def _microseconds(call: Callable[[], None], calls: int) -> float:
    started_ns = time.process_time_ns()
    for _ in range(calls):
        call()
    return (time.process_time_ns() - started_ns) / calls / 1000

"""Bare HTTP clients under one face, so that each scenario runs on every one of them."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, Protocol

import aiohttp
import httpx
import pytest
import requests

from otel_llm_instrumentation.http import HTTPInstrumentor
from tests.instrumentation.conftest import Watched

ASK: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "What is the capital of France?"}]}


class Bare(Protocol):
    """A library that posts JSON."""

    def post(self, url: str, body: object) -> Any:
        """The response, its body read."""

    def stream(self, url: str, body: object) -> AbstractContextManager[Any]:
        """The response, its body yet to read, closed at the exit."""

    def open(self, url: str, body: object) -> Any:
        """The response, its body yet to read; nobody but the app closes it."""

    def lines(self, response: Any) -> Iterator[str]:
        """The lines of a streamed response, as the library gives them."""


class Requests:
    def post(self, url: str, body: object) -> Any:
        return requests.post(url, json=body, timeout=30)

    def stream(self, url: str, body: object) -> AbstractContextManager[Any]:
        return requests.post(url, json=body, stream=True, timeout=30)

    def open(self, url: str, body: object) -> Any:
        return self.stream(url, body)

    def lines(self, response: Any) -> Iterator[str]:
        return (line.decode() for line in response.iter_lines())


class HTTPX:
    """httpx, or httpx2, which has the same face."""

    def __init__(self, library: Any = httpx) -> None:
        self.library = library

    def post(self, url: str, body: object) -> Any:
        return self.library.post(url, json=body, timeout=30)

    def stream(self, url: str, body: object) -> AbstractContextManager[Any]:
        manager: AbstractContextManager[Any] = self.library.stream("POST", url, json=body, timeout=30)
        return manager

    def open(self, url: str, body: object) -> Any:
        client = self.library.Client(timeout=30)
        return client.send(client.build_request("POST", url, json=body), stream=True)

    def lines(self, response: Any) -> Iterator[str]:
        lines: Iterator[str] = response.iter_lines()
        return lines


def sync_clients() -> list[Any]:
    """Every library that is installed, for parametrize."""
    found = [pytest.param(Requests(), id="requests"), pytest.param(HTTPX(), id="httpx")]
    return [*found, *(pytest.param(HTTPX(library), id="httpx2") for library in _httpx2())]


class AsyncBare(Protocol):
    """The same, awaited. Its client lives as long as it is entered."""

    async def __aenter__(self) -> AsyncBare: ...

    async def __aexit__(self, *error: object) -> None: ...

    async def post(self, url: str, body: object) -> Any:
        """The JSON of the whole answer."""

    def stream(self, url: str, body: object) -> AbstractAsyncContextManager[Any]:
        """The response, its body yet to read, closed at the exit."""

    async def open(self, url: str, body: object) -> Any:
        """The response, its body yet to read; nobody but the app closes it."""

    def lines(self, response: Any) -> AsyncIterator[str]:
        """The lines of a streamed response, as the library gives them."""

    async def read(self, response: Any) -> bytes:
        """The rest of a streamed response."""

    async def close(self, response: Any) -> None:
        """Let go of it."""


class AsyncHTTPX:
    def __init__(self, library: Any) -> None:
        self.client = library.AsyncClient(timeout=30)

    async def __aenter__(self) -> AsyncHTTPX:
        await self.client.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.client.__aexit__(*error)

    async def post(self, url: str, body: object) -> Any:
        return (await self.client.post(url, json=body)).json()

    def stream(self, url: str, body: object) -> AbstractAsyncContextManager[Any]:
        manager: AbstractAsyncContextManager[Any] = self.client.stream("POST", url, json=body)
        return manager

    async def open(self, url: str, body: object) -> Any:
        return await self.client.send(self.client.build_request("POST", url, json=body), stream=True)

    def lines(self, response: Any) -> AsyncIterator[str]:
        lines: AsyncIterator[str] = response.aiter_lines()
        return lines

    async def read(self, response: Any) -> bytes:
        body: bytes = await response.aread()
        return body

    async def close(self, response: Any) -> None:
        await response.aclose()


class Aiohttp:
    session: aiohttp.ClientSession

    async def __aenter__(self) -> Aiohttp:
        self.session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(30))
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.session.close()

    async def post(self, url: str, body: object) -> Any:
        async with self.session.post(url, json=body) as response:
            return await response.json()

    def stream(self, url: str, body: object) -> AbstractAsyncContextManager[Any]:
        return self.session.post(url, json=body)

    async def open(self, url: str, body: object) -> Any:
        return await self.session.post(url, json=body)

    async def lines(self, response: Any) -> AsyncIterator[str]:
        async for line in response.content:
            yield line.decode().rstrip("\n")

    async def read(self, response: Any) -> bytes:
        body: bytes = await response.read()
        return body

    async def close(self, response: Any) -> None:
        response.close()


def async_clients() -> list[Any]:
    """Makers of every asynchronous one that is installed, for parametrize."""
    found = [pytest.param(functools.partial(AsyncHTTPX, *each.values), id=each.id) for each in async_libraries()]
    return [*found, pytest.param(Aiohttp, id="aiohttp")]


def async_libraries() -> list[Any]:
    """The libraries that have an ``AsyncClient``."""
    return [pytest.param(httpx, id="httpx"), *(pytest.param(library, id="httpx2") for library in _httpx2())]


def _httpx2() -> list[Any]:
    """What openai 3 brings; the older ones do not."""
    try:
        import httpx2
    except ImportError:
        return []
    return [httpx2]


@pytest.fixture
def bare(watched: Watched) -> Iterator[Watched]:
    """Bare HTTP instrumented, beside the client libraries, as `instrument()` does it."""
    HTTPInstrumentor().instrument(tracer_provider=watched.provider)
    yield watched
    HTTPInstrumentor().uninstrument()

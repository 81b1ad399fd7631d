"""Calls that never reached a server are told from those that failed on the way back."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable

import aiohttp
import httpx
import ollama
import openai
import pytest
import requests

from otel_llm_instrumentation.http import HTTPInstrumentor
from tests.instrumentation import payloads
from tests.instrumentation.conftest import Watched
from tests.instrumentation.replay import ReplayServer, Reply

_CHAT = {"model": "m", "messages": payloads.MESSAGES}


def nobodys_url() -> str:
    """An address of loopback at which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def by_openai(url: str) -> object:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0)
    return client.chat.completions.create(model="m", messages=payloads.MESSAGES)


def by_ollama(url: str) -> object:
    return ollama.Client(url).chat(model="m", messages=payloads.MESSAGES)


def by_requests(url: str) -> object:
    return requests.post(f"{url}/v1/chat/completions", json=_CHAT, timeout=5)


def by_httpx(url: str) -> object:
    return httpx.post(f"{url}/v1/chat/completions", json=_CHAT)


def by_aiohttp(url: str) -> object:
    async def ask() -> bytes:
        async with aiohttp.ClientSession() as session, session.post(f"{url}/v1/chat/completions", json=_CHAT) as answer:
            return await answer.read()

    return asyncio.run(ask())


_CLIENTS = [by_openai, by_ollama, by_requests, by_httpx, by_aiohttp]


@pytest.mark.parametrize("ask", _CLIENTS)
def test_call_reached_no_server_when_nobody_listens(ask: Callable[[str], object], watched: Watched) -> None:
    """So nobody worked on it, whatever its span's length."""
    HTTPInstrumentor().instrument(tracer_provider=watched.provider)
    try:
        with pytest.raises(Exception, match=r"[Cc]onnect"):
            ask(nobodys_url())
    finally:
        HTTPInstrumentor().uninstrument()
    watched.only_span()
    assert not watched.ended[0].reached_server


@pytest.mark.parametrize("ask", _CLIENTS)
def test_call_reached_no_server_when_its_name_is_nobodys(
    ask: Callable[[str], object], watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that cannot be looked up leads nowhere, whatever the library calls that."""

    def look_up(*_: object, **__: object) -> object:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    HTTPInstrumentor().instrument(tracer_provider=watched.provider)
    try:
        with pytest.raises(Exception, match=r"."):
            ask("http://nobody.example")
    finally:
        HTTPInstrumentor().uninstrument()
    watched.only_span()
    assert not watched.ended[0].reached_server


@pytest.mark.parametrize("ask", _CLIENTS)
def test_call_reached_its_server_when_that_hangs_up(
    ask: Callable[[str], object], server: ReplayServer, watched: Watched
) -> None:
    """It may have worked before it did."""
    server.reply = Reply([], raw=b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{")
    HTTPInstrumentor().instrument(tracer_provider=watched.provider)
    try:
        # requests puts up with a body that is too short, and then with what is no JSON
        with contextlib.suppress(Exception):
            ask(server.url)
    finally:
        HTTPInstrumentor().uninstrument()
    watched.only_span()
    assert watched.ended[0].reached_server


def _with_fallback(ask: Callable[[str], object], url: str, other_url: str) -> object:
    try:
        return ask(url)
    except (OSError, openai.APIError, httpx.HTTPError):  # aiohttp's are the first
        return ask(other_url)


@pytest.mark.parametrize("ask", _CLIENTS)
def test_call_reached_its_server_when_it_stands_in_for_one_that_did_not(
    ask: Callable[[str], object], server: ReplayServer, watched: Watched
) -> None:
    """A fallback in an ``except`` block: Python chains its failure to the first one's, which is not its own."""
    server.reply = Reply([], raw=b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n{")
    HTTPInstrumentor().instrument(tracer_provider=watched.provider)
    try:
        with pytest.raises(Exception, match=r"."):
            _with_fallback(ask, nobodys_url(), server.url)
    finally:
        HTTPInstrumentor().uninstrument()
    assert [call.reached_server for call in watched.ended] == [False, True]

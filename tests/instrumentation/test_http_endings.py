"""A streamed bare call ends once, when it ends, and says truly how."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import pickle
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
import requests
from opentelemetry.trace import StatusCode
from urllib3.exceptions import HTTPError

from otel_llm_instrumentation import CallView, add_observer, remove_observer
from otel_llm_instrumentation.http import HTTPInstrumentor
from tests.instrumentation import payloads
from tests.instrumentation.bare import ASK, HTTPX, Aiohttp, AsyncBare, Bare, Requests, async_clients, bare, sync_clients
from tests.instrumentation.conftest import Watched
from tests.instrumentation.replay import ReplayServer, Reply, ndjson_reply, sse_reply

__all__ = ["bare"]

_ASK = {**ASK, "stream": True}
_WHOLE = sse_reply(payloads.chunks())


class _UserError(Exception):
    pass


def _drained(client: Bare, url: str) -> None:
    with client.stream(url, _ASK) as response:
        list(client.lines(response))


def _read_at_once(client: Bare, url: str) -> None:
    with client.stream(url, _ASK) as response:
        if isinstance(response, requests.Response):
            assert response.content
        else:
            response.read()


def _broken_off(client: Bare, url: str) -> None:
    response = client.open(url, _ASK)
    for _ in client.lines(response):
        break
    gc.collect()


def _never_read(client: Bare, url: str) -> None:
    client.open(url, _ASK)
    gc.collect()


def _closed(client: Bare, url: str) -> None:
    response = client.open(url, _ASK)
    next(client.lines(response))
    response.close()
    response.close()


def _left_early(client: Bare, url: str) -> None:
    with client.stream(url, _ASK) as response:
        next(client.lines(response))


def _left_by_user_error(client: Bare, url: str) -> None:
    with contextlib.suppress(_UserError), client.stream(url, _ASK) as response:
        lines = client.lines(response)
        next(lines)
        raise _UserError


def _left_while_an_older_error_is_handled(client: Bare, url: str) -> None:
    try:
        raise _UserError
    except _UserError:
        with client.stream(url, _ASK):
            pass


@pytest.mark.parametrize("client", sync_clients())
@pytest.mark.parametrize(
    ("use", "error_type", "whole"),
    [
        (_drained, None, True),
        (_read_at_once, None, True),
        (_broken_off, None, False),
        (_never_read, None, False),
        (_closed, None, False),
        (_left_early, None, False),
        (_left_by_user_error, "_UserError", False),
        (_left_while_an_older_error_is_handled, None, False),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_bare_stream_ends_its_call_once_when_used_synchronously(
    client: Bare,
    use: Callable[[Bare, str], None],
    error_type: str | None,
    whole: bool,
    server: ReplayServer,
    bare: Watched,
) -> None:
    """However the app lets go of a response, its call ends, with the tokens if the app read that far."""
    server.reply = _WHOLE if whole else sse_reply(payloads.chunks()[:2], done=False, hangs=True)
    use(client, f"{server.url}/v1/chat/completions")
    _assert_ended(bare, error_type, whole)


def _assert_ended(watched: Watched, error_type: str | None, whole: bool) -> None:
    span = watched.only_span()
    [call] = watched.ended
    assert call.error_type == error_type == (span.attributes or {}).get("error.type")
    assert span.status.status_code is (StatusCode.UNSET if error_type is None else StatusCode.ERROR)
    assert call.output_tokens == (8 if whole else None)


_FAILURES = [
    pytest.param(sse_reply(payloads.chunks()[:1], done=False, breaks_off=True), id="reset"),
    pytest.param(
        sse_reply([*payloads.chunks()[:1], {"error": {"message": "out of memory"}}]), id="an error among the events"
    ),
    pytest.param(
        ndjson_reply([payloads.ollama_chunks()[0], {"error": "out of memory"}]), id="an error among the lines"
    ),
]


@pytest.mark.parametrize("client", sync_clients())
@pytest.mark.parametrize("reply", _FAILURES)
def test_bare_stream_ends_as_an_error_when_it_fails(
    client: Bare, reply: Any, server: ReplayServer, bare: Watched
) -> None:
    """A failure of the connection reaches the app; one that the server tells of is read by the app."""
    server.reply = reply
    raised = None
    try:
        _drained(client, f"{server.url}/v1/chat/completions")
    except Exception as error:  # noqa: BLE001 - each library has its own
        raised = error
    _assert_failed(bare, raised, reply)


def _assert_failed(watched: Watched, raised: Exception | None, reply: Reply) -> None:
    assert (raised is not None) is reply.breaks_off
    span = watched.only_span()
    assert span.status.status_code is StatusCode.ERROR
    assert ((span.attributes or {})["error.type"] == "_OTHER") is (raised is None)


def test_bare_stream_ends_as_an_error_when_reading_what_is_below_it_fails(server: ReplayServer, bare: Watched) -> None:
    """The app may read past requests, from its ``raw``."""
    server.reply = sse_reply(payloads.chunks()[:1], done=False, breaks_off=True)
    response = requests.post(f"{server.url}/v1/chat/completions", json=_ASK, stream=True)
    with pytest.raises(HTTPError) as raised:
        response.raw.read()
    assert bare.only_span().status.status_code is StatusCode.ERROR
    assert bare.ended[0].error_type == type(raised.value).__name__


AsyncUse = Callable[[AsyncBare, str], Awaitable[None]]


async def _drained_async(client: AsyncBare, url: str) -> None:
    async with client.stream(url, _ASK) as response:
        async for _ in client.lines(response):
            pass


async def _read_async(client: AsyncBare, url: str) -> None:
    async with client.stream(url, _ASK) as response:
        await client.read(response)


async def _broken_off_async(client: AsyncBare, url: str) -> None:
    response = await client.open(url, _ASK)
    async for _ in client.lines(response):
        break
    del response
    await _collected()


async def _never_read_async(client: AsyncBare, url: str) -> None:
    await client.open(url, _ASK)
    await _collected()


async def _collected() -> None:
    for _ in range(12):  # what one collection frees, the loop closes, and that frees the next
        gc.collect()
        await asyncio.sleep(0)


async def _left_early_async(client: AsyncBare, url: str) -> None:
    async with client.stream(url, _ASK):
        pass


async def _closed_async(client: AsyncBare, url: str) -> None:
    response = await client.open(url, _ASK)
    await client.close(response)
    await client.close(response)


async def _left_by_user_error_async(client: AsyncBare, url: str) -> None:
    with contextlib.suppress(_UserError):
        async with client.stream(url, _ASK) as response:
            await client.lines(response).__anext__()
            raise _UserError


async def _cancelled(client: AsyncBare, url: str) -> None:
    arrived = asyncio.Event()

    async def read() -> None:
        async with client.stream(url, _ASK) as response:
            async for _ in client.lines(response):
                arrived.set()

    task = asyncio.create_task(read())
    await arrived.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("make_client", async_clients())
@pytest.mark.parametrize(
    ("use", "error_type", "whole"),
    [
        (_drained_async, None, True),
        (_read_async, None, True),
        (_broken_off_async, None, False),
        (_never_read_async, None, False),
        (_left_early_async, None, False),
        (_closed_async, None, False),
        (_left_by_user_error_async, "_UserError", False),
        (_cancelled, "CancelledError", False),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
async def test_bare_stream_ends_its_call_once_when_used_asynchronously(
    make_client: Callable[[], AsyncBare],
    use: AsyncUse,
    error_type: str | None,
    whole: bool,
    server: ReplayServer,
    bare: Watched,
) -> None:
    """The same, awaited, and when the task is cancelled."""
    server.reply = _WHOLE if whole else sse_reply(payloads.chunks()[:2], done=False, hangs=True)
    async with make_client() as client:
        await use(client, f"{server.url}/v1/chat/completions")
        assert len(bare.ended) == 1 or isinstance(client, Aiohttp)
    if not bare.ended:  # aiohttp's connections hold what they receive for as long as they are open
        await _collected()
    _assert_ended(bare, error_type, whole)


@pytest.mark.parametrize("make_client", async_clients())
@pytest.mark.parametrize("reply", _FAILURES)
async def test_bare_stream_ends_as_an_error_when_it_fails_while_it_is_awaited(
    make_client: Callable[[], AsyncBare], reply: Any, server: ReplayServer, bare: Watched
) -> None:
    """The same failures."""
    server.reply = reply
    raised = None
    async with make_client() as client:
        try:
            await _drained_async(client, f"{server.url}/v1/chat/completions")
        except Exception as error:  # noqa: BLE001 - each library has its own
            raised = error
    _assert_failed(bare, raised, reply)


@pytest.mark.parametrize("client", [Requests(), HTTPX()], ids=["requests", "httpx"])
def test_bare_call_still_ends_when_uninstrumented_while_it_is_open(
    client: Bare, server: ReplayServer, watched: Watched
) -> None:
    """No span is lost between the two."""
    HTTPInstrumentor().instrument(tracer_provider=watched.provider)
    server.reply = _WHOLE
    with client.stream(f"{server.url}/v1/chat/completions", _ASK) as response:
        HTTPInstrumentor().uninstrument()
        list(client.lines(response))
    _assert_ended(watched, None, True)


def test_nothing_is_read_ahead_when_the_app_has_not_read(server: ReplayServer, bare: Watched) -> None:
    """Not even the first byte."""
    server.reply = sse_reply(payloads.chunks()[:1], done=False, hangs=True)
    url = f"{server.url}/v1/chat/completions"
    with requests.post(url, json=_ASK, stream=True) as response:
        assert response.raw.tell() == 0
        assert not response._content_consumed  # type: ignore[attr-defined]
    with httpx.stream("POST", url, json=_ASK) as streamed:
        assert streamed.num_bytes_downloaded == 0
        assert not streamed.is_stream_consumed
    assert not bare.first_chunks


def test_response_is_what_it_was_when_it_is_watched(server: ReplayServer, bare: Watched) -> None:
    """Its kind, its time, and that it can be pickled."""
    server.reply = _WHOLE
    url = f"{server.url}/v1/chat/completions"
    with requests.post(url, json=_ASK, stream=True) as response:
        import urllib3

        assert type(response) is requests.Response
        assert isinstance(response.raw, urllib3.HTTPResponse)
        assert type(response.raw).__name__ == "HTTPResponse"
        assert pickle.loads(pickle.dumps(response)).content == b"".join(_WHOLE.body)
    with httpx.stream("POST", url, json=_ASK) as streamed:
        assert type(streamed) is httpx.Response
        assert isinstance(streamed.stream, httpx.SyncByteStream)
        streamed.read()
    assert streamed.elapsed.total_seconds() > 0
    assert pickle.loads(pickle.dumps(streamed)).content == b"".join(_WHOLE.body)


def test_connection_is_released_at_once_when_a_watched_response_is_dropped(server: ReplayServer) -> None:
    """No cycle of ours keeps a body alive until the garbage collector comes by."""
    gone: list[weakref.ref[object]] = []

    class Witness:
        def call_started(self, call: CallView) -> None:
            gone.append(weakref.ref(call))

        def first_chunk(self, call: CallView) -> None: ...

        def call_ended(self, call: CallView) -> None: ...

    HTTPInstrumentor().instrument()
    witness = Witness()
    add_observer(witness)
    server.reply = sse_reply(payloads.chunks()[:1], done=False, hangs=True)
    gc.disable()
    try:
        body = requests.post(f"{server.url}/v1/chat/completions", json=_ASK, stream=True)
        raw = weakref.ref(body.raw)
        del body
        assert (raw(), gone[0]()) == (None, None)
    finally:
        gc.enable()
        remove_observer(witness)
        HTTPInstrumentor().uninstrument()

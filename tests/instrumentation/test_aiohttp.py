"""What only aiohttp has: sessions, readers that receive by themselves, and that other libraries send through it."""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
import logging
import types
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import openai
import pytest
import yarl
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.instrumentation.utils import suppress_http_instrumentation, suppress_instrumentation

from otel_llm_instrumentation.http import HTTPInstrumentor
from tests.instrumentation import payloads
from tests.instrumentation.bare import ASK, bare
from tests.instrumentation.conftest import Watched
from tests.instrumentation.replay import ReplayServer, Reply, json_reply, replaying, sse_reply

__all__ = ["bare"]

_PATH = "/v1/chat/completions"
_ASK = {**ASK, "stream": True}
_BEGUN = sse_reply(payloads.chunks()[:2], done=False, hangs=True)


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """Made before the instrumentation is turned on, if it stands before ``bare``."""
    async with aiohttp.ClientSession() as made:
        yield made


async def _all(iterator: Any) -> list[Any]:
    return [piece async for piece in iterator]


async def _until_empty(read: Callable[[], Awaitable[Any]]) -> list[Any]:
    pieces = []
    while piece := await read():
        pieces.append(piece)
    return pieces


_Response = aiohttp.ClientResponse
_READS: dict[str, Callable[[_Response], Awaitable[Any]]] = {
    "read": lambda response: response.read(),
    "text": lambda response: response.text(),
    "json": lambda response: response.json(content_type=None, loads=str),
    "lines": lambda response: _all(response.content),
    "readline": lambda response: _until_empty(response.content.readline),
    "readuntil": lambda response: _until_empty(lambda: response.content.readuntil(b"data")),
    "content.read": lambda response: response.content.read(),
    # Where these cut depends on when it comes.
    "iter_any": lambda response: _all(response.content.iter_any()),
    "iter_chunked": lambda response: _all(response.content.iter_chunked(7)),
    "iter_chunks": lambda response: _all(response.content.iter_chunks()),
    "readany": lambda response: _until_empty(response.content.readany),
    "read in pieces": lambda response: _until_empty(lambda: response.content.read(5)),
    "readchunk": lambda response: _all(iter_chunks(response)),
}


async def iter_chunks(response: _Response) -> AsyncIterator[bytes]:
    """By ``readchunk``, which says at the end of what it gives whether a chunk ended there."""
    while (piece := await response.content.readchunk()) != (b"", False):
        yield piece[0]


def _joined(seen: Any) -> Any:
    """All that came, however it was cut."""
    if not isinstance(seen, list):
        return seen
    return b"".join(piece[0] if isinstance(piece, tuple) else piece for piece in seen)


_FORMS = {
    "chunked": lambda whole: sse_reply(payloads.chunks()),
    "with a length": lambda whole: Reply([whole], content_type="text/event-stream", chunked=False),
    "packed": lambda whole: Reply([gzip.compress(whole)], headers={"content-encoding": "gzip"}),
}


@pytest.mark.parametrize("form", _FORMS)
@pytest.mark.parametrize("read", _READS)
async def test_app_reads_the_same_when_it_reads_a_response_of_aiohttp(
    read: str, form: str, server: ReplayServer, session: aiohttp.ClientSession, watched: Watched
) -> None:
    """Every way to read, with and without us; the call ends before the app has closed anything."""
    whole = b"".join(sse_reply(payloads.chunks()).body)
    server.reply = _FORMS[form](whole)

    async def ask() -> tuple[Any, _Response]:
        response = await session.post(server.url + _PATH, json=_ASK)
        return _joined(await _READS[read](response)), response

    plain, _ = await ask()
    HTTPInstrumentor().instrument(tracer_provider=watched.provider)
    try:
        seen, response = await ask()
    finally:
        HTTPInstrumentor().uninstrument()
    assert seen == plain
    assert (watched.ended[0].input_tokens, watched.ended[0].output_tokens) == (38, 8)
    assert len(watched.first_chunks) == 1
    watched.only_span()
    assert type(response) is aiohttp.ClientResponse
    assert isinstance(response.content, aiohttp.StreamReader)
    assert type(response.content).__qualname__ == "StreamReader"
    assert response.connection is None  # and it can be used for the next


async def test_error_of_aiohttp_is_the_same_when_there_is_less_than_the_app_wants(
    server: ReplayServer, session: aiohttp.ClientSession, bare: Watched
) -> None:
    """``readexactly``, which cannot be had without the end."""
    server.reply = sse_reply(payloads.chunks())
    async with session.post(server.url + _PATH, json=_ASK) as response:
        with pytest.raises(asyncio.IncompleteReadError):
            await response.content.readexactly(1 << 20)
    assert (bare.ended[0].output_tokens, bare.ended[0].error_type) == (8, None)


_Manager = aiohttp.client._RequestContextManager
_Send = Callable[[aiohttp.ClientSession, str], AbstractAsyncContextManager[_Response]]
_TEXT = json.dumps(ASK)
_CALLS: dict[str, _Send] = {
    "bytes": lambda session, url: session.post(url, data=_TEXT.encode()),
    "text": lambda session, url: session.post(url, data=_TEXT),
    "a URL": lambda session, url: session.post(yarl.URL(url), json=ASK),
    "a query": lambda session, url: session.post(url, json=ASK, params={"api-version": "1"}),
    "request": lambda session, url: session.request("post", url, json=ASK),
    "by name": lambda session, url: _Manager(session._request(method="POST", str_or_url=url, json=ASK)),
    "a tuple": lambda session, url: session.post(url, json={**ASK, "messages": tuple(ASK["messages"])}),
}


@pytest.mark.parametrize("send", _CALLS)
async def test_request_is_a_call_however_the_session_is_given_it(
    send: str, session: aiohttp.ClientSession, server: ReplayServer, bare: Watched
) -> None:
    """By a session that was there before."""
    server.reply = json_reply(payloads.chat())
    async with _CALLS[send](session, server.url + _PATH):
        pass
    assert bare.only_span().name == "chat m"
    assert bare.started[0].server_port == server.port


@pytest.mark.parametrize("path", ["/v1/chat/completions", "chat/completions"])
async def test_request_is_a_call_when_its_url_is_relative_to_that_of_the_session(
    path: str, server: ReplayServer, bare: Watched
) -> None:
    """As aiohttp joins the two; the older ones take only paths from the root."""
    base = f"{server.url}/" if path.startswith("/") else f"{server.url}/v1/"
    try:
        session = aiohttp.ClientSession(base)
    except AssertionError:
        return
    async with session, session.post(path, json=ASK) as response:
        assert response.url.path == "/v1/chat/completions"
    assert bare.only_span().name == "chat m"


async def _pieces() -> AsyncIterator[bytes]:
    yield _TEXT.encode()


_NO_CALLS: dict[str, _Send] = {
    "another route": lambda session, url: session.post(url + "/x", json=ASK),
    "another method": lambda session, url: session.put(url, json=ASK),
    "get": lambda session, url: session.get(url),
    "a form": lambda session, url: session.post(url, data={"model": "m", "messages": "x"}),
    "a list": lambda session, url: session.post(url, json=[ASK]),
    "no messages": lambda session, url: session.post(url, json={"model": "m"}),
    "a generator": lambda session, url: session.post(url, data=_pieces(), headers={"content-length": str(len(_TEXT))}),
    "nothing": lambda session, url: session.post(url),
}


@pytest.mark.parametrize("send", _NO_CALLS)
async def test_request_of_aiohttp_passes_through_when_it_is_no_call_of_an_llm(
    send: str, session: aiohttp.ClientSession, server: ReplayServer, bare: Watched
) -> None:
    """Or none that can be looked at."""
    async with _NO_CALLS[send](session, server.url + _PATH):
        pass
    assert not bare.started


async def test_errors_of_aiohttp_are_the_apps_when_a_url_is_none(
    session: aiohttp.ClientSession, bare: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    """And we have nothing to say of it."""
    with caplog.at_level(logging.DEBUG, "otel_llm_instrumentation"), pytest.raises((aiohttp.InvalidURL, TypeError)):
        await session.post("http://[nobody/v1/chat/completions", json=ASK)
    with pytest.raises((aiohttp.InvalidURL, TypeError)):
        await session.post(None, json=ASK)  # type: ignore[arg-type]
    assert not caplog.records
    assert not bare.started


@pytest.mark.parametrize("raises", [True, False])
async def test_call_says_the_status_when_the_server_refuses_aiohttp(
    raises: bool, session: aiohttp.ClientSession, server: ReplayServer, bare: Watched
) -> None:
    """Or, where the app lets aiohttp raise, what it raised."""
    server.reply = json_reply({"error": {"message": "no such model"}}, 404)
    if raises:
        with pytest.raises(aiohttp.ClientResponseError):
            await session.post(server.url + _PATH, json=ASK, raise_for_status=True)
    else:
        async with session.post(server.url + _PATH, json=ASK) as response:
            assert (await response.json())["error"]["message"] == "no such model"
    assert bare.ended[0].error_type == ("ClientResponseError" if raises else "404")
    assert bare.ended[0].reached_server
    assert not bare.only_span().status.is_unset


async def test_answer_is_seen_when_the_app_has_read_it_before_it_gets_the_response(
    server: ReplayServer, bare: Watched
) -> None:
    """A function of the app's may look at each response first."""
    server.reply = json_reply(payloads.chat())

    async def look(response: _Response) -> None:
        assert (await response.json()) == payloads.CHAT

    async with (
        aiohttp.ClientSession(raise_for_status=look) as session,
        session.post(server.url + _PATH, json=ASK) as response,
    ):
        assert (await response.json()) == payloads.CHAT
    assert bare.ended[0].output_tokens == 8
    bare.only_span()


async def test_call_ends_when_all_has_arrived_though_the_app_has_read_nothing(
    session: aiohttp.ClientSession, server: ReplayServer, bare: Watched
) -> None:
    """The server has done its work, and has said what it was; a slow app adds nothing to it."""
    server.reply = sse_reply(payloads.chunks())
    async with session.post(server.url + _PATH, json=_ASK) as response:
        while not response.content.is_eof():
            await asyncio.sleep(0)
        assert (bare.ended[0].output_tokens, len(bare.first_chunks)) == (8, 1)
        assert len((await response.text()).splitlines()) == 10
    assert bare.only_span().status.is_unset


async def test_call_goes_on_when_a_read_of_the_apps_was_cancelled(
    session: aiohttp.ClientSession, server: ReplayServer, bare: Watched
) -> None:
    """An app that waits with a limit of its own can read on."""
    server.reply = sse_reply(payloads.chunks()[:1], done=False, hangs=True, breaks_off=True)
    async with session.post(server.url + _PATH, json=_ASK) as response:
        await response.content.readuntil(b"\n\n")
        reading = asyncio.ensure_future(response.content.readany())
        await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert not bare.ended
        server.stopped.set()
        with pytest.raises(aiohttp.ClientError):
            await response.content.readany()
    assert bare.ended[0].error_type == "ClientPayloadError"
    bare.only_span()


@pytest.mark.parametrize(
    ("timeout", "error"),
    [
        (aiohttp.ClientTimeout(total=0.3), ("TimeoutError",)),
        (aiohttp.ClientTimeout(sock_read=0.3), ("SocketTimeoutError", "ServerTimeoutError")),
    ],
    ids=["of all", "of a read"],
)
async def test_call_says_so_when_aiohttp_gives_up_while_a_stream_is_read(
    timeout: aiohttp.ClientTimeout,
    error: tuple[str, ...],
    session: aiohttp.ClientSession,
    server: ReplayServer,
    bare: Watched,
) -> None:
    """At once, though the app has not closed the response."""
    server.reply = _BEGUN
    with pytest.raises(asyncio.TimeoutError):
        await _all((await session.post(server.url + _PATH, json=_ASK, timeout=timeout)).content)
    assert bare.ended[0].error_type in error
    assert bare.ended[0].reached_server
    assert not bare.only_span().status.is_unset


async def test_call_ends_when_its_task_is_cancelled_before_an_answer(server: ReplayServer, bare: Watched) -> None:
    """Within the request itself."""
    asked = asyncio.Event()

    async def hang(*_: object) -> None:
        asked.set()
        await asyncio.Event().wait()

    config = aiohttp.TraceConfig()
    config.on_request_start.append(hang)
    async with aiohttp.ClientSession(trace_configs=[config]) as slow:
        task = asyncio.ensure_future(slow.request("POST", server.url + _PATH, json=ASK))
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert bare.ended[0].error_type == "CancelledError"
    bare.only_span()


async def test_nothing_of_a_call_is_kept_when_its_response_is_gone(
    session: aiohttp.ClientSession, server: ReplayServer, bare: Watched
) -> None:
    """A reader's answer is kept beside it, and no longer than it."""
    server.reply = _BEGUN
    response = await session.post(server.url + _PATH, json=_ASK)
    answers = type(response.content)._otel_llm_answers  # type: ignore[attr-defined]
    assert len(answers) == 1
    answer_is = weakref.ref(bare.started[0])
    response.close()
    del response
    for calls in (bare.started, bare.ended, bare.first_chunks):
        calls.clear()
    for _ in range(3):
        gc.collect()
        await asyncio.sleep(0)
    assert (answers, answer_is()) == ({}, None)


async def test_call_of_aiohttp_still_ends_when_uninstrumented_while_it_is_open(
    session: aiohttp.ClientSession, server: ReplayServer, watched: Watched
) -> None:
    """No span is lost between the two."""
    HTTPInstrumentor().instrument(tracer_provider=watched.provider)
    server.reply = _BEGUN
    async with session.post(server.url + _PATH, json=_ASK):
        HTTPInstrumentor().uninstrument()
    watched.only_span()


async def test_call_is_the_sockets_when_the_session_leads_there(tmp_path: Path, bare: Watched) -> None:
    """And has reached nobody where there is none."""
    url = f"http://localhost{_PATH}"
    with replaying(tmp_path / "llm.sock") as server:
        server.reply = json_reply(payloads.chat())
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(tmp_path / "llm.sock"))) as session,
            session.post(url, json=ASK) as response,
        ):
            assert (await response.json()) == payloads.CHAT
    (tmp_path / "llm.sock").unlink()
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(tmp_path / "llm.sock"))) as session:
        with pytest.raises(aiohttp.ClientConnectorError):
            await session.post(url, json=ASK)
    reached = [(call.server_address, call.server_port, call.reached_server) for call in bare.ended]
    assert reached == [(str(tmp_path / "llm.sock"), None, True), (str(tmp_path / "llm.sock"), None, False)]


@pytest.mark.parametrize("error", ["ClientConnectorError", "ConnectionTimeoutError"])
async def test_call_has_reached_nobody_when_no_connection_is_made(error: str, bare: Watched) -> None:
    """A name that is nobody's, and a host that does not answer in time."""
    if not hasattr(aiohttp, error):
        return  # before 3.10 it is the same one as of an answer that does not come in time

    class Nobodys(aiohttp.abc.AbstractResolver):
        async def resolve(self, host: str, *_: object, **__: object) -> Any:
            if error == "ClientConnectorError":
                raise OSError(None, "there is no such host")
            await asyncio.Event().wait()

        async def close(self) -> None: ...

    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(resolver=Nobodys()), timeout=aiohttp.ClientTimeout(connect=0.05)
    ) as session:
        with pytest.raises(getattr(aiohttp, error)):
            await session.post(f"http://nobody.example{_PATH}", json=ASK)
    assert not bare.ended[0].reached_server


async def test_app_gets_its_response_when_it_is_none_of_aiohttps(
    session: aiohttp.ClientSession, watched: Watched, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What plays recorded answers puts itself where requests are made."""
    recorded = types.SimpleNamespace(status=200, headers={}, content=object(), _body=None)

    async def play(*_: object, **__: object) -> Any:
        return recorded

    monkeypatch.setattr(aiohttp.ClientSession, "_request", play)
    HTTPInstrumentor().instrument(tracer_provider=watched.provider)
    try:
        assert await session.post(f"http://h{_PATH}", json=ASK) is recorded  # type: ignore[comparison-overlap]
    finally:
        HTTPInstrumentor().uninstrument()
    assert not caplog.records
    watched.only_span()


class _Carrier(httpx.AsyncBaseTransport):
    """A transport of httpx that sends by aiohttp, as httpx-aiohttp's and LiteLLM's do."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await self._session.request(
            request.method, str(request.url), data=await request.aread(), headers=request.headers.multi_items()
        )

        class Stream(httpx.AsyncByteStream):
            async def __aiter__(self) -> AsyncIterator[bytes]:
                async for piece in response.content.iter_any():
                    yield piece

            async def aclose(self) -> None:
                await response.__aexit__(None, None, None)

        return httpx.Response(response.status, headers=list(response.headers.items()), stream=Stream())


def _own_carriers() -> list[Any]:
    """openai's own client over aiohttp, from 3 on; the older ones need another package for it."""
    try:
        openai.DefaultAioHttpClient()
    except (AttributeError, RuntimeError):
        return []
    return [pytest.param(lambda _session: openai.DefaultAioHttpClient(), id="openai's own")]


_CARRIERS = [
    pytest.param(lambda session: httpx.AsyncClient(transport=_Carrier(session)), id="a transport"),
    *_own_carriers(),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("carrier", _CARRIERS)
async def test_one_span_is_made_when_a_client_library_sends_through_aiohttp(
    carrier: Any, stream: bool, session: aiohttp.ClientSession, server: ReplayServer, bare: Watched
) -> None:
    """OpenAI's, whose call it is."""
    server.reply = sse_reply(payloads.chunks()) if stream else json_reply(payloads.chat())
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="k", http_client=carrier(session)) as client:
        answer: Any = await client.chat.completions.create(**ASK, stream=stream)
        if stream:
            assert len(await _all(answer)) == 4
    assert len(server.requests) == 1
    assert bare.ended[0].output_tokens == 8
    scope = bare.only_span().instrumentation_scope
    assert scope is not None
    assert scope.name == "otel_llm_instrumentation.openai"


async def test_one_span_is_made_when_httpx_sends_through_aiohttp(
    session: aiohttp.ClientSession, server: ReplayServer, bare: Watched
) -> None:
    """It is httpx's, which the app called."""
    server.reply = sse_reply(payloads.chunks())
    async with (
        httpx.AsyncClient(transport=_Carrier(session)) as client,
        client.stream("POST", server.url + _PATH, json=_ASK) as response,
    ):
        await response.aread()
    assert bare.ended[0].output_tokens == 8
    bare.only_span()


@pytest.mark.parametrize("suppress", [suppress_instrumentation, suppress_http_instrumentation])
async def test_nothing_of_aiohttp_is_observed_when_it_is_suppressed(
    suppress: Callable[[], Any], session: aiohttp.ClientSession, server: ReplayServer, bare: Watched
) -> None:
    """The keys of OpenTelemetry."""
    with suppress():
        await session.post(server.url + _PATH, json=ASK)
    assert not bare.started


def _traced_by_opentelemetry(watched: Watched) -> aiohttp.TraceConfig:
    """As OpenTelemetry's instrumentation of aiohttp has it in 0.66b1: its span is current during a request."""
    tracer = watched.provider.get_tracer("opentelemetry.instrumentation.aiohttp_client")

    async def start(_session: object, made: Any, params: Any) -> None:
        made.span = tracer.start_span(params.method, kind=trace.SpanKind.CLIENT)
        made.token = otel_context.attach(trace.set_span_in_context(made.span))

    async def end(_session: object, made: Any, _params: object) -> None:
        otel_context.detach(made.token)
        made.span.end()

    config = aiohttp.TraceConfig(trace_config_ctx_factory=types.SimpleNamespace)  # type: ignore[arg-type, unused-ignore]
    config.on_request_start.append(start)
    config.on_request_end.append(end)
    config.on_request_exception.append(end)
    return config


async def test_call_is_observed_once_when_the_http_instrumentation_of_aiohttp_is_on(
    server: ReplayServer, bare: Watched
) -> None:
    """It puts its span below ours, through the sessions that are made after it."""
    server.reply = json_reply(payloads.chat())
    async with aiohttp.ClientSession(trace_configs=[_traced_by_opentelemetry(bare)]) as session:
        await (await session.post(server.url + _PATH, json=ASK)).read()
    theirs, ours = bare.spans
    assert (theirs.name, ours.name) == ("POST", "chat m")
    assert theirs.parent is not None
    assert ours.context is not None
    assert theirs.parent.span_id == ours.context.span_id
    assert (len(bare.ended), bare.ended[0].owns_span, bare.ended[0].output_tokens) == (1, True, 8)


async def test_one_span_covers_all_attempts_when_aiohttp_follows_a_redirect(
    session: aiohttp.ClientSession, server: ReplayServer, bare: Watched
) -> None:
    """Which happens below the hook, as retries of its own do."""
    server.reply = Reply([], status=307, headers={"location": f"{server.url}{_PATH}"})
    with pytest.raises(aiohttp.TooManyRedirects):
        await session.post(server.url + _PATH, json=ASK, max_redirects=3)
    assert len(server.requests) == 3
    assert bare.only_span().name == "chat m"

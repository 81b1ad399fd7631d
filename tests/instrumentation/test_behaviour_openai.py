"""Every surface of the OpenAI client by every way of ending, sync and async, against the real llama.cpp server.

The table is made of what the installed version of the client has. What this server cannot answer stands beside it,
against recorded bytes: faults and Azure, and the helper of the Responses API, which cannot read llama.cpp's events.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionChunk
from opentelemetry.trace import StatusCode
from pydantic import BaseModel

from tests.conftest import LlamaServerFactory
from tests.instrumentation.bare import bare
from tests.instrumentation.conftest import Watched

__all__ = ["bare"]

pytestmark = pytest.mark.suite

_TOKENS = 3
_SAME: dict[str, Any] = {"temperature": 0, "extra_body": {"ignore_eos": True}}
_CHAT: dict[str, Any] = {
    "model": "smollm2",
    "messages": [{"role": "user", "content": "Name three colours."}],
    "max_tokens": _TOKENS,
    **_SAME,
}
_TEXT: dict[str, Any] = {"model": "smollm2", "prompt": "Red, green and", "max_tokens": _TOKENS, **_SAME}
_RESPONSE: dict[str, Any] = {
    "model": "smollm2",
    "input": "Name three colours.",
    "max_output_tokens": _TOKENS,
    **_SAME,
}


class _Colour(BaseModel):
    name: str


class _UserError(Exception):
    pass


class _House(openai.OpenAI):
    pass


class _AsyncHouse(openai.AsyncOpenAI):
    pass


@dataclass(frozen=True)
class Surface:
    """One way to ask.

    Attributes:
        ask: works on the sync and on the async client; what it gives may have to be awaited.
        parse: a raw response comes first, which gives the stream when it is parsed.
        is_stream: the app gets the library's own ``Stream``.
    """

    ask: Callable[[Any], Any]
    parse: bool = False
    is_stream: bool = True


def _post(client: Any) -> Any:
    stream = openai.AsyncStream if isinstance(client, openai.AsyncOpenAI) else openai.Stream
    body = {key: value for key, value in _CHAT.items() if key != "extra_body"} | {"stream": True, "ignore_eos": True}
    stream_type: Any = stream[ChatCompletionChunk]
    return client.post("/chat/completions", cast_to=ChatCompletionChunk, body=body, stream=True, stream_cls=stream_type)


_STREAMS = {
    "chat": Surface(lambda client: client.chat.completions.create(**_CHAT, stream=True)),
    "chat with options": Surface(
        lambda client: client.with_options(timeout=60).chat.completions.create(**_CHAT, stream=True)
    ),
    "completions": Surface(lambda client: client.completions.create(**_TEXT, stream=True)),
    "post": Surface(_post),
    "raw": Surface(lambda client: client.chat.completions.with_raw_response.create(**_CHAT, stream=True), parse=True),
    "streaming response": Surface(
        lambda client: client.chat.completions.with_streaming_response.create(**_CHAT, stream=True), parse=True
    ),
    "chat helper": Surface(lambda client: client.chat.completions.stream(**_CHAT), is_stream=False),
    "beta chat helper": Surface(lambda client: client.beta.chat.completions.stream(**_CHAT), is_stream=False),
    "responses": Surface(lambda client: client.responses.create(**_RESPONSE, stream=True)),
}
_WHOLE: dict[str, Callable[[Any], Any]] = {
    "chat": lambda client: client.chat.completions.create(**_CHAT),
    "chat with options": lambda client: client.with_options(timeout=60).chat.completions.create(**_CHAT),
    "completions": lambda client: client.completions.create(**_TEXT),
    "raw": lambda client: client.chat.completions.with_raw_response.create(**_CHAT),
    "chat parse": lambda client: client.chat.completions.parse(**_CHAT, response_format=_Colour),
    "beta chat parse": lambda client: client.beta.chat.completions.parse(**_CHAT, response_format=_Colour),
    "responses": lambda client: client.responses.create(**_RESPONSE),
    "raw responses": lambda client: client.responses.with_raw_response.create(**_RESPONSE),
    "post": lambda client: client.post("/chat/completions", cast_to=object, body=_flat(_CHAT)),
}


def _flat(ask: dict[str, Any]) -> dict[str, Any]:
    """A body as it goes over the wire."""
    return {key: value for key, value in ask.items() if key != "extra_body"} | ask["extra_body"]


def _lacks(client: Any, name: str) -> bool:
    """Whether the installed version of the client has no such surface."""
    if "responses" in name:
        return not hasattr(client, "responses")
    if name.startswith("beta chat"):
        completions = getattr(getattr(client.beta, "chat", None), "completions", None)
        return not hasattr(completions, name.removeprefix("beta chat ").replace("helper", "stream"))
    if name in ("chat helper", "chat parse"):
        return not hasattr(client.chat.completions, name.removeprefix("chat ").replace("helper", "stream"))
    return False


_PROBE = openai.OpenAI(base_url="http://127.0.0.1:9", api_key="k")
_STREAM_NAMES = [name for name in _STREAMS if not _lacks(_PROBE, name)]
_WHOLE_NAMES = [name for name in _WHOLE if not _lacks(_PROBE, name)]


@pytest.fixture(scope="module")
def base_url(llama_server: LlamaServerFactory) -> str:
    """Of the real server."""
    return llama_server(slots=1, embeddings=True).base_url


@pytest.fixture
def client(base_url: str) -> Iterator[openai.OpenAI]:
    with _House(base_url=base_url, api_key="k", max_retries=0) as made:
        yield made


def _opened(surface: Surface, client: openai.OpenAI, stack: ExitStack) -> Any:
    made = surface.ask(client)
    if not surface.parse:
        return stack.enter_context(made)
    response = stack.enter_context(made) if hasattr(made, "__enter__") else made
    return stack.enter_context(response.parse())


def _drained(stream: Any) -> None:
    assert len(list(stream)) > _TOKENS


def _broken_off(stream: Any) -> None:
    for _ in stream:
        break


def _never_read(stream: Any) -> None:
    pass


def _closed(stream: Any) -> None:
    next(iter(stream))
    stream.close()


def _response_closed(stream: Any) -> None:
    next(iter(stream))
    getattr(stream, "response", stream).close()


def _user_error(stream: Any) -> None:
    next(iter(stream))
    raise _UserError


_ENDINGS: dict[str, tuple[Callable[[Any], None], str | None, bool]] = {
    "last byte": (_drained, None, True),
    "break and exit": (_broken_off, None, False),
    "exit unread": (_never_read, None, False),
    "close": (_closed, None, False),
    "close of the response": (_response_closed, None, False),
    "user error": (_user_error, "_UserError", False),
}


@pytest.mark.parametrize("ending", _ENDINGS)
@pytest.mark.parametrize("name", _STREAM_NAMES)
def test_surface_ends_its_call_once_and_truly_when_streamed(
    name: str, ending: str, client: openai.OpenAI, bare: Watched
) -> None:
    """One span, from the library's own stream; the tokens only if the app has read that far."""
    use, error_type, whole = _ENDINGS[ending]
    with contextlib.suppress(_UserError), ExitStack() as stack:
        stream = _opened(_STREAMS[name], client, stack)
        assert isinstance(stream, openai.Stream) is _STREAMS[name].is_stream
        use(stream)
    _assert_ended(bare, error_type, whole)


@pytest.mark.parametrize("name", _STREAM_NAMES)
def test_surface_ends_its_call_when_broken_off_and_collected(name: str, client: openai.OpenAI, bare: Watched) -> None:
    """Nobody closes anything."""
    stack = ExitStack()
    _broken_off(_opened(_STREAMS[name], client, stack))
    stack.pop_all()
    del stack
    gc.collect()
    _assert_ended(bare, None, False)


def _assert_ended(watched: Watched, error_type: str | None, whole: bool, timings: bool = True) -> None:
    span = watched.only_span()
    [call] = watched.ended
    assert call.error_type == error_type == (span.attributes or {}).get("error.type")
    assert span.status.status_code is (StatusCode.UNSET if error_type is None else StatusCode.ERROR)
    assert call.output_tokens == (_TOKENS if whole else None)
    if whole and timings:
        assert call.provider == "llama.cpp"
        assert call.timings is not None
        assert call.timings.decode_seconds


async def _opened_async(surface: Surface, client: openai.AsyncOpenAI, stack: AsyncExitStack) -> Any:
    made = await _awaited(surface.ask(client))
    if not surface.parse:
        return await stack.enter_async_context(made)
    response = await stack.enter_async_context(made) if hasattr(made, "__aenter__") else made
    return await stack.enter_async_context(await _awaited(response.parse()))


async def _awaited(made: Any) -> Any:
    return await made if inspect.isawaitable(made) else made


async def _drained_async(stream: Any) -> None:
    assert len([chunk async for chunk in stream]) > _TOKENS


async def _broken_off_async(stream: Any) -> None:
    async for _ in stream:
        break


async def _never_read_async(stream: Any) -> None:
    pass


async def _closed_async(stream: Any) -> None:
    await stream.__aiter__().__anext__()
    await stream.close()


async def _response_closed_async(stream: Any) -> None:
    await stream.__aiter__().__anext__()
    response = getattr(stream, "response", None)
    await (stream.close() if response is None else response.aclose())


async def _user_error_async(stream: Any) -> None:
    await stream.__aiter__().__anext__()
    raise _UserError


async def _cancelled(stream: Any) -> None:
    await stream.__aiter__().__anext__()
    raise asyncio.CancelledError  # what a cancelled task sees at its next await


AsyncUse = Callable[[Any], Awaitable[None]]
_ASYNC_ENDINGS: dict[str, tuple[AsyncUse, str | None, bool]] = {
    "last byte": (_drained_async, None, True),
    "break and exit": (_broken_off_async, None, False),
    "exit unread": (_never_read_async, None, False),
    "close": (_closed_async, None, False),
    "close of the response": (_response_closed_async, None, False),
    "user error": (_user_error_async, "_UserError", False),
    "cancellation": (_cancelled, "CancelledError", False),
}


@pytest.mark.parametrize("ending", _ASYNC_ENDINGS)
@pytest.mark.parametrize("name", _STREAM_NAMES)
async def test_surface_ends_its_call_once_and_truly_when_streamed_asynchronously(
    name: str, ending: str, base_url: str, bare: Watched
) -> None:
    """The same, awaited."""
    use, error_type, whole = _ASYNC_ENDINGS[ending]
    async with _AsyncHouse(base_url=base_url, api_key="k", max_retries=0) as client:
        with contextlib.suppress(_UserError, asyncio.CancelledError):
            async with AsyncExitStack() as stack:
                stream = await _opened_async(_STREAMS[name], client, stack)
                assert isinstance(stream, openai.AsyncStream) is _STREAMS[name].is_stream
                await use(stream)
    _assert_ended(bare, error_type, whole)


@pytest.mark.parametrize("name", _WHOLE_NAMES)
def test_surface_reports_its_tokens_when_it_answers_at_once(name: str, client: openai.OpenAI, bare: Watched) -> None:
    """Three tokens were asked for; a text of three tokens need not parse, and then the call is an error."""
    error = _failure(lambda: _WHOLE[name](client))
    _assert_answered(bare, error, timings="responses" not in name)


@pytest.mark.parametrize("name", _WHOLE_NAMES)
async def test_surface_reports_its_tokens_when_it_answers_asynchronously(
    name: str, base_url: str, bare: Watched
) -> None:
    """The same, awaited."""
    error = None
    async with _AsyncHouse(base_url=base_url, api_key="k", max_retries=0) as client:
        try:
            await _WHOLE[name](client)
        except Exception as raised:  # noqa: BLE001 - of the library's parsing
            error = raised
    _assert_answered(bare, error, timings="responses" not in name)


def _failure(ask: Callable[[], object]) -> Exception | None:
    try:
        ask()
    except Exception as error:  # noqa: BLE001 - of the library's parsing
        return error
    return None


def _assert_answered(watched: Watched, error: Exception | None, timings: bool) -> None:
    """llama.cpp puts its timings into every answer but the whole one of the Responses API."""
    _assert_ended(watched, None, True, timings) if error is None else watched.only_span()
    assert watched.ended[0].error_type == (None if error is None else type(error).__qualname__)

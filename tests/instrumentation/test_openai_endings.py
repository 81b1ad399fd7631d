"""A streamed call of the OpenAI client ends once, when it ends, and says truly how."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import pickle
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import openai
import pytest
from opentelemetry.trace import StatusCode

from tests.instrumentation import payloads
from tests.instrumentation.conftest import Watched
from tests.instrumentation.replay import ReplayServer, sse_reply

_ASK: dict[str, Any] = {"model": "m", "messages": payloads.MESSAGES}
_WHOLE = sse_reply(payloads.chunks())
_BROKEN = sse_reply([payloads.chunk()], done=False, breaks_off=True)
_HANGING = sse_reply([payloads.chunk()], done=False, hangs=True)
_ERROR = sse_reply([payloads.chunk(), {"error": {"message": "out of memory", "type": "server_error"}}])


class _UserError(Exception):
    pass


def _stream(client: openai.OpenAI) -> Any:
    return client.chat.completions.create(**_ASK, stream=True)


def _helper(client: Any) -> Any:
    for completions in (client.chat.completions, getattr(getattr(client.beta, "chat", None), "completions", None)):
        if hasattr(completions, "stream"):
            return completions.stream(**_ASK)
    return pytest.skip(f"openai {openai.__version__} has no chat .stream() helper")


def _drained(client: openai.OpenAI) -> None:
    assert len(list(_stream(client))) == 4


def _drained_by_next(client: openai.OpenAI) -> None:
    stream = _stream(client)
    with contextlib.suppress(StopIteration):
        while True:
            next(stream)


def _broken_off(client: openai.OpenAI) -> None:
    for _ in _stream(client):
        break
    gc.collect()


def _never_iterated(client: openai.OpenAI) -> None:
    _stream(client)
    gc.collect()


def _closed(client: openai.OpenAI) -> None:
    stream = _stream(client)
    next(stream)
    stream.close()
    stream.close()


def _response_closed(client: openai.OpenAI) -> None:
    stream = _stream(client)
    next(stream)
    stream.response.close()


def _left_early(client: openai.OpenAI) -> None:
    with _stream(client) as stream:
        next(stream)


def _left_by_return_of_a_generator(client: openai.OpenAI) -> None:
    def text() -> Iterator[object]:
        with _stream(client) as stream:
            yield from stream

    pieces = text()
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]


def _left_by_user_error(client: openai.OpenAI) -> None:
    with pytest.raises(_UserError), _stream(client) as stream:
        next(stream)
        raise _UserError


def _closed_while_an_older_error_is_handled(client: openai.OpenAI) -> None:
    try:
        raise _UserError
    except _UserError:
        with _stream(client) as stream:
            next(stream)


def _helper_drained(client: openai.OpenAI) -> None:
    with _helper(client) as stream:
        assert stream.get_final_completion().choices[0].message.content == "The capital"


def _helper_left_early(client: openai.OpenAI) -> None:
    with _helper(client) as stream:
        next(iter(stream))


def _helper_left_by_user_error(client: openai.OpenAI) -> None:
    with pytest.raises(_UserError), _helper(client) as stream:
        next(iter(stream))
        raise _UserError


def _raw_drained(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(**_ASK, stream=True)
    assert raw.headers["content-type"] == "text/event-stream"
    assert isinstance(raw.parse(), openai.Stream)
    assert len(list(raw.parse())) == 4


def _raw_never_parsed(client: openai.OpenAI) -> None:
    client.chat.completions.with_raw_response.create(**_ASK, stream=True)
    gc.collect()


def _streaming_response_drained(client: openai.OpenAI) -> None:
    with client.chat.completions.with_streaming_response.create(**_ASK, stream=True) as raw:
        assert len(list(raw.parse())) == 4


def _streaming_response_left_early(client: openai.OpenAI) -> None:
    with client.chat.completions.with_streaming_response.create(**_ASK, stream=True) as raw:
        next(iter(raw.iter_lines()))


_SYNC: list[tuple[Callable[[openai.OpenAI], None], Any, bool]] = [
    (_drained, None, True),
    (_drained_by_next, None, True),
    (_broken_off, None, False),
    (_never_iterated, None, False),
    (_closed, None, False),
    (_response_closed, None, False),
    (_left_early, None, False),
    (_left_by_return_of_a_generator, None, False),
    (_left_by_user_error, "_UserError", False),
    (_closed_while_an_older_error_is_handled, None, False),
    (_helper_drained, None, True),
    (_helper_left_early, None, False),
    (_helper_left_by_user_error, "_UserError", False),
    (_raw_drained, None, True),
    (_raw_never_parsed, None, False),
    (_streaming_response_drained, None, True),
    (_streaming_response_left_early, None, False),
]


@pytest.mark.parametrize(("use", "error_type", "whole"), _SYNC, ids=lambda value: getattr(value, "__name__", None))
def test_stream_ends_its_call_once_when_used_synchronously(
    use: Callable[[openai.OpenAI], None], error_type: str | None, whole: bool, server: ReplayServer, watched: Watched
) -> None:
    """However the app lets go of a stream, its call ends, with the tokens if the app read that far."""
    server.reply = _WHOLE
    use(openai.OpenAI(base_url=f"{server.url}/v1", api_key="k", max_retries=0))
    _assert_ended(watched, error_type, whole)


def _assert_ended(watched: Watched, error_type: str | None, whole: bool) -> None:
    span = watched.only_span()
    attributes = dict(span.attributes or {})
    assert attributes.get("error.type") == error_type == watched.ended[0].error_type
    assert span.status.status_code is (StatusCode.UNSET if error_type is None else StatusCode.ERROR)
    assert (attributes.get("gen_ai.usage.output_tokens") == 8) is whole
    assert (attributes.get("gen_ai.response.finish_reasons") == ("stop",)) is whole
    assert attributes["gen_ai.request.stream"] is True


@pytest.mark.parametrize(
    "reply",
    [_BROKEN, _ERROR],
    ids=["connection reset", "error in the stream"],
)
def test_stream_ends_with_its_error_when_it_fails(reply: Any, server: ReplayServer, watched: Watched) -> None:
    """A failure between chunks is an error of the call, though the library closes the response first."""
    server.reply = reply
    with pytest.raises(Exception) as raised:
        list(_stream(openai.OpenAI(base_url=f"{server.url}/v1", api_key="k", max_retries=0)))
    _assert_ended(watched, type(raised.value).__qualname__, False)


AsyncUse = Callable[[openai.AsyncOpenAI], Awaitable[None]]


async def _stream_async(client: openai.AsyncOpenAI) -> Any:
    return await client.chat.completions.create(**_ASK, stream=True)


async def _drained_async(client: openai.AsyncOpenAI) -> None:
    stream = await _stream_async(client)
    assert isinstance(stream, openai.AsyncStream)
    assert len([chunk async for chunk in stream]) == 4


async def _broken_off_async(client: openai.AsyncOpenAI) -> None:
    async for _ in await _stream_async(client):
        break
    await _collected()


async def _never_iterated_async(client: openai.AsyncOpenAI) -> None:
    await _stream_async(client)
    await _collected()


async def _collected() -> None:
    for _ in range(5):  # what one collection frees, the loop closes, and that frees the next
        gc.collect()
        await asyncio.sleep(0)


async def _closed_async(client: openai.AsyncOpenAI) -> None:
    stream = await _stream_async(client)
    await stream.__anext__()
    await stream.close()


async def _response_closed_async(client: openai.AsyncOpenAI) -> None:
    stream = await _stream_async(client)
    await stream.__anext__()
    await stream.response.aclose()


async def _left_early_async(client: openai.AsyncOpenAI) -> None:
    async with await _stream_async(client) as stream:
        await stream.__anext__()


async def _left_by_user_error_async(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(_UserError):
        async with await _stream_async(client) as stream:
            await stream.__anext__()
            raise _UserError


async def _left_by_aclose_of_a_generator(client: openai.AsyncOpenAI) -> None:
    async def text() -> AsyncIterator[object]:
        async with await _stream_async(client) as stream:
            async for chunk in stream:
                yield chunk

    pieces = text()
    await pieces.__anext__()
    await pieces.aclose()  # type: ignore[attr-defined]


async def _helper_left_early_async(client: openai.AsyncOpenAI) -> None:
    async with _helper(client) as stream:
        await stream.__aiter__().__anext__()


async def _raw_drained_async(client: openai.AsyncOpenAI) -> None:
    raw = await client.chat.completions.with_raw_response.create(**_ASK, stream=True)
    assert len([chunk async for chunk in raw.parse()]) == 4


async def _streaming_response_drained_async(client: openai.AsyncOpenAI) -> None:
    async with client.chat.completions.with_streaming_response.create(**_ASK, stream=True) as raw:
        assert len([chunk async for chunk in await raw.parse()]) == 4


_ASYNC: list[tuple[AsyncUse, Any, bool]] = [
    (_drained_async, None, True),
    (_broken_off_async, None, False),
    (_never_iterated_async, None, False),
    (_closed_async, None, False),
    (_response_closed_async, None, False),
    (_left_early_async, None, False),
    (_left_by_user_error_async, "_UserError", False),
    (_left_by_aclose_of_a_generator, None, False),
    (_helper_left_early_async, None, False),
    (_raw_drained_async, None, True),
    (_streaming_response_drained_async, None, True),
]


@pytest.mark.parametrize(("use", "error_type", "whole"), _ASYNC, ids=lambda value: getattr(value, "__name__", None))
async def test_stream_ends_its_call_once_when_used_asynchronously(
    use: AsyncUse, error_type: str | None, whole: bool, server: ReplayServer, watched: Watched
) -> None:
    """The same, awaited."""
    server.reply = _WHOLE
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="k", max_retries=0) as client:
        await use(client)
    _assert_ended(watched, error_type, whole)


async def test_stream_ends_as_cancelled_when_its_task_is_cancelled_between_chunks(
    server: ReplayServer, watched: Watched
) -> None:
    """A cancelled task ends the call at once, not when the stream is collected."""
    server.reply = _HANGING
    arrived = asyncio.Event()

    async def read(client: openai.AsyncOpenAI) -> None:
        async for _ in await _stream_async(client):
            arrived.set()

    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="k", max_retries=0) as client:
        task = asyncio.create_task(read(client))
        await arrived.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        _assert_ended(watched, "CancelledError", False)


async def test_stream_fails_as_it_would_when_the_connection_breaks_asynchronously(
    server: ReplayServer, watched: Watched
) -> None:
    """A reset between chunks is an error of the call."""
    server.reply = _BROKEN
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="k", max_retries=0) as client:
        with pytest.raises(Exception) as raised:
            async for _ in await _stream_async(client):
                pass
    _assert_ended(watched, type(raised.value).__qualname__, False)


def test_response_can_be_pickled_when_its_stream_has_ended(server: ReplayServer, watched: Watched) -> None:
    """No hook of ours stays on the objects that the app holds."""
    server.reply = _WHOLE
    stream = _stream(openai.OpenAI(base_url=f"{server.url}/v1", api_key="k", max_retries=0))
    list(stream)
    assert not {"close", "aclose"} & set(vars(stream.response.stream))
    assert pickle.loads(pickle.dumps(stream.response)).status_code == 200


def test_observers_hear_of_the_first_chunk_once_when_a_stream_is_read(server: ReplayServer, watched: Watched) -> None:
    """The instants of a call are in order, and the span says how long the first chunk took."""
    server.reply = _WHOLE
    _drained(openai.OpenAI(base_url=f"{server.url}/v1", api_key="k"))
    [call] = watched.first_chunks
    assert call.first_chunk_ns is not None
    assert call.ended_ns is not None
    assert call.started_ns < call.first_chunk_ns < call.ended_ns
    waited_seconds = (watched.only_span().attributes or {})["gen_ai.response.time_to_first_chunk"]
    assert waited_seconds == (call.first_chunk_ns - call.started_ns) / 1e9


@pytest.mark.parametrize("chunks", [[], [payloads.chunk(usage=payloads.USAGE)], payloads.chunks()], ids=len)
@pytest.mark.parametrize("awaited", [False, True])
async def test_app_gets_every_chunk_and_observers_hear_of_the_first_when_a_stream_is_short(
    awaited: bool, chunks: list[dict[str, Any]], server: ReplayServer, watched: Watched
) -> None:
    """The first may be the last, or there may be none at all."""
    server.reply = sse_reply(chunks)
    if awaited:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="k", max_retries=0) as client:
            got = [chunk async for chunk in await _stream_async(client)]
    else:
        got = list(_stream(openai.OpenAI(base_url=f"{server.url}/v1", api_key="k", max_retries=0)))
    assert len(got) == len(chunks)
    assert len(watched.first_chunks) == min(len(chunks), 1)
    assert watched.only_span().status.is_unset
    assert watched.ended[0].output_tokens == (8 if chunks else None)


def test_cumulative_usage_counts_once_when_every_chunk_carries_it(server: ReplayServer, watched: Watched) -> None:
    """The last usage wins; nothing is summed."""
    usages = [{"prompt_tokens": 9, "completion_tokens": n, "total_tokens": 9 + n} for n in (1, 2, 3)]
    server.reply = sse_reply([payloads.chunk(usage=usage) for usage in usages])
    list(_stream(openai.OpenAI(base_url=f"{server.url}/v1", api_key="k")))
    assert (watched.ended[0].input_tokens, watched.ended[0].output_tokens) == (9, 3)


def test_tokens_come_from_the_timings_when_a_stream_has_no_usage(server: ReplayServer, watched: Watched) -> None:
    """llama.cpp counts on its last chunk even where nobody asked for usage."""
    server.reply = sse_reply(payloads.chunks(usage=False))
    list(_stream(openai.OpenAI(base_url=f"{server.url}/v1", api_key="k")))
    call = watched.ended[0]
    assert (call.input_tokens, call.output_tokens, call.cached_input_tokens) == (38, 8, 20)


def test_no_tokens_are_made_up_when_the_server_reports_none(server: ReplayServer, watched: Watched) -> None:
    """Unknown stays unknown."""
    server.reply = sse_reply(payloads.chunks(usage=False, timings=False))
    list(_stream(openai.OpenAI(base_url=f"{server.url}/v1", api_key="k")))
    assert watched.ended[0].output_tokens is None
    assert not [key for key in watched.only_span().attributes or {} if "usage" in key]

"""Calls of the Ollama client: every binding style, every way to end, and the server's own durations."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from datetime import datetime, timezone
from types import AsyncGeneratorType, GeneratorType
from typing import Any

import ollama
import pytest
from opentelemetry.trace import StatusCode

from otel_llm_instrumentation import ServerTimings
from otel_llm_instrumentation.ollama.routes import unix_ns
from tests.instrumentation import payloads
from tests.instrumentation.conftest import Watched
from tests.instrumentation.replay import ReplayServer, json_reply, ndjson_reply

_ASK: dict[str, Any] = {"model": "m", "messages": payloads.MESSAGES}
_TIMINGS = ServerTimings(
    prefill_seconds=0.15, decode_seconds=0.112, load_seconds=0.65, end_unix_ns=1795342272_123456789
)
_WHOLE = ndjson_reply(payloads.ollama_chunks())


def test_span_says_what_was_asked_and_answered_when_a_chat_completes(server: ReplayServer, watched: Watched) -> None:
    """Tokens and all of Ollama's durations, for prefill, decode and load."""
    server.reply = json_reply(payloads.ollama_chat())
    client = ollama.Client(host=server.url)
    answer = client.chat(**_ASK, format="json", options={"temperature": 0, "num_predict": 8, "num_ctx": 2048})
    span = watched.only_span()
    assert answer["message"]["content"] == "Paris."
    assert span.name == "chat m"
    assert dict(span.attributes or {}) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "ollama",
        "gen_ai.request.model": "m",
        "server.address": "127.0.0.1",
        "server.port": server.port,
        "gen_ai.request.temperature": 0.0,
        "gen_ai.request.max_tokens": 8,
        "gen_ai.output.type": "json",
        "gen_ai.response.model": "smollm2",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 38,
        "gen_ai.usage.output_tokens": 8,
        "llm.server.load_seconds": 0.65,
        "llm.server.prefill_seconds": 0.15,
        "llm.server.decode_seconds": 0.112,
        "llm.server.end_time": 1795342272.123456789,
    }
    assert watched.ended[0].timings == _TIMINGS


def _drained(client: ollama.Client) -> None:
    stream = client.chat(**_ASK, stream=True)
    assert isinstance(stream, GeneratorType)
    assert len(list(stream)) == 3


def _generated(client: ollama.Client) -> None:
    assert len(list(client.generate(model="m", prompt="hi", stream=True))) == 3


def _broken_off(client: ollama.Client) -> None:
    for _ in client.chat(**_ASK, stream=True):
        break


def _never_iterated(client: ollama.Client) -> None:
    client.chat(**_ASK, stream=True)
    gc.collect()


def _closed(client: ollama.Client) -> None:
    stream: Any = client.chat(**_ASK, stream=True)
    next(stream)
    stream.close()


def _thrown_into(client: ollama.Client) -> None:
    stream: Any = client.chat(**_ASK, stream=True)
    next(stream)
    with pytest.raises(KeyError):
        stream.throw(KeyError("x"))


@pytest.mark.parametrize(
    ("use", "error_type", "whole"),
    [
        (_drained, None, True),
        (_generated, None, True),
        (_broken_off, None, False),
        (_never_iterated, None, False),
        (_closed, None, False),
        (_thrown_into, "KeyError", False),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_stream_ends_its_call_once_when_used_synchronously(
    use: Callable[[ollama.Client], None], error_type: str | None, whole: bool, server: ReplayServer, watched: Watched
) -> None:
    """However the app lets go of the generator that it still gets."""
    server.reply = _WHOLE
    use(ollama.Client(host=server.url))
    _assert_ended(watched, error_type, whole)


def _assert_ended(watched: Watched, error_type: str | None, whole: bool) -> None:
    span = watched.only_span()
    [call] = watched.ended
    assert call.error_type == error_type == (span.attributes or {}).get("error.type")
    assert span.status.status_code is (StatusCode.UNSET if error_type is None else StatusCode.ERROR)
    assert (call.timings, call.output_tokens) == ((_TIMINGS, 8) if whole else (None, None))


async def test_stream_is_read_when_used_asynchronously(server: ReplayServer, watched: Watched) -> None:
    """The app still gets an asynchronous generator."""
    server.reply = _WHOLE
    stream = await ollama.AsyncClient(host=server.url).chat(**_ASK, stream=True)
    assert isinstance(stream, AsyncGeneratorType)
    assert len([chunk async for chunk in stream]) == 3
    _assert_ended(watched, None, True)


async def test_stream_ends_when_it_is_closed_asynchronously(server: ReplayServer, watched: Watched) -> None:
    """`aclose` ends the call before it returns, and closes the connection as it did."""
    server.reply = _WHOLE
    stream: Any = await ollama.AsyncClient(host=server.url).chat(**_ASK, stream=True)
    await stream.__anext__()
    await stream.aclose()
    _assert_ended(watched, None, False)


async def test_stream_ends_when_it_is_collected_asynchronously(server: ReplayServer, watched: Watched) -> None:
    """Never iterated, and broken off."""
    server.reply = _WHOLE
    client = ollama.AsyncClient(host=server.url)
    await client.chat(**_ASK, stream=True)
    async for _ in await client.chat(**_ASK, stream=True):
        break
    for _ in range(3):
        gc.collect()
        await asyncio.sleep(0)
    assert len(watched.spans) == len(watched.ended) == 2


async def test_stream_ends_as_cancelled_when_its_task_is_cancelled(server: ReplayServer, watched: Watched) -> None:
    """At once."""
    server.reply = ndjson_reply(payloads.ollama_chunks()[:1], hangs=True)
    arrived = asyncio.Event()

    async def read() -> None:
        async for _ in await ollama.AsyncClient(host=server.url).chat(**_ASK, stream=True):
            arrived.set()

    task = asyncio.create_task(read())
    await arrived.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    _assert_ended(watched, "CancelledError", False)


@pytest.mark.parametrize("stream", [False, True])
def test_span_names_the_error_when_the_server_refuses(stream: bool, server: ReplayServer, watched: Watched) -> None:
    """An unknown model, the error that Ollama's users know best."""
    server.reply = json_reply({"error": "model 'm' not found"}, 404)
    with pytest.raises(ollama.ResponseError, match="not found"):
        list(ollama.Client(host=server.url).chat(**_ASK, stream=stream))
    _assert_ended(watched, "ResponseError", False)


@pytest.mark.parametrize(
    "reply",
    [
        ndjson_reply([payloads.ollama_chunks()[0], {"error": "out of memory"}]),
        ndjson_reply([payloads.ollama_chunks()[0]], breaks_off=True),
    ],
    ids=["error in the stream", "reset"],
)
def test_stream_ends_with_its_error_when_it_fails(reply: Any, server: ReplayServer, watched: Watched) -> None:
    """Between chunks."""
    server.reply = reply
    with pytest.raises(Exception) as raised:
        list(ollama.Client(host=server.url).chat(**_ASK, stream=True))
    _assert_ended(watched, type(raised.value).__qualname__, False)


def test_module_functions_are_watched_when_they_were_bound_before(
    server: ReplayServer, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`from ollama import chat` before `instrument()` is how most scripts read."""
    server.reply = json_reply(payloads.ollama_chat())
    monkeypatch.setattr(_module_client(), "_client", ollama.Client(host=server.url)._client)
    _CHAT(**_ASK)
    ollama.generate(model="m", prompt="hi")
    assert [span.name for span in watched.spans] == ["chat m", "text_completion m"]


_CHAT = ollama.chat


def _module_client() -> Any:
    return ollama.chat.__self__  # type: ignore[attr-defined]


@pytest.mark.skipif(hasattr(ollama.Client, "_request_stream"), reason="before 0.4 embeddings took another way")
def test_embeddings_become_a_span_when_asked_for(server: ReplayServer, watched: Watched) -> None:
    """They spend tokens, too."""
    server.reply = json_reply({"model": "smollm2", "embeddings": [[0.5]], "prompt_eval_count": 3, "load_duration": 5})
    ollama.Client(host=server.url).embed(model="m", input="hi")
    assert watched.only_span().name == "embeddings m"
    assert watched.ended[0].input_tokens == 3


def test_call_passes_through_when_it_spends_no_tokens(server: ReplayServer, watched: Watched) -> None:
    """Progress of a pull is no answer."""
    server.reply = ndjson_reply([{"status": "pulling"}, {"status": "success"}])
    assert len(list(ollama.Client(host=server.url).pull("m", stream=True))) == 2
    assert not watched.started


@pytest.mark.parametrize(
    "odd",
    [
        {"prompt_eval_count": "x", "eval_count": -1},
        {"eval_duration": "fast", "prompt_eval_duration": -5},
        {"created_at": "yesterday"},
        {"created_at": "2026-13-45T99:99:99Z"},
        {"created_at": 5},
        {"done_reason": 7},
        {"model": None},
    ],
)
def test_app_sees_the_same_when_a_field_is_odd(odd: dict[str, Any], server: ReplayServer) -> None:
    """Whatever the server says: what the app gets is what it would get without us."""
    server.reply = json_reply(payloads.ollama_chat(**odd))

    def outcome() -> str:
        try:
            return repr(ollama.Client(host=server.url).chat(**_ASK))
        except Exception as error:  # noqa: BLE001 - whatever it is, it must be the same
            return repr(error)

    from otel_llm_instrumentation.ollama import OllamaInstrumentor

    plain = outcome()
    OllamaInstrumentor().instrument(tracer_provider=Watched().provider)
    try:
        assert outcome() == plain
    finally:
        OllamaInstrumentor().uninstrument()


@pytest.mark.parametrize(
    ("timestamp", "fraction_ns"),
    [
        ("2026-11-22T10:11:12Z", 0),
        ("2026-11-22T10:11:12.5Z", 500_000_000),
        ("2026-11-22T12:11:12.123456789+02:00", 123_456_789),
        ("2026-11-22T03:11:12.000000001-07:00", 1),
    ],
)
def test_timestamp_is_read_to_the_nanosecond_when_it_has_a_zone(timestamp: str, fraction_ns: int) -> None:
    """Go leaves out trailing zeros, and gives the server's own zone."""
    whole_seconds = int(datetime(2026, 11, 22, 10, 11, 12, tzinfo=timezone.utc).timestamp())
    assert unix_ns(timestamp) == whole_seconds * 1_000_000_000 + fraction_ns

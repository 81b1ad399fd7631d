"""Every surface of the Ollama client, and of bare HTTP, by every way of ending, against the real Ollama."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import aiohttp
import httpx
import ollama as client_library
import openai
import pytest
import requests

from otel_llm_instrumentation import add_observer, remove_observer
from otel_llm_instrumentation.http import HTTPInstrumentor
from otel_llm_instrumentation.ollama import OllamaInstrumentor
from otel_llm_instrumentation.openai import OpenAIInstrumentor
from tests.instrumentation.conftest import Watched
from tests.support.backends import Ollama

pytestmark = pytest.mark.e2e

_TOKENS = 3
_OPTIONS = {"temperature": 0, "num_predict": _TOKENS}
_MESSAGES = [{"role": "user", "content": "Name three colours."}]
# A transparent pixel, for a model that cannot see it: the request must go through all the same.
_PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
_TOOL = {
    "type": "function",
    "function": {
        "name": "paint",
        "description": "Paint it.",
        "parameters": {"type": "object", "properties": {"colour": {"type": "string", "description": "which"}}},
    },
}
_MODULE_CHAT = client_library.chat  # bound before `instrument`, as most scripts do


class _UserError(Exception):
    pass


@pytest.fixture
def watched() -> Iterator[Watched]:
    """All instrumentors on, as `instrument()` has them."""
    seen = Watched()
    instrumentors = [OpenAIInstrumentor(), OllamaInstrumentor(), HTTPInstrumentor()]
    for instrumentor in instrumentors:
        instrumentor.instrument(tracer_provider=seen.provider, skip_dep_check=True)
    add_observer(seen)
    yield seen
    remove_observer(seen)
    for instrumentor in instrumentors:
        instrumentor.uninstrument()


def _chat(client: Any, model: str, **more: Any) -> Any:
    return client.chat(model=model, messages=_MESSAGES, options=_OPTIONS, **more)


def _generate(client: Any, model: str, **more: Any) -> Any:
    return client.generate(model=model, prompt="Red, green and", options=_OPTIONS, **more)


def _bound_before(client: Any, model: str, **more: Any) -> Any:
    return client.bound_before(model=model, messages=_MESSAGES, options=_OPTIONS, **more)


class _Client(client_library.Client):
    """A client of a user's own class, whose method was bound when it was made."""

    def __init__(self, host: str) -> None:
        super().__init__(host=host)
        self.bound_before: Any = self.chat


def _drained(stream: Any) -> None:
    assert len(list(stream)) > 1


def _broken_off(stream: Any) -> None:
    for _ in stream:
        break


def _never_read(stream: Any) -> None:
    pass


def _closed(stream: Any) -> None:
    next(stream)
    stream.close()


def _user_error(stream: Any) -> None:
    next(stream)
    with contextlib.suppress(_UserError):
        stream.throw(_UserError())


_ENDINGS: dict[str, tuple[Callable[[Any], None], str | None, bool]] = {
    "last byte": (_drained, None, True),
    "break and collection": (_broken_off, None, False),
    "collection unread": (_never_read, None, False),
    "close": (_closed, None, False),
    "user error": (_user_error, "_UserError", False),
}


@pytest.mark.parametrize("ending", _ENDINGS)
@pytest.mark.parametrize("ask", [_chat, _generate, _bound_before], ids=["chat", "generate", "bound before"])
def test_stream_of_ollama_ends_its_call_once_and_truly(
    ask: Callable[..., Any], ending: str, ollama: Ollama, watched: Watched
) -> None:
    """One span; tokens and all durations if the app has read that far."""
    use, error_type, whole = _ENDINGS[ending]
    use(ask(_Client(ollama.host), ollama.model, stream=True))
    gc.collect()
    _assert_ended(watched, error_type, whole)


def _assert_ended(watched: Watched, error_type: str | None, whole: bool) -> None:
    span = watched.only_span()
    [call] = watched.ended
    assert call.error_type == error_type == (span.attributes or {}).get("error.type")
    assert call.provider == "ollama"
    assert call.output_tokens == (_TOKENS if whole else None)
    if whole:
        timings = call.timings
        assert timings is not None
        assert timings.decode_seconds
        assert timings.load_seconds is not None
        assert timings.end_unix_ns


@pytest.mark.parametrize("ending", ["last byte", "break", "aclose", "cancellation"])
@pytest.mark.parametrize("ask", [_chat, _generate], ids=["chat", "generate"])
async def test_stream_of_ollama_ends_its_call_once_and_truly_when_awaited(
    ask: Callable[..., Any], ending: str, ollama: Ollama, watched: Watched
) -> None:
    """The same from the asynchronous client, and when the task is cancelled."""
    stream = await ask(client_library.AsyncClient(host=ollama.host), ollama.model, stream=True)
    if ending == "last byte":
        assert len([chunk async for chunk in stream]) > 1
    else:
        await stream.__anext__()
    if ending == "cancellation":
        with contextlib.suppress(asyncio.CancelledError):
            await stream.athrow(asyncio.CancelledError())
    elif ending == "aclose":
        await stream.aclose()
    del stream
    for _ in range(4):
        gc.collect()
        await asyncio.sleep(0)
    _assert_ended(watched, "CancelledError" if ending == "cancellation" else None, ending == "last byte")


_WHOLE: dict[str, Callable[[Any, str], Any]] = {
    "chat": _chat,
    "generate": _generate,
    "tools": lambda client, model: _chat(client, model, tools=[_TOOL]),
    "format": lambda client, model: _chat(client, model, format="json"),
    "images": lambda client, model: _generate(client, model, images=[_PIXEL]),
}


@pytest.mark.parametrize("surface", _WHOLE)
@pytest.mark.parametrize("client_type", [client_library.Client, client_library.AsyncClient], ids=["sync", "async"])
async def test_answer_of_ollama_says_its_work_when_it_comes_at_once(
    surface: str, client_type: Any, ollama: Ollama, watched: Watched
) -> None:
    """Formats and images among them; what the model refuses is the call's error, with the client's own class."""
    error = None
    try:
        answer = _WHOLE[surface](client_type(host=ollama.host), ollama.model)
        if inspect.isawaitable(answer):
            await answer
    except client_library.ResponseError as refused:
        error = refused
    if error is None:
        watched.only_span()
        call = watched.ended[0]
        assert 0 < (call.output_tokens or 0) <= _TOKENS
        assert call.timings is not None
    else:
        assert watched.ended[0].error_type == "ResponseError"


@pytest.mark.parametrize("ask", ["embed", "embeddings"])
def test_embeddings_of_ollama_become_a_span(ask: str, ollama: Ollama, watched: Watched) -> None:
    """The current route and the old one, which tells no tokens."""
    client = client_library.Client(host=ollama.host)
    if ask == "embed" and hasattr(client, "embed"):
        client.embed(model=ollama.model, input="The sea.")
        assert (watched.ended[0].input_tokens or 0) > 0
    else:
        client.embeddings(model=ollama.model, prompt="The sea.")
    assert watched.only_span().name == f"embeddings {ollama.model}"


def test_module_functions_of_ollama_become_spans_when_they_were_bound_before(
    ollama: Ollama, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`from ollama import chat` before `instrument()`."""
    module_client: Any = client_library.chat.__self__  # type: ignore[attr-defined]
    monkeypatch.setattr(module_client, "_client", client_library.Client(host=ollama.host)._client)
    _MODULE_CHAT(model=ollama.model, messages=_MESSAGES, options=_OPTIONS)
    _assert_ended(watched, None, True)


_BARE: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/api/chat", {"messages": _MESSAGES, "options": _OPTIONS}),
    "generate": ("/api/generate", {"prompt": "Red, green and", "options": _OPTIONS}),
    "openai": ("/v1/chat/completions", {"messages": _MESSAGES, "max_tokens": _TOKENS, "temperature": 0}),
}


async def _lines_of_aiohttp(url: str, body: object) -> list[bytes]:
    async with aiohttp.ClientSession() as session, session.post(url, json=body) as response:
        return [line async for line in response.content]


@pytest.mark.parametrize("library", ["requests", "httpx", "aiohttp"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("route", _BARE)
def test_bare_call_of_ollama_says_its_work(
    route: str, stream: bool, library: str, ollama: Ollama, watched: Watched
) -> None:
    """Ollama's own routes with its durations, and its OpenAI-compatible one, which names itself."""
    path, body = _BARE[route]
    body = {**body, "model": ollama.model, "stream": stream}
    if stream and route == "openai":
        body["stream_options"] = {"include_usage": True}
    url = ollama.host + path
    if library == "httpx":
        with httpx.stream("POST", url, json=body, timeout=60) as response:
            assert len(list(response.iter_lines())) > (2 if stream else 0)
    elif library == "aiohttp":
        assert len(asyncio.run(_lines_of_aiohttp(url, body))) > (2 if stream else 0)
    else:
        with requests.post(url, json=body, stream=stream, timeout=60) as answer:
            assert len(list(answer.iter_lines())) > (2 if stream else 0)
    watched.only_span()
    call = watched.ended[0]
    assert (call.provider, call.output_tokens) == ("ollama", _TOKENS)
    assert (call.timings is None) is (route == "openai")
    assert len(watched.first_chunks) == stream


def test_openai_client_shows_ollama_when_it_speaks_to_it(ollama: Ollama, watched: Watched) -> None:
    """By the fingerprint of its OpenAI-compatible route."""
    client = openai.OpenAI(base_url=f"{ollama.host}/v1", api_key="k")
    client.chat.completions.create(model=ollama.model, messages=_MESSAGES, max_tokens=2)  # type: ignore[arg-type]
    watched.only_span()
    assert watched.ended[0].provider == "ollama"

"""Bare calls of LLM servers: which requests are calls, what their spans say, and that the app gets what it would."""

from __future__ import annotations

import functools
import gzip
import io
import json
import zlib
from collections.abc import Callable
from typing import Any

import aiohttp
import httpx
import ollama
import openai
import pytest
import requests
from opentelemetry.instrumentation.utils import (
    is_http_instrumentation_enabled,
    suppress_http_instrumentation,
    suppress_instrumentation,
)
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON

from otel_llm_instrumentation import ServerTimings
from otel_llm_instrumentation.http import HTTPInstrumentor
from tests.instrumentation import payloads
from tests.instrumentation.bare import ASK, HTTPX, AsyncBare, Bare, Requests, async_clients, bare, sync_clients
from tests.instrumentation.conftest import Watched
from tests.instrumentation.replay import ReplayServer, Reply, json_reply, ndjson_reply, sse_reply

__all__ = ["bare"]

_OPENAI_TIMINGS = ServerTimings(prefill_seconds=0.0755, decode_seconds=0.09225)


@pytest.mark.parametrize("client", sync_clients())
def test_span_says_what_was_asked_and_answered_when_a_bare_chat_completes(
    client: Bare, server: ReplayServer, bare: Watched
) -> None:
    """The same attributes as from the client library."""
    server.reply = json_reply(payloads.chat())
    answer = client.post(f"{server.url}/v1/chat/completions", {**ASK, "temperature": 0, "max_tokens": 20})
    assert answer.json() == payloads.CHAT
    span = bare.only_span()
    assert span.name == "chat m"
    assert dict(span.attributes or {}) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "llama.cpp",
        "gen_ai.request.model": "m",
        "server.address": "127.0.0.1",
        "server.port": server.port,
        "gen_ai.request.temperature": 0.0,
        "gen_ai.request.max_tokens": 20,
        "gen_ai.response.model": "smollm2-135m",
        "gen_ai.response.id": "chatcmpl-1",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 38,
        "gen_ai.usage.output_tokens": 8,
        "gen_ai.usage.cache_read.input_tokens": 20,
        "llm.server.prefill_seconds": 0.0755,
        "llm.server.decode_seconds": 0.09225,
    }


_STREAMS = [
    ("/v1/chat/completions", {**ASK, "stream": True}, sse_reply(payloads.chunks()), _OPENAI_TIMINGS),
    ("/proxy/openai/v1/chat/completions", {**ASK, "stream": True}, sse_reply(payloads.chunks()), _OPENAI_TIMINGS),
    ("/api/chat", ASK, ndjson_reply(payloads.ollama_chunks()), ServerTimings(0.15, 0.112, 0.65, 1795342272123456789)),
]


def _assert_stream_was_seen(lines: list[str], reply: Any, timings: ServerTimings, bare: Watched) -> None:
    assert lines == [line for line in b"".join(reply.body).decode().splitlines() if line]
    [call] = bare.ended
    assert (call.input_tokens, call.output_tokens, call.timings) == (38, 8, timings)
    assert len(bare.first_chunks) == 1
    assert (bare.only_span().attributes or {})["gen_ai.request.stream"] is True


@pytest.mark.parametrize("client", sync_clients())
@pytest.mark.parametrize(("path", "body", "reply", "timings"), _STREAMS, ids=["openai", "prefixed", "ollama"])
def test_stream_is_seen_when_the_app_reads_its_lines(
    client: Bare, path: str, body: Any, reply: Any, timings: ServerTimings, server: ReplayServer, bare: Watched
) -> None:
    """SSE and NDJSON; Ollama streams where nobody says otherwise."""
    server.reply = reply
    with client.stream(server.url + path, body) as response:
        lines = [line for line in client.lines(response) if line]
        assert len(bare.ended) == 1  # at the last byte, before the exit
    _assert_stream_was_seen(lines, reply, timings, bare)


@pytest.mark.parametrize("make_client", async_clients())
@pytest.mark.parametrize(("path", "body", "reply", "timings"), _STREAMS, ids=["openai", "prefixed", "ollama"])
async def test_stream_is_seen_when_the_app_awaits_its_lines(
    make_client: Callable[[], AsyncBare],
    path: str,
    body: Any,
    reply: Any,
    timings: ServerTimings,
    server: ReplayServer,
    bare: Watched,
) -> None:
    """The same, awaited."""
    server.reply = reply
    async with make_client() as client, client.stream(server.url + path, body) as response:
        lines = [line async for line in client.lines(response) if line]
        assert len(bare.ended) == 1
    _assert_stream_was_seen(lines, reply, timings, bare)


@pytest.mark.parametrize("make_client", async_clients())
async def test_span_says_what_was_asked_and_answered_when_a_bare_chat_is_awaited(
    make_client: Callable[[], AsyncBare], server: ReplayServer, bare: Watched
) -> None:
    """Of both, and where it went to."""
    server.reply = json_reply(payloads.chat())
    async with make_client() as client:
        assert await client.post(f"{server.url}/v1/chat/completions", {**ASK, "temperature": 0}) == payloads.CHAT
    span = bare.only_span()
    attributes = span.attributes or {}
    assert (span.name, attributes["gen_ai.request.temperature"]) == ("chat m", 0.0)
    assert (attributes["server.address"], attributes["server.port"]) == ("127.0.0.1", server.port)
    assert (bare.ended[0].output_tokens, bare.ended[0].timings) == (8, _OPENAI_TIMINGS)
    assert not bare.first_chunks


def _unpacked_in_pieces(raw: Any) -> object:
    if not hasattr(raw, "read1"):  # before urllib3 2 a piece may be empty though there is more to come
        return raw.read(decode_content=True)
    return list(iter(lambda: raw.read(5, decode_content=True), b""))


_READS: dict[str, Callable[[Any], object]] = {
    "iter_content": lambda response: b"".join(response.iter_content(7)),
    "iter_content of any size": lambda response: b"".join(response.iter_content(None)),
    "iter_lines": lambda response: list(response.iter_lines(chunk_size=3)),
    "content": lambda response: response.content,
    "json or text": lambda response: response.text,
    "raw.read": lambda response: response.raw.read(),
    # To urllib3 before 2 it means nothing: it waits for ever.
    "raw.read of what there is": lambda response: response.raw.read(-1 if hasattr(response.raw, "read1") else None),
    "raw.read in pieces": lambda response: list(iter(lambda: response.raw.read(5), b"")),
    "raw.read unpacked, in pieces": lambda response: _unpacked_in_pieces(response.raw),
    # Before urllib3 2 there is none.
    "raw.read1": lambda response: list(iter(lambda: getattr(response.raw, "read1", response.raw.read)(5), b"")),
    "raw.stream": lambda response: list(response.raw.stream(11)),
    "raw lines": lambda response: list(response.raw),
}


@pytest.mark.parametrize("read", _READS)
@pytest.mark.parametrize("sent", ["chunked", "with a length", "packed"])
def test_app_reads_the_same_when_it_reads_a_streamed_response_of_requests(
    read: str, sent: str, server: ReplayServer, watched: Watched
) -> None:
    """Every way to read, with and without us; the call ends with the last byte."""
    server.reply = sse_reply(payloads.chunks())
    server.reply.chunked = sent != "with a length"
    if sent == "packed":
        server.reply.body = [gzip.compress(b"".join(server.reply.body))]
        server.reply.headers["content-encoding"] = "gzip"

    def ask() -> tuple[object, Any]:
        response = requests.post(f"{server.url}/v1/chat/completions", json={**ASK, "stream": True}, stream=True)
        return _READS[read](response), response

    plain, _ = ask()
    HTTPInstrumentor().instrument(tracer_provider=watched.provider)
    try:
        seen, response = ask()
        assert bare_tokens(watched) == (38, 8)
    finally:
        HTTPInstrumentor().uninstrument()
    assert seen == plain
    assert isinstance(response, requests.Response)


def bare_tokens(watched: Watched) -> tuple[int | None, int | None]:
    """Of the one call, which has ended."""
    [call] = watched.ended
    return call.input_tokens, call.output_tokens


_JSON_IN_LINES = json.dumps(payloads.chat(), indent=1).encode()


@pytest.mark.parametrize(
    ("path", "reply"),
    [
        ("/v1/chat/completions", Reply([_JSON_IN_LINES])),
        ("/v1/chat/completions", sse_reply(payloads.chunks())),
        ("/api/embed", ndjson_reply([{**payloads.ollama_chat(), "embeddings": []}, payloads.ollama_chat()])),
        ("/v1/chat/completions", Reply([], raw=b"HTTP/1.0 200 OK\r\n\r\n" + _JSON_IN_LINES)),
    ],
    ids=["several lines", "events", "lines of JSON", "of no known kind"],
)
@pytest.mark.parametrize("streamed", [True, False], ids=["read later", "read at once"])
def test_answer_is_read_by_what_it_is_when_no_stream_was_asked_for(
    path: str, reply: Reply, streamed: bool, server: ReplayServer, bare: Watched
) -> None:
    """Some servers write JSON over several lines, stream by their own choice, or say nothing of what they send."""
    server.reply = reply
    assert requests.post(server.url + path, json={**ASK, "input": "hi"}, stream=streamed).content
    assert bare_tokens(bare) == (38, 8)


@pytest.mark.parametrize(
    ("path", "body", "name", "provider"),
    [
        ("/api/generate", {"model": "m", "prompt": "hi"}, "text_completion m", "ollama"),
        ("/api/embed", {"model": "m", "input": "hi"}, "embeddings m", "ollama"),
        ("/api/embeddings", {"model": "m", "prompt": "hi"}, "embeddings m", "ollama"),
        ("/v1/completions", {"prompt": "hi"}, "text_completion", "openai"),
        ("/v1/completions/", {"prompt": "hi"}, "text_completion", "openai"),
        ("/v1/responses", {"model": "m", "input": "hi"}, "chat m", "openai"),
        ("/v1/embeddings", {"input": "hi"}, "embeddings", "openai"),
        ("/openai/deployments/x/embeddings", {"model": "m", "input": "hi"}, "embeddings m", "openai"),
        ("/completion", {"prompt": "hi"}, "text_completion", "llama.cpp"),
        ("/infill", {"input_prefix": "a", "input_suffix": "b"}, "text_completion", "llama.cpp"),
    ],
)
def test_known_route_is_a_call_when_the_body_fits_it(
    path: str, body: dict[str, Any], name: str, provider: str, server: ReplayServer, bare: Watched
) -> None:
    """Ollama's, those of OpenAI's API, and llama.cpp's own."""
    server.reply = json_reply({})
    requests.post(f"{server.url}{path}", json=body)
    span = bare.only_span()
    assert (span.name, (span.attributes or {})["gen_ai.provider.name"]) == (name, provider)


@pytest.mark.parametrize("is_whole", [True, False])
def test_app_gets_the_bytes_of_the_wire_when_it_reads_a_packed_answer_as_it_is(
    is_whole: bool, server: ReplayServer, bare: Watched
) -> None:
    """Facts are read of what can be unpacked; what cannot be is the app's to judge, who may not want it unpacked."""
    packed = zlib.compress(json.dumps(payloads.chat()).encode()) if is_whole else b"not packed at all"
    server.reply = Reply([packed], headers={"content-encoding": "deflate"})
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=ASK) as response:
        assert b"".join(response.iter_raw()) == packed
    attributes = bare.only_span().attributes or {}
    assert attributes.get("gen_ai.usage.output_tokens") == (8 if is_whole else None)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/models", ASK),
        ("/v1/chat/completions", {"model": "m"}),
        ("/v1/chat/completions", {**ASK, "messages": "hello"}),
        ("/v1/chat/completions", [ASK]),
        ("/api/chat", {"messages": []}),
        ("/api/chat", {**ASK, "model": {"id": 3}}),
        ("/api/generate", {"prompt": "a password"}),
        ("/survey/responses", {"answers": [1]}),
        ("/api/pull", {"model": "m"}),
        ("/chat/completions/", {"text": "x"}),
    ],
)
def test_request_passes_through_when_it_is_no_call_of_an_llm(
    path: str, body: object, server: ReplayServer, bare: Watched
) -> None:
    """Another route, or a body of another shape on a route that an app may have as well."""
    assert requests.post(server.url + path, json=body).json() == {}
    assert httpx.post(server.url + path, json=body).json() == {}
    requests.put(f"{server.url}/v1/chat/completions", json=ASK)
    assert not bare.started


def test_request_passes_through_when_its_body_cannot_be_looked_at(server: ReplayServer, bare: Watched) -> None:
    """A generator is the library's to read; forms, and what is no JSON, are no calls."""
    url = f"{server.url}/v1/chat/completions"
    httpx.post(url, content=(piece for piece in [b"{}"]))
    requests.post(url, data=(piece for piece in [b"{}"]))
    requests.post(url, data={"messages": "x"})
    requests.post(url, data=b"{no json")
    requests.post(url)
    assert not bare.started


def test_request_is_not_changed_when_it_is_watched_bare(server: ReplayServer, bare: Watched) -> None:
    """Not a header, not a byte."""
    requests.post(f"{server.url}/v1/chat/completions", json=ASK)
    [(_path, headers, body)] = server.requests
    assert "traceparent" not in {name.lower() for name in headers}
    assert json.loads(body) == ASK


@pytest.mark.parametrize("client", [Requests(), HTTPX()], ids=["requests", "httpx"])
@pytest.mark.parametrize("status", [400, 404])
def test_span_names_the_status_when_the_server_refuses(
    status: int, client: Bare, server: ReplayServer, bare: Watched
) -> None:
    """Bare libraries raise nothing; the conventions name the status."""
    server.reply = json_reply({"error": {"message": "no such model"}}, status)
    assert client.post(f"{server.url}/v1/chat/completions", ASK).status_code == status
    assert bare.ended[0].error_type == str(status)
    assert not bare.only_span().status.is_unset


def test_call_ends_with_its_response_when_the_body_is_of_no_known_kind(bare: Watched) -> None:
    """An adapter of the app's own gives any file, of which it does not show when it was read."""

    class Canned(requests.adapters.BaseAdapter):
        def send(self, *_args: object, **_options: object) -> requests.Response:
            response = requests.Response()
            response.status_code = 200
            response.raw = io.BytesIO(b"{}")
            return response

        def close(self) -> None: ...

    with requests.Session() as session:
        session.mount("canned://", Canned())
        response = session.post("canned://server/v1/chat/completions", json=ASK, stream=True)
        assert bare.only_span().status.is_unset
        assert response.json() == {}


def test_span_names_the_error_when_nobody_answers(bare: Watched) -> None:
    """The library's own error reaches the app."""
    with pytest.raises(requests.ConnectionError):
        requests.post("http://127.0.0.1:9/v1/chat/completions", json=ASK)
    with pytest.raises(httpx.ConnectError):
        httpx.post("http://127.0.0.1:9/v1/chat/completions", json=ASK)
    assert [call.error_type for call in bare.ended] == ["ConnectionError", "ConnectError"]


def test_one_span_is_made_when_a_client_library_makes_the_request(server: ReplayServer, bare: Watched) -> None:
    """OpenAI's and Ollama's clients run on httpx: whole, streamed and retried, their call is the one."""
    server.reply = json_reply(payloads.chat())
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="k", max_retries=0)
    client.chat.completions.create(**ASK)
    server.reply = sse_reply(payloads.chunks())
    list(client.chat.completions.create(**ASK, stream=True))
    server.reply = json_reply(payloads.ollama_chat())
    ollama.Client(host=server.url).chat(**ASK)
    server.reply = ndjson_reply(payloads.ollama_chunks())
    list(ollama.Client(host=server.url).chat(**ASK, stream=True))
    scopes = [span.instrumentation_scope.name for span in bare.spans if span.instrumentation_scope]
    assert [scope.rpartition(".")[2] for scope in scopes] == ["openai", "openai", "ollama", "ollama"]
    assert len(bare.ended) == 4


def test_client_library_gets_its_span_when_only_bare_http_is_instrumented(server: ReplayServer) -> None:
    """Where the library's own instrumentor is off, its requests are calls like any other."""
    watched = Watched()
    HTTPInstrumentor().instrument(tracer_provider=watched.provider)
    server.reply = sse_reply(payloads.chunks())
    try:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="k", max_retries=0)
        list(client.chat.completions.create(**ASK, stream=True))
    finally:
        HTTPInstrumentor().uninstrument()
    [span] = watched.spans
    assert (span.attributes or {})["gen_ai.usage.output_tokens"] == 8


def test_one_span_covers_all_attempts_when_requests_retries(server: ReplayServer, bare: Watched) -> None:
    """Retries of urllib3 and redirects happen below the hook."""
    from requests.adapters import HTTPAdapter
    from urllib3.util import Retry

    server.reply = json_reply({"error": "busy"}, 503)
    retry = Retry(total=2, status_forcelist=[503], allowed_methods=None, backoff_factor=0, raise_on_status=False)
    with requests.Session() as session:
        session.mount("http://", HTTPAdapter(max_retries=retry))
        assert session.post(f"{server.url}/v1/chat/completions", json=ASK).status_code == 503
    assert len(server.requests) == 3
    assert bare.only_span().name == "chat m"


def test_nothing_is_observed_when_http_is_suppressed(server: ReplayServer, bare: Watched) -> None:
    """The keys of OpenTelemetry hold for bare calls, too, and the one for what runs below another's span."""
    with suppress_instrumentation():
        requests.post(f"{server.url}/v1/chat/completions", json=ASK)
    with suppress_http_instrumentation():
        requests.post(f"{server.url}/v1/chat/completions", json=ASK)
    assert not bare.started


@pytest.fixture(params=[ALWAYS_ON, ALWAYS_OFF], ids=["sampled", "not sampled"])
def instrument_requests(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Turns on what is played of OpenTelemetry's own instrumentation of requests, as it is in 0.66b1."""
    tracer = TracerProvider(sampler=request.param).get_tracer("opentelemetry.instrumentation.requests")

    def turn_on() -> None:
        original = requests.Session.send

        @functools.wraps(original)
        def instrumented_send(self: requests.Session, sent: requests.PreparedRequest, **kwargs: Any) -> Any:
            if not is_http_instrumentation_enabled():
                return original(self, sent, **kwargs)
            with tracer.start_as_current_span("POST"), suppress_http_instrumentation():
                return original(self, sent, **kwargs)

        instrumented_send.opentelemetry_instrumentation_requests_applied = True  # type: ignore[attr-defined]
        monkeypatch.setattr(requests.Session, "send", instrumented_send)

    return turn_on


@pytest.mark.parametrize("is_first", [False, True], ids=["after ours", "before ours"])
def test_call_is_observed_when_the_http_instrumentation_of_requests_is_on(
    is_first: bool, instrument_requests: Callable[[], None], server: ReplayServer, request: pytest.FixtureRequest
) -> None:
    """It suppresses HTTP below its own span, which is none of an LLM."""
    if is_first:
        instrument_requests()
    watched: Watched = request.getfixturevalue("bare")
    if not is_first:
        instrument_requests()
    server.reply = json_reply(payloads.chat())
    requests.post(f"{server.url}/v1/chat/completions", json=ASK)
    (call,) = watched.ended
    assert (call.operation, call.request_model) == ("chat", "m")


def test_nothing_is_observed_when_http_is_suppressed_above_the_instrumentation_of_requests(
    instrument_requests: Callable[[], None], server: ReplayServer, bare: Watched
) -> None:
    """The key was the app's, or a library's, before that of the instrumentation, which makes no span then."""
    instrument_requests()
    with suppress_http_instrumentation():
        requests.post(f"{server.url}/v1/chat/completions", json=ASK)
        with TracerProvider().get_tracer("a library").start_as_current_span("HTTP POST"):
            requests.post(f"{server.url}/v1/chat/completions", json=ASK)
    assert not bare.started


def test_libraries_are_as_before_when_bare_http_is_uninstrumented() -> None:
    """Own methods are the same objects again."""
    methods = [
        (requests.Session, "send"),
        (httpx.Client, "send"),
        (httpx.AsyncClient, "send"),
        (aiohttp.ClientSession, "_request"),
    ]
    before = [vars(owner)[name] for owner, name in methods]
    HTTPInstrumentor().instrument()
    assert all(vars(owner)[name] is not old for (owner, name), old in zip(methods, before, strict=True))
    HTTPInstrumentor().uninstrument()
    assert [vars(owner)[name] for owner, name in methods] == before

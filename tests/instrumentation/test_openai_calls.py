"""Every surface of the OpenAI client, and what its span says."""

from __future__ import annotations

import contextlib
import gc
import gzip
import json
import sys
import weakref
from collections.abc import Callable
from typing import Any

import openai
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.trace import SpanKind, get_current_span

from otel_llm_instrumentation import ServerTimings
from otel_llm_instrumentation.openai import OpenAIInstrumentor
from tests.instrumentation import payloads
from tests.instrumentation.conftest import Watched
from tests.instrumentation.replay import ReplayServer, Reply, json_reply, sse_reply

_ASK: dict[str, Any] = {"model": "m", "messages": payloads.MESSAGES}


def _client(server: ReplayServer, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="k", max_retries=0, **options)


def test_span_says_what_was_asked_and_answered_when_a_chat_completes(server: ReplayServer, watched: Watched) -> None:
    """One client span, with the GenAI attributes, the server's timings and nothing of the content."""
    server.reply = json_reply(payloads.chat())
    client = _client(server)
    answer = client.chat.completions.create(**_ASK, temperature=0, max_tokens=20, seed=-1, stop="x", n=2)
    span = watched.only_span()
    assert answer.choices[0].message.content == "Paris."
    assert (span.name, span.kind) == ("chat m", SpanKind.CLIENT)
    assert dict(span.attributes or {}) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "llama.cpp",
        "gen_ai.request.model": "m",
        "server.address": "127.0.0.1",
        "server.port": server.port,
        "gen_ai.request.temperature": 0.0,
        "gen_ai.request.max_tokens": 20,
        "gen_ai.request.seed": -1,
        "gen_ai.request.stop_sequences": ("x",),
        "gen_ai.request.choice.count": 2,
        "gen_ai.response.model": "smollm2-135m",
        "gen_ai.response.id": "chatcmpl-1",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 38,
        "gen_ai.usage.output_tokens": 8,
        "gen_ai.usage.cache_read.input_tokens": 20,
        "llm.server.prefill_seconds": 0.0755,
        "llm.server.decode_seconds": 0.09225,
    }


def test_observers_get_the_facts_when_a_call_ends(server: ReplayServer, watched: Watched) -> None:
    """Tokens, timings, instants and server are there at `call_ended`, for whoever bills the call."""
    server.reply = json_reply(payloads.chat())
    _client(server).chat.completions.create(**_ASK)
    [call] = watched.ended
    assert (call.operation, call.provider, call.request_model) == ("chat", "llama.cpp", "m")
    assert (call.response_model, call.response_id) == ("smollm2-135m", "chatcmpl-1")
    assert (call.server_address, call.server_port) == ("127.0.0.1", server.port)
    assert (call.input_tokens, call.output_tokens, call.cached_input_tokens) == (38, 8, 20)
    assert call.timings == ServerTimings(prefill_seconds=0.0755, decode_seconds=0.09225)
    assert (call.owns_span, call.error_type, call.first_chunk_ns) == (True, None, None)
    assert call.span.get_span_context() == watched.only_span().get_span_context()


def test_request_is_not_changed_when_it_is_watched(server: ReplayServer, watched: Watched) -> None:
    """No include_usage and no traceparent of ours reach the server."""
    server.reply = sse_reply(payloads.chunks())
    list(_client(server).chat.completions.create(**_ASK, stream=True))
    [(path, headers, body)] = server.requests
    assert path == "/v1/chat/completions"
    assert "traceparent" not in {name.lower() for name in headers}
    assert json.loads(body) == {**_ASK, "stream": True}


def _embed(client: openai.OpenAI) -> object:
    return client.embeddings.create(model="m", input="hi").data[0].embedding


def _complete(client: openai.OpenAI) -> object:
    return client.completions.create(model="m", prompt="hi").id


def _respond(client: openai.OpenAI) -> object:
    if not hasattr(client, "responses"):
        pytest.skip(f"openai {openai.__version__} has no responses")
    return client.responses.create(model="m", input="hi").id


@pytest.mark.parametrize(
    ("use", "payload", "name", "tokens"),
    [
        (_embed, payloads.EMBEDDINGS, "embeddings m", (5, None)),
        (_complete, payloads.chat(object="text_completion"), "text_completion m", (38, 8)),
        (_respond, payloads.RESPONSE, "chat m", (38, 8)),
        (lambda client: client.post("/chat/completions", cast_to=object, body=_ASK), payloads.CHAT, "chat m", (38, 8)),
    ],
    ids=["embeddings", "completions", "responses", "bare post"],
)
def test_surface_becomes_a_span_when_it_spends_tokens(
    use: Callable[[openai.OpenAI], object],
    payload: object,
    name: str,
    tokens: tuple[int | None, int | None],
    server: ReplayServer,
    watched: Watched,
) -> None:
    """Surfaces beside chat, too."""
    server.reply = json_reply(payload)
    assert use(_client(server))
    assert watched.only_span().name == name
    assert (watched.ended[0].input_tokens, watched.ended[0].output_tokens) == tokens


def test_responses_stream_is_read_when_it_completes(server: ReplayServer, watched: Watched) -> None:
    """The last event carries the whole response."""
    client = _client(server)
    if not hasattr(client, "responses"):
        pytest.skip(f"openai {openai.__version__} has no responses")
    created = {"type": "response.created", "sequence_number": 0, "response": {**payloads.RESPONSE, "usage": None}}
    completed = {"type": "response.completed", "sequence_number": 1, "response": payloads.RESPONSE}
    server.reply = sse_reply([created, completed], done=False)
    assert len(list(client.responses.create(model="m", input="hi", stream=True))) == 2
    assert watched.only_span().name == "chat m"
    assert (watched.ended[0].input_tokens, watched.ended[0].output_tokens) == (38, 8)


def test_call_passes_through_when_it_spends_no_tokens(server: ReplayServer, watched: Watched) -> None:
    """Other operations make no span, nor does asking for what was stored of earlier calls."""
    server.reply = json_reply({"id": "modr-1", "model": "m", "results": []})
    _client(server).moderations.create(input="hi")
    _client(server).get("/chat/completions", cast_to=object)
    assert not watched.spans
    assert not watched.started


def test_raw_response_keeps_its_headers_and_is_read_when_it_has_arrived(server: ReplayServer, watched: Watched) -> None:
    """The app gets the same raw response, parsed only if it asks."""
    server.reply = json_reply(payloads.chat())
    raw = _client(server).chat.completions.with_raw_response.create(**_ASK)
    assert watched.only_span().attributes
    assert watched.ended[0].output_tokens == 8
    assert raw.headers["content-type"] == "application/json"
    assert raw.parse().choices[0].message.content == "Paris."


@pytest.mark.parametrize("read", ["parse", "json", "text", "read"])
def test_streaming_response_is_read_when_the_app_reads_it(read: str, server: ReplayServer, watched: Watched) -> None:
    """The body is the app's to read; our tokens come from what it read."""
    server.reply = json_reply(payloads.chat())
    with _client(server).chat.completions.with_streaming_response.create(**_ASK) as raw:
        assert not raw.http_response.is_stream_consumed
        assert not watched.ended
        assert getattr(raw, read)()
        assert watched.ended[0].output_tokens == 8
        assert read not in vars(raw)
    assert watched.only_span().status.is_unset


@pytest.mark.parametrize("read", ["iter_bytes", "iter_text", "iter_lines"])
@pytest.mark.parametrize("stream", [False, True])
def test_streaming_response_is_read_when_the_app_reads_it_piece_by_piece(
    read: str, stream: bool, server: ReplayServer, watched: Watched
) -> None:
    """Also where the app takes the events of a stream apart by itself."""
    server.reply = sse_reply(payloads.chunks()) if stream else json_reply(payloads.chat())
    with _client(server).chat.completions.with_streaming_response.create(**_ASK, stream=stream) as raw:
        assert list(getattr(raw, read)())
        assert watched.ended[0].output_tokens == 8
        assert (watched.ended[0].first_chunk_ns is not None) == stream
    assert watched.only_span().status.is_unset


def test_raw_stream_is_read_when_the_app_iterates_over_the_http_response(
    server: ReplayServer, watched: Watched
) -> None:
    """The raw response need not be asked for anything."""
    server.reply = sse_reply(payloads.chunks())
    raw = _client(server).chat.completions.with_raw_response.create(**_ASK, stream=True)
    assert list(raw.http_response.iter_lines())
    watched.only_span()
    assert watched.ended[0].output_tokens == 8


@pytest.mark.parametrize("encoding", ["identity", "gzip, gzip"])
def test_raw_stream_is_read_when_the_app_has_it_parsed(encoding: str, server: ReplayServer, watched: Watched) -> None:
    """What is parsed shows the facts in any encoding that the client knows, be it strange to us."""
    server.reply = sse_reply(payloads.chunks())
    if encoding != "identity":
        server.reply.body = [gzip.compress(gzip.compress(b"".join(server.reply.body)))]
        server.reply.headers["content-encoding"] = encoding
    raw = _client(server).chat.completions.with_raw_response.create(**_ASK, stream=True)
    assert len(list(raw.parse())) == 4
    watched.only_span()
    assert (watched.ended[0].output_tokens, len(watched.first_chunks)) == (8, 1)
    assert "parse" not in vars(raw)


async def test_streaming_response_is_read_when_the_app_awaits_it(server: ReplayServer, watched: Watched) -> None:
    """The same, awaited; `parse` is a coroutine there."""
    server.reply = json_reply(payloads.chat())
    client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="k")
    async with client, client.chat.completions.with_streaming_response.create(**_ASK) as raw:
        assert (await raw.parse()).choices[0].message.content == "Paris."
    watched.only_span()
    assert watched.ended[0].output_tokens == 8


async def test_chat_completes_when_it_is_awaited(server: ReplayServer, watched: Watched) -> None:
    """Sync and async say the same."""
    server.reply = json_reply(payloads.chat())
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="k") as client:
        await client.chat.completions.create(**_ASK)
        raw = await client.chat.completions.with_raw_response.create(**_ASK)
        assert raw.parse().id == "chatcmpl-1"
    assert [span.name for span in watched.spans] == ["chat m", "chat m"]
    assert [call.output_tokens for call in watched.ended] == [8, 8]


def test_parameters_are_those_that_are_sent_when_the_app_adds_some_of_its_own(
    server: ReplayServer, watched: Watched
) -> None:
    """What is in ``extra_body`` goes over the wire; one choice is what everybody gets, and is not said."""
    server.reply = json_reply(payloads.chat())
    _client(server).chat.completions.create(**_ASK, n=1, extra_body={"seed": 7})
    attributes = watched.only_span().attributes or {}
    assert attributes["gen_ai.request.seed"] == 7
    assert "gen_ai.request.choice.count" not in attributes


class _House(openai.OpenAI):
    pass


def test_kinds_of_client_are_watched_when_they_are_openai_clients(server: ReplayServer, watched: Watched) -> None:
    """Subclasses, copies with options, and Azure, which has a provider name of its own."""
    server.reply = json_reply(payloads.chat(timings=...))
    _House(base_url=server.url, api_key="k").chat.completions.create(**_ASK)
    _client(server).with_options(timeout=7).chat.completions.create(**_ASK)
    azure = openai.AzureOpenAI(azure_endpoint=server.url, api_key="k", api_version="2024-10-21")
    azure.chat.completions.create(**_ASK)
    assert [call.provider for call in watched.ended] == ["openai", "openai", "azure.ai.openai"]
    assert {call.server_port for call in watched.ended} == {server.port}


def test_client_is_watched_when_it_was_made_before(server: ReplayServer) -> None:
    """Also with its methods bound before."""
    server.reply = json_reply(payloads.chat())
    create = _client(server).chat.completions.create
    watched = Watched()
    OpenAIInstrumentor().instrument(tracer_provider=watched.provider)
    try:
        create(**_ASK)
    finally:
        OpenAIInstrumentor().uninstrument()
    create(**_ASK)
    assert len(watched.spans) == 1


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (json_reply({"error": {"message": "too long"}}, 400), openai.BadRequestError),
        (json_reply({"error": {"message": "slow down"}}, 429), openai.RateLimitError),
        (Reply([b"x"], 500, "text/html"), openai.InternalServerError),
        (Reply([b'{"id"'], breaks_off=True), Exception),
    ],
    ids=["400", "429", "500", "reset"],
)
def test_span_names_the_error_when_a_call_fails(
    reply: Reply, error: type[Exception], server: ReplayServer, watched: Watched
) -> None:
    """The app gets the library's own error; the span its type, not its text, which may quote the prompt."""
    server.reply = reply
    with pytest.raises(error) as raised:
        _client(server).chat.completions.create(**_ASK)
    span = watched.only_span()
    assert (span.attributes or {})["error.type"] == type(raised.value).__qualname__ == watched.ended[0].error_type
    assert not span.status.is_ok
    assert not span.status.is_unset
    assert span.status.description is None
    assert not span.events


@pytest.mark.parametrize("awaited", [False, True])
async def test_next_call_has_its_own_span_when_one_has_failed(
    awaited: bool, server: ReplayServer, watched: Watched
) -> None:
    """Nothing of a call is left in the app's context, where it would make the next one a part of it."""
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="k", max_retries=0) as client:
        for reply in (json_reply({"error": {"message": "slow down"}}, 429), json_reply(payloads.chat())):
            server.reply = reply
            with contextlib.suppress(openai.RateLimitError):
                if awaited:
                    await client.chat.completions.create(**_ASK)
                else:
                    _client(server).chat.completions.create(**_ASK)
            assert not get_current_span().get_span_context().is_valid
    assert [call.error_type for call in watched.ended] == ["RateLimitError", None]
    assert [span.parent for span in watched.spans] == [None, None]


def test_no_span_starts_when_the_arguments_are_wrong(server: ReplayServer, watched: Watched) -> None:
    """A call that the library refuses is no call."""
    with pytest.raises(TypeError):
        _client(server).chat.completions.create(model="m")  # type: ignore[call-overload]
    assert not watched.started


def test_one_span_covers_all_attempts_when_a_call_is_retried(server: ReplayServer, watched: Watched) -> None:
    """Retries happen below the hook."""
    server.reply = json_reply({"error": {"message": "busy"}}, 503)
    client = _client(server).with_options(max_retries=1)
    client._sleep_for_retry = lambda **_: None  # type: ignore[method-assign]  # no need to wait here
    client._calculate_retry_timeout = lambda *_, **__: 0.0  # type: ignore[method-assign]  # openai 1.26
    with pytest.raises(openai.InternalServerError):
        client.chat.completions.create(**_ASK)
    watched.only_span()
    assert len(server.requests) == 2


def _metrics_of(ask: Callable[[], object]) -> dict[str, Any]:
    """What is recorded while it asks: the points of each metric, by its name."""
    reader = InMemoryMetricReader()
    OpenAIInstrumentor().instrument(meter_provider=MeterProvider([reader]))
    try:
        ask()
    finally:
        OpenAIInstrumentor().uninstrument()
    data = reader.get_metrics_data()
    assert data is not None
    return {metric.name: metric.data.data_points for metric in data.resource_metrics[0].scope_metrics[0].metrics}


def test_metrics_are_recorded_when_there_is_a_meter_provider(server: ReplayServer) -> None:
    """Duration and tokens, with the attributes of the conventions."""
    server.reply = json_reply(payloads.chat())
    metrics = _metrics_of(lambda: _client(server).chat.completions.create(**_ASK))
    tokens = {point.attributes["gen_ai.token.type"]: point.sum for point in metrics["gen_ai.client.token.usage"]}
    assert tokens == {"input": 38, "output": 8}
    [duration] = metrics["gen_ai.client.operation.duration"]
    assert dict(duration.attributes) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "llama.cpp",
        "gen_ai.request.model": "m",
        "gen_ai.response.model": "smollm2-135m",
        "server.address": "127.0.0.1",
        "server.port": server.port,
    }
    assert "gen_ai.client.operation.time_to_first_chunk" not in metrics


def test_duration_names_the_error_when_a_call_fails(server: ReplayServer) -> None:
    """Tokens that nobody has counted are not recorded."""
    server.reply = json_reply({"error": {"message": "slow down"}}, 429)

    def fail() -> None:
        with pytest.raises(openai.RateLimitError):
            _client(server).embeddings.create(model="m", input="hi")

    metrics = _metrics_of(fail)
    assert metrics.keys() == {"gen_ai.client.operation.duration"}
    [duration] = metrics["gen_ai.client.operation.duration"]
    assert dict(duration.attributes) == {
        "gen_ai.operation.name": "embeddings",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "m",
        "server.address": "127.0.0.1",
        "server.port": server.port,
        "error.type": "RateLimitError",
    }


def test_span_says_how_many_tokens_were_thoughts_when_the_server_does(server: ReplayServer, watched: Watched) -> None:
    """They are among the tokens of the output."""
    usage = {**payloads.USAGE, "completion_tokens_details": {"reasoning_tokens": 3}}
    server.reply = json_reply(payloads.chat(usage=usage))
    _client(server).chat.completions.create(**_ASK)
    attributes = watched.only_span().attributes or {}
    assert attributes["gen_ai.usage.output_tokens"] == 8
    assert attributes["gen_ai.usage.reasoning.output_tokens"] == 3


def test_time_to_the_first_chunk_is_recorded_when_an_answer_is_streamed(server: ReplayServer) -> None:
    """Once for each stream, in seconds, with the attributes of its duration."""
    server.reply = sse_reply(payloads.chunks())
    metrics = _metrics_of(lambda: list(_client(server).chat.completions.create(**_ASK, stream=True)))
    [duration] = metrics["gen_ai.client.operation.duration"]
    [waited] = metrics["gen_ai.client.operation.time_to_first_chunk"]
    assert (waited.count, waited.attributes) == (1, duration.attributes)
    assert 0 < waited.sum < duration.sum


def test_duration_is_that_of_the_call_when_it_is_recorded(server: ReplayServer, watched: Watched) -> None:
    """In seconds; the observers' clock counts in nanoseconds."""
    server.reply = json_reply(payloads.chat())
    reader = InMemoryMetricReader()
    OpenAIInstrumentor().uninstrument()
    OpenAIInstrumentor().instrument(meter_provider=MeterProvider([reader]), tracer_provider=watched.provider)
    _client(server).chat.completions.create(**_ASK)
    [call] = watched.ended
    data = reader.get_metrics_data()
    assert data is not None and call.ended_ns is not None
    recorded = {metric.name: metric.data for metric in data.resource_metrics[0].scope_metrics[0].metrics}
    [duration] = recorded["gen_ai.client.operation.duration"].data_points
    assert duration.sum == pytest.approx((call.ended_ns - call.started_ns) / 1e9)


def _choice(index: int, text: str | None, finish_reason: str | None = None, **more: Any) -> dict[str, Any]:
    delta = {} if text is None else {"content": text}
    return payloads.chunk(choices=[{"index": index, "delta": delta, "finish_reason": finish_reason, **more}])


@pytest.mark.parametrize(
    ("chunks", "reasons"),
    [
        ([_choice(0, None, "length"), *[_choice(1, "b")] * 6, _choice(1, None, "stop")], ("length", "stop")),
        ([_choice(0, None, "stop"), _choice(0, None, content_filter_offsets={})], ("stop",)),
    ],
    ids=["one of two ends early", "Azure's filter speaks last"],
)
def test_finish_reasons_are_found_when_they_are_not_in_the_last_chunk(
    chunks: list[dict[str, Any]], reasons: tuple[str, ...], server: ReplayServer, watched: Watched
) -> None:
    """The usage comes after them."""
    server.reply = sse_reply([_choice(0, "a"), *chunks, payloads.chunk(choices=[], usage=payloads.USAGE)])
    for _ in _client(server).chat.completions.create(**_ASK, n=len(reasons), stream=True):
        pass
    attributes = watched.only_span().attributes or {}
    assert (attributes["gen_ai.response.finish_reasons"], attributes["gen_ai.usage.output_tokens"]) == (reasons, 8)


@pytest.mark.parametrize("kind", ["response", "text"])
def test_answer_is_read_when_the_app_has_it_cast_to_what_it_likes(
    kind: str, server: ReplayServer, watched: Watched
) -> None:
    """The response of HTTP, whichever library the client uses for that, or its text."""
    server.reply = json_reply(payloads.chat())
    client = _client(server)
    http_library = sys.modules[type(client.base_url).__module__.partition(".")[0]]
    client.post("/chat/completions", cast_to=http_library.Response if kind == "response" else str, body=_ASK)
    watched.only_span()
    assert (watched.ended[0].input_tokens, watched.ended[0].output_tokens) == (38, 8)


def test_client_is_let_go_when_the_app_lets_go_of_it(server: ReplayServer, watched: Watched) -> None:
    """An asynchronous one closes itself then, which it can do only while its event loop runs."""
    server.reply = json_reply(payloads.chat())
    client = _client(server)
    client.chat.completions.create(**_ASK)
    http_client = weakref.ref(client._client)
    del client
    gc.collect()
    assert http_client() is None
    assert watched.only_span()

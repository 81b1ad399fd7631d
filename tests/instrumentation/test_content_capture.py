"""Prompts and answers: never by default, in the shape of the GenAI conventions where the user asks for them."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import ollama
import openai
import pytest
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.sdk._logs import LoggerProvider, export
from opentelemetry.sdk.trace import SpanLimits, TracerProvider

from otel_llm_instrumentation.content import CAPTURE_VARIABLE, Capture, wanted_capture
from otel_llm_instrumentation.http import HTTPInstrumentor
from otel_llm_instrumentation.ollama import OllamaInstrumentor
from otel_llm_instrumentation.openai import OpenAIInstrumentor
from tests.instrumentation import payloads
from tests.instrumentation.conftest import Watched
from tests.instrumentation.replay import ReplayServer, json_reply, ndjson_reply, sse_reply

# Named anew in SDK 1.39; and by that name later SDKs warn of the old one.
_LogExporter: Any = getattr(export, "InMemoryLogRecordExporter", None) or export.InMemoryLogExporter
_ASK: dict[str, Any] = {"model": "m", "messages": payloads.MESSAGES}
_ASKED = [{"role": "user", "parts": [{"type": "text", "content": "What is the capital of France?"}]}]
_PARIS = [{"role": "assistant", "parts": [{"type": "text", "content": "Paris."}], "finish_reason": "stop"}]
_CONTENT = ("gen_ai.system_instructions", "gen_ai.input.messages", "gen_ai.output.messages")

Instrument = Callable[..., Watched]


@pytest.fixture
def capturing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Instrument]:
    """Instruments with the standard variable set, and takes it back."""
    instrumentors = [OpenAIInstrumentor(), OllamaInstrumentor(), HTTPInstrumentor()]

    def instrument(mode: str = "SPAN_ONLY", provider: TracerProvider | None = None, **options: Any) -> Watched:
        monkeypatch.setenv(CAPTURE_VARIABLE, mode)
        watched = Watched() if provider is None else Watched(provider=provider)
        for instrumentor in instrumentors:
            instrumentor.instrument(tracer_provider=watched.provider, skip_dep_check=True, **options)
        return watched

    yield instrument
    for instrumentor in instrumentors:
        instrumentor.uninstrument()


def client(server: ReplayServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="k", max_retries=0)


def said(watched: Watched) -> tuple[Any, Any, Any]:
    """Instructions, input and output on the one span; ``None`` where it has none."""
    (span,) = watched.spans
    found = [(span.attributes or {}).get(key) for key in _CONTENT]
    instructions, asked, answered = [json.loads(text) if isinstance(text, str) else None for text in found]
    return instructions, asked, answered


@pytest.mark.parametrize("mode", ["", "NO_CONTENT", "true"])
def test_nothing_is_captured_unless_the_variable_says_so(
    mode: str, server: ReplayServer, capturing: Instrument
) -> None:
    """Neither by default nor for a value that is none."""
    watched = capturing(mode)
    server.reply = json_reply(payloads.chat())
    client(server).chat.completions.create(**_ASK)
    assert said(watched) == (None, None, None)
    assert "France" not in str(dict(watched.spans[0].attributes or {}))


def test_wrong_value_is_named_when_it_captures_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """With what is allowed."""
    with caplog.at_level(logging.WARNING):
        assert wanted_capture({CAPTURE_VARIABLE: "true"}) is Capture.NO_CONTENT
    assert "NO_CONTENT, SPAN_ONLY, EVENT_ONLY, SPAN_AND_EVENT" in caplog.text
    assert wanted_capture({CAPTURE_VARIABLE: "span_only"}) is Capture.SPAN_ONLY


def test_chat_and_its_tools_are_captured_in_the_conventions_shape(server: ReplayServer, capturing: Instrument) -> None:
    """Texts, images, tool calls and their results, in the order of the messages."""
    watched = capturing()
    call = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    answer = {"index": 0, "finish_reason": "tool_calls", "message": {"role": "assistant", "tool_calls": [call]}}
    server.reply = json_reply(payloads.chat(choices=[answer]))
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}
    messages: Any = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Add."}, image]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "3"},
    ]
    client(server).chat.completions.create(model="m", messages=messages)
    tool_call = {"type": "tool_call", "id": "call_1", "name": "add", "arguments": {"a": 1}}
    blob = {"type": "blob", "modality": "image", "mime_type": "image/png", "content": "aGk="}
    assert said(watched) == (
        None,
        [
            {"role": "system", "parts": [{"type": "text", "content": "Be brief."}]},
            {"role": "user", "parts": [{"type": "text", "content": "Add."}, blob]},
            {"role": "assistant", "parts": [tool_call]},
            {"role": "tool", "parts": [{"type": "tool_call_response", "id": "call_1", "response": "3"}]},
        ],
        [{"role": "assistant", "parts": [tool_call], "finish_reason": "tool_calls"}],
    )


def test_streamed_chat_is_put_together_from_its_chunks(server: ReplayServer, capturing: Instrument) -> None:
    """Text, thoughts and the pieces of a tool call; several answers by their index."""
    watched = capturing()

    def delta(index: int, finish_reason: str | None = None, **said: Any) -> dict[str, Any]:
        return payloads.chunk(choices=[{"index": index, "delta": said, "finish_reason": finish_reason}])

    piece = {"index": 0, "id": "call_1", "function": {"name": "add", "arguments": '{"a"'}}
    server.reply = sse_reply(
        [
            delta(0, role="assistant", reasoning_content="Hm"),
            delta(0, content="Par"),
            delta(1, tool_calls=[piece]),
            delta(0, "stop", content="is."),
            delta(1, "tool_calls", tool_calls=[{"index": 0, "function": {"arguments": ": 1}"}}]),
        ]
    )
    assert len(list(client(server).chat.completions.create(**_ASK, stream=True, n=2))) == 5
    call = {"type": "tool_call", "id": "call_1", "name": "add", "arguments": {"a": 1}}
    thought = {"type": "reasoning", "content": "Hm"}
    first = {"role": "assistant", "parts": [thought, *_PARIS[0]["parts"]], "finish_reason": "stop"}
    second = {"role": "assistant", "parts": [call], "finish_reason": "tool_calls"}
    assert said(watched) == (None, _ASKED, [first, second])


def test_text_completion_is_captured(server: ReplayServer, capturing: Instrument) -> None:
    """One message for each prompt, one for each answer."""
    watched = capturing()
    choice = {"index": 0, "finish_reason": "stop", "text": "Paris.", "logprobs": None}
    server.reply = json_reply({**payloads.chat(), "object": "text_completion", "choices": [choice]})
    client(server).completions.create(model="m", prompt="What is the capital of France?")
    assert said(watched) == (None, _ASKED, _PARIS)


def response(text: str = "Paris.") -> dict[str, Any]:
    item = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed"}
    return {**payloads.RESPONSE, "output": [{**item, "content": [{"type": "output_text", "text": text}]}]}


@pytest.mark.skipif(
    not hasattr(openai.OpenAI, "responses") and not hasattr(openai.resources, "Responses"),
    reason=f"openai {openai.__version__} has no responses",
)
@pytest.mark.parametrize("ending", ["whole", "streamed", "broken off"])
def test_response_is_captured_however_it_comes(ending: str, server: ReplayServer, capturing: Instrument) -> None:
    """Instructions stand apart; of a stream that breaks off there is the text so far."""
    watched = capturing()
    ask: dict[str, Any] = {"model": "m", "instructions": "Be brief.", "input": _ASKED[0]["parts"][0]["content"]}
    delta = {"type": "response.output_text.delta", "delta": "Paris.", "item_id": "i", "output_index": 0}
    deltas = [{**delta, "content_index": 0, "sequence_number": 1, "logprobs": []}]
    if ending == "whole":
        server.reply = json_reply(response())
        client(server).responses.create(**ask)
    else:
        completed = {"type": "response.completed", "response": response(), "sequence_number": 2}
        events = deltas if ending == "broken off" else [*deltas, completed]
        server.reply = sse_reply(events, done=False)
        list(client(server).responses.create(**ask, stream=True))
    instructions, asked, answered = said(watched)
    assert (instructions, asked) == ([{"type": "text", "content": "Be brief."}], _ASKED)
    (message,) = answered
    assert (message["role"], message["parts"]) == ("assistant", _PARIS[0]["parts"])
    assert message.get("finish_reason") == (None if ending == "broken off" else "stop")


@pytest.mark.parametrize("stream", [False, True])
def test_ollama_is_captured_whole_or_streamed(stream: bool, server: ReplayServer, capturing: Instrument) -> None:
    """Chat with its tools, and generate with its instructions."""
    watched = capturing()
    nothing = {"message": {"role": "assistant", "content": ""}, "response": ""}
    final = {"model": "m", "done": True, "done_reason": "stop", "eval_count": 2, **nothing}

    def reply(*chunks: dict[str, Any]) -> None:
        server.reply = ndjson_reply([*chunks, final]) if stream else json_reply({**final, **chunks[-1]})

    pieces = ("Par", "is.") if stream else ("Paris.",)
    reply(*[{"model": "m", "message": {"role": "assistant", "content": text}} for text in pieces])
    answer: Any = ollama.Client(server.url).chat("m", payloads.MESSAGES, stream=stream)
    assert len(list(answer)) > 0
    assert said(watched) == (None, _ASKED, _PARIS)
    watched.exporter.clear()
    reply(*[{"model": "m", "response": text} for text in pieces])
    answer = ollama.Client(server.url).generate(
        "m", _ASKED[0]["parts"][0]["content"], system="Be brief.", stream=stream
    )
    assert len(list(answer)) > 0
    assert said(watched) == ([{"type": "text", "content": "Be brief."}], _ASKED, _PARIS)


def test_content_is_cut_by_the_limit_of_the_sdk(server: ReplayServer, capturing: Instrument) -> None:
    """OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT, or the provider's own."""
    watched = capturing(provider=TracerProvider(span_limits=SpanLimits(max_attribute_length=20)))
    server.reply = json_reply(payloads.chat())
    client(server).chat.completions.create(**_ASK)
    attributes = watched.spans[0].attributes or {}
    assert [len(str(attributes[key])) for key in _CONTENT[1:]] == [20, 20]


@pytest.mark.parametrize("mode", ["EVENT_ONLY", "SPAN_AND_EVENT"])
def test_content_is_an_event_of_its_span_when_asked_for(mode: str, server: ReplayServer, capturing: Instrument) -> None:
    """Structured there; on the span only if both are wanted."""
    logs, exporter = LoggerProvider(shutdown_on_exit=False), _LogExporter()
    logs.add_log_record_processor(export.SimpleLogRecordProcessor(exporter))
    watched = capturing(mode, logger_provider=logs)
    server.reply = json_reply(payloads.chat())
    client(server).chat.completions.create(**_ASK)
    (event,) = [each.log_record for each in exporter.get_finished_logs()]
    (span,) = watched.spans
    assert span.context is not None
    assert (event.event_name, event.span_id) == ("gen_ai.client.inference.operation.details", span.context.span_id)
    attributes: Any = event.attributes
    assert attributes["gen_ai.operation.name"] == "chat"
    assert json.loads(json.dumps(attributes["gen_ai.input.messages"], default=list)) == json.loads(json.dumps(_ASKED))
    assert said(watched) == ((None, _ASKED, _PARIS) if mode == "SPAN_AND_EVENT" else (None, None, None))


@pytest.mark.parametrize(
    "messages", [None, "x", [None], [{"role": 3, "content": {"a": 1}}], [{"content": [3, {"type": 4}]}]]
)
def test_odd_request_goes_through_when_its_content_is_captured(
    messages: Any, server: ReplayServer, capturing: Instrument
) -> None:
    """The span is there, whatever could be read."""
    watched = capturing()
    server.reply = json_reply(payloads.chat(choices=[None, {"message": 3}, {"message": {"tool_calls": [None]}}]))
    client(server).post("/chat/completions", body={"model": "m", "messages": messages}, cast_to=object)
    assert len(watched.spans) == 1
    assert (watched.spans[0].attributes or {})["gen_ai.usage.output_tokens"] == 8


def test_event_holds_only_what_otlp_carries_when_a_model_calls_a_tool_oddly(
    server: ReplayServer, capturing: Instrument
) -> None:
    """An integer of more than 64 bits, and half of a surrogate pair: the whole attribute would be lost."""
    logs, exporter = LoggerProvider(shutdown_on_exit=False), _LogExporter()
    logs.add_log_record_processor(export.SimpleLogRecordProcessor(exporter))
    capturing("EVENT_ONLY", logger_provider=logs)
    arguments = '{"id": 12345678901234567890, "small": 3, "half": "\\ud83d"}'
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    server.reply = json_reply(payloads.chat(choices=[{"index": 0, "finish_reason": "tool_calls", "message": message}]))
    client(server).chat.completions.create(**_ASK)
    encoded = encode_logs(exporter.get_finished_logs())
    (record,) = encoded.resource_logs[0].scope_logs[0].log_records
    (messages,) = [str(each.value) for each in record.attributes if each.key == "gen_ai.output.messages"]
    assert '"12345678901234567890"' in messages
    assert "int_value: 3" in messages

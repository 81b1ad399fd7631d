"""Whatever a server answers, the app gets exactly what it would get without us."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from otel_llm_instrumentation.openai import OpenAIInstrumentor
from tests.instrumentation import payloads
from tests.instrumentation.conftest import Watched
from tests.instrumentation.replay import ReplayServer, Reply, json_reply, sse_reply

_CHOICE = payloads.CHAT["choices"][0]
_ODD: dict[str, dict[str, Any]] = {
    "no id": {"id": ...},
    "id is a number": {"id": 7},
    "no model": {"model": ...},
    "model is null": {"model": None},
    "model is a list": {"model": ["m"]},
    "no usage": {"usage": ...},
    "usage is a string": {"usage": "x"},
    "usage is a list": {"usage": [1]},
    "usage is empty": {"usage": {}},
    "tokens are strings": {"usage": {"prompt_tokens": "3", "completion_tokens": "4"}},
    "tokens are negative": {"usage": {"prompt_tokens": -3, "completion_tokens": -4}},
    "tokens are floats": {"usage": {"prompt_tokens": 3.5, "completion_tokens": 1e300}},
    "tokens are booleans": {"usage": {"prompt_tokens": True, "completion_tokens": False}},
    "token details are a string": {"usage": {"prompt_tokens": 3, "prompt_tokens_details": "x"}},
    "no choices": {"choices": ...},
    "choices are null": {"choices": None},
    "choices are a number": {"choices": 3},
    "choices are an object": {"choices": {"a": 1}},
    "a choice is null": {"choices": [None]},
    "a choice is a string": {"choices": ["x"]},
    "a choice has no index": {"choices": [{k: v for k, v in _CHOICE.items() if k != "index"}]},
    "an index is a list": {"choices": [{**_CHOICE, "index": [1]}]},
    "a finish reason is an object": {"choices": [{**_CHOICE, "finish_reason": {"type": "stop"}}]},
    "timings are a string": {"timings": "fast"},
    "timings are strings": {"timings": {"prompt_ms": "1", "predicted_ms": None, "prompt_n": "x"}},
    "timings are negative": {"timings": {"prompt_ms": -1, "predicted_ms": -2.5}},
    "timings are null": {"timings": None},
}
_ODD_BODIES = {
    "empty object": json_reply({}),
    "a list": json_reply([1, 2]),
    "a string": json_reply("hello"),
    "null": json_reply(None),
    "a number": json_reply(3),
    "no json": Reply([b"{not json"]),
    "html": Reply([b"<html></html>"], content_type="text/html"),
    "nothing": Reply([]),
}


def _outcome(server: ReplayServer, stream: bool) -> tuple[str, str]:
    """What the app sees: a value or an error, by its representation."""
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="k", max_retries=0)
    try:
        answer: Any = client.chat.completions.create(model="m", messages=payloads.MESSAGES, stream=stream)
        return "value", repr(list(answer) if stream else answer)
    except Exception as error:  # noqa: BLE001 - whatever it is, it must be the same
        return type(error).__qualname__, str(error)


def _assert_same_outcome(server: ReplayServer, stream: bool) -> None:
    plain = _outcome(server, stream)
    watched = Watched()
    OpenAIInstrumentor().instrument(tracer_provider=watched.provider)
    try:
        assert _outcome(server, stream) == plain
    finally:
        OpenAIInstrumentor().uninstrument()
    assert len(watched.spans) == 1
    for key, value in (watched.spans[0].attributes or {}).items():
        assert "tokens" not in key or (type(value) is int and value >= 0)
        assert "seconds" not in key or (type(value) is float and value >= 0)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("odd", _ODD)
def test_app_sees_the_same_when_a_field_is_odd(odd: str, stream: bool, server: ReplayServer) -> None:
    """Fields that are missing, null or of another type."""
    if stream:
        server.reply = sse_reply([payloads.chunk(), payloads.chunk(**_ODD[odd]), payloads.chunk(None, "stop")])
    else:
        server.reply = json_reply(payloads.chat(**_ODD[odd]))
    _assert_same_outcome(server, stream)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("odd", _ODD_BODIES)
def test_app_sees_the_same_when_a_body_is_odd(odd: str, stream: bool, server: ReplayServer) -> None:
    """Bodies that are no completion at all."""
    server.reply = _ODD_BODIES[odd]
    _assert_same_outcome(server, stream)


@pytest.mark.parametrize("odd", [None, [1], "text", 3, {"error": None}, {"choices": None}])
def test_app_sees_the_same_when_a_chunk_is_odd(odd: object, server: ReplayServer) -> None:
    """Chunks that are no chunk at all."""
    server.reply = sse_reply([payloads.chunk(), odd, payloads.chunk(None, "stop")])
    _assert_same_outcome(server, stream=True)

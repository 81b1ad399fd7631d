"""The Responses API: its helper, its parsing, and answers that are still being made."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from opentelemetry.trace import StatusCode

from tests.instrumentation import payloads
from tests.instrumentation.conftest import Watched
from tests.instrumentation.replay import ReplayServer, json_reply, sse_reply

pytestmark = pytest.mark.skipif(
    not hasattr(openai.OpenAI, "responses") and not hasattr(openai.resources, "Responses"),
    reason=f"openai {openai.__version__} has no responses",
)

_ASK: dict[str, Any] = {"model": "m", "input": "hi"}
_QUEUED = {**payloads.RESPONSE, "status": "queued", "usage": None, "background": True}
_EVENTS = [
    {"type": "response.created", "sequence_number": 0, "response": {**payloads.RESPONSE, "usage": None}},
    {"type": "response.in_progress", "sequence_number": 1, "response": {**payloads.RESPONSE, "usage": None}},
    {"type": "response.completed", "sequence_number": 2, "response": payloads.RESPONSE},
]


def _client(server: ReplayServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="k", max_retries=0)


def test_helper_reports_its_tokens_when_it_is_drained(server: ReplayServer, watched: Watched) -> None:
    """The last event carries the response with its usage."""
    server.reply = sse_reply(_EVENTS, done=False)
    with _client(server).responses.stream(**_ASK) as stream:
        assert [event.type for event in stream][-1] == "response.completed"
    watched.only_span()
    assert (watched.ended[0].input_tokens, watched.ended[0].output_tokens) == (38, 8)


def test_helper_ends_its_call_at_the_exit_when_it_is_left_early(server: ReplayServer, watched: Watched) -> None:
    """Without tokens, which nobody has read."""
    server.reply = sse_reply(_EVENTS[:2], done=False, hangs=True)
    with _client(server).responses.stream(**_ASK) as stream:
        next(iter(stream))
    assert watched.only_span().status.is_unset
    assert watched.ended[0].output_tokens is None


async def test_helper_ends_its_call_at_the_exit_when_it_is_left_early_asynchronously(
    server: ReplayServer, watched: Watched
) -> None:
    """The same, awaited."""
    server.reply = sse_reply(_EVENTS[:2], done=False, hangs=True)
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="k", max_retries=0) as client:
        async with client.responses.stream(**_ASK) as stream:
            await stream.__aiter__().__anext__()
        assert watched.only_span().status.is_unset


def test_parsed_response_reports_its_tokens_when_it_is_parsed(server: ReplayServer, watched: Watched) -> None:
    """`responses.parse` is a call like any other."""
    server.reply = json_reply(payloads.RESPONSE)
    assert _client(server).responses.parse(**_ASK).id == "resp_1"
    watched.only_span()
    assert watched.ended[0].output_tokens == 8


def test_no_tokens_are_made_up_when_a_response_is_made_in_the_background(
    server: ReplayServer, watched: Watched
) -> None:
    """The call is the request that starts it; what is looked up later makes no call and no tokens."""
    client = _client(server)
    server.reply = json_reply(_QUEUED)
    started = client.responses.create(**_ASK, background=True)
    assert started.status == "queued"
    server.get_reply = json_reply(payloads.RESPONSE)
    for _ in range(3):
        assert client.responses.retrieve(started.id).usage is not None
    span = watched.only_span()
    assert not [key for key in span.attributes or {} if "usage" in key]
    assert (watched.ended[0].input_tokens, watched.ended[0].output_tokens) == (None, None)


def test_stream_taken_up_again_makes_no_call_when_a_response_is_retrieved(
    server: ReplayServer, watched: Watched
) -> None:
    """Its work belongs to the call that started it."""
    if not hasattr(openai.resources.responses.Responses, "stream"):
        pytest.skip(f"openai {openai.__version__} cannot retrieve a stream")
    server.get_reply = sse_reply(_EVENTS, done=False)
    assert len(list(_client(server).responses.retrieve("resp_1", stream=True))) == 3
    assert not watched.started


@pytest.mark.parametrize("ending", ["whole", "raw", "response.failed", "error"])
def test_call_has_failed_when_the_response_says_so(ending: str, server: ReplayServer, watched: Watched) -> None:
    """Its HTTP status is 200, and the client raises nothing."""
    failed = {**payloads.RESPONSE, "status": "failed", "error": {"code": "server_error", "message": "boom"}}
    if ending in ("whole", "raw"):
        server.reply = json_reply(failed)
        responses = _client(server).responses
        (responses.with_raw_response if ending == "raw" else responses).create(**_ASK)
    else:
        last = {"response": failed} if ending == "response.failed" else {"code": "server_error", "message": "boom"}
        server.reply = sse_reply([*_EVENTS[:2], {"type": ending, "sequence_number": 2, **last}], done=False)
        assert [event.type for event in _client(server).responses.create(**_ASK, stream=True)][-1] == ending
    span = watched.only_span()
    assert (span.attributes or {})["error.type"] == watched.ended[0].error_type == "_OTHER"
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, None)

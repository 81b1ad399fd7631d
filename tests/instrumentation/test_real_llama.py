"""The wrappers against the real llama.cpp server: its usage, its timings, its streams, its errors."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from tests.conftest import LlamaServerFactory
from tests.instrumentation.conftest import Watched

_ASK: dict[str, Any] = {
    "model": "smollm2",
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "temperature": 0,
    "max_tokens": 12,
    "extra_body": {"cache_prompt": False, "ignore_eos": True},
}


@pytest.fixture
def base_url(llama_server: LlamaServerFactory) -> str:
    """Of the server that chats and embeds."""
    return llama_server(slots=1, embeddings=True).base_url


def _assert_work_is_reported(watched: Watched, tokens: int = 12) -> None:
    [call] = watched.ended
    assert call.output_tokens == tokens
    assert call.input_tokens is not None
    assert call.input_tokens > 20
    assert call.timings is not None
    assert call.timings.prefill_seconds is not None
    assert call.timings.decode_seconds is not None
    assert call.ended_ns is not None
    worked_seconds = call.timings.prefill_seconds + call.timings.decode_seconds
    assert 0 < worked_seconds <= (call.ended_ns - call.started_ns) / 1e9
    attributes = watched.only_span().attributes or {}
    assert attributes["llm.server.decode_seconds"] == call.timings.decode_seconds


def test_work_is_reported_when_a_chat_completes(base_url: str, watched: Watched) -> None:
    """Tokens from the usage, the phases from the server's timings."""
    openai.OpenAI(base_url=base_url, api_key="k").chat.completions.create(**_ASK)
    _assert_work_is_reported(watched)


@pytest.mark.parametrize("include_usage", [False, True])
def test_work_is_reported_when_a_stream_is_read(include_usage: bool, base_url: str, watched: Watched) -> None:
    """With and without usage in the stream."""
    options: Any = {"stream_options": {"include_usage": True}} if include_usage else {}
    list(openai.OpenAI(base_url=base_url, api_key="k").chat.completions.create(**_ASK, **options, stream=True))
    _assert_work_is_reported(watched)
    assert len(watched.first_chunks) == 1


async def test_work_is_reported_when_a_stream_is_awaited(base_url: str, watched: Watched) -> None:
    """The same from the asynchronous client."""
    async with openai.AsyncOpenAI(base_url=base_url, api_key="k") as client:
        async for _ in await client.chat.completions.create(**_ASK, stream=True):
            pass
    _assert_work_is_reported(watched)


def test_work_is_reported_when_the_response_is_raw(base_url: str, watched: Watched) -> None:
    """Read from the body, without parsing it in the app's stead."""
    raw = openai.OpenAI(base_url=base_url, api_key="k").chat.completions.with_raw_response.create(**_ASK)
    _assert_work_is_reported(watched)
    assert raw.parse().usage.completion_tokens == 12


def test_per_token_timings_count_once_when_every_chunk_carries_them(base_url: str, watched: Watched) -> None:
    """The last of llama.cpp's running totals holds."""
    ask = {**_ASK, "extra_body": {**_ASK["extra_body"], "timings_per_token": True}}
    list(openai.OpenAI(base_url=base_url, api_key="k").chat.completions.create(**ask, stream=True))
    _assert_work_is_reported(watched)


def test_call_ends_at_once_when_a_stream_is_left(base_url: str, watched: Watched) -> None:
    """No tokens are known then, and none are made up."""
    with openai.OpenAI(base_url=base_url, api_key="k").chat.completions.create(**_ASK, stream=True) as stream:
        next(stream)
    assert watched.only_span().status.is_unset
    assert watched.ended[0].output_tokens is None


def test_embeddings_report_their_input_when_asked_for(base_url: str, watched: Watched) -> None:
    """Embeddings have no output tokens and no timings."""
    openai.OpenAI(base_url=base_url, api_key="k").embeddings.create(model="smollm2", input="The sea.")
    [call] = watched.ended
    assert call.input_tokens
    assert (call.output_tokens, call.timings) == (None, None)


def test_span_names_the_error_when_the_prompt_is_too_long(base_url: str, watched: Watched) -> None:
    """A real refusal."""
    ask = {**_ASK, "messages": [{"role": "user", "content": "sea " * 20_000}]}
    with pytest.raises(openai.BadRequestError):
        openai.OpenAI(base_url=base_url, api_key="k").chat.completions.create(**ask)
    assert watched.ended[0].error_type == "BadRequestError"

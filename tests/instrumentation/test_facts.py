"""Facts are read from any payload without failing, and none are made up."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_llm_instrumentation.address import server_of
from otel_llm_instrumentation.facts import NS_PER_SECOND, Facts, as_seconds, request_attributes
from otel_llm_instrumentation.http.routes import endpoint_of
from otel_llm_instrumentation.ollama.routes import read_answer
from otel_llm_instrumentation.openai.routes import ROUTES, read_completion, read_response, route_of
from tests.instrumentation import payloads

_KEYS = st.sampled_from(
    [
        *["id", "model", "usage", "timings", "choices", "response", "output", "finish_reason", "index", "done_reason"],
        *["prompt_tokens", "completion_tokens", "prompt_tokens_details", "cached_tokens", "input_tokens"],
        *["prompt_ms", "predicted_ms", "prompt_n", "predicted_n", "cache_n", "eval_count", "eval_duration"],
        *["prompt_eval_count", "prompt_eval_duration", "load_duration", "created_at"],
    ]
)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=6),
    max_leaves=12,
)


@pytest.mark.parametrize("read", [read_completion, read_response, read_answer])
@given(answer=st.lists(_JSON, max_size=3))
def test_reading_never_fails_when_a_server_answers_anything(
    read: Callable[[Sequence[object]], Facts], answer: list[object]
) -> None:
    """Counts are whole and not negative, durations are not negative, and text is text."""
    facts = read(answer)
    for count in (facts.input_tokens, facts.output_tokens, facts.cached_input_tokens, facts.reasoning_output_tokens):
        assert count is None or (type(count) is int and 0 <= count < 2**63)
    for text in (facts.response_model, facts.response_id, *(facts.finish_reasons or ())):
        assert text is None or type(text) is str
    if facts.timings is not None:
        assert all(duration is None or 0 <= duration < math.inf for duration in facts.timings[:3])


def test_usage_wins_when_the_timings_count_as_well() -> None:
    """The usage is what the server bills; the timings fill in where it is missing."""
    both = payloads.chat(usage={"prompt_tokens": 39, "completion_tokens": 9})
    assert (read_completion([both]).input_tokens, read_completion([both]).output_tokens) == (39, 9)
    only_timings = payloads.chat(usage=...)
    assert (read_completion([only_timings]).input_tokens, read_completion([only_timings]).output_tokens) == (38, 8)


def test_cached_and_reasoning_tokens_are_read_when_the_usage_tells_them() -> None:
    """By phases a call pays for tokens that no cache held; vLLM and OpenAI say how many in the usage alone."""
    usage = {**payloads.USAGE, "completion_tokens_details": {"reasoning_tokens": 3}}
    answers = [read_completion([payloads.chat(usage=usage, timings=...)]), read_response([payloads.RESPONSE])]
    assert [(facts.cached_input_tokens, facts.reasoning_output_tokens) for facts in answers] == [(20, 3), (20, 3)]


def test_finish_reasons_are_in_order_of_choices_when_a_stream_has_several() -> None:
    """Each choice of a stream ends in a chunk of its own."""
    ends = [
        payloads.chunk(choices=[{"index": index, "finish_reason": reason, "delta": {}}])
        for index, reason in ((1, "length"), (0, "stop"))
    ]
    assert read_completion(ends).finish_reasons == ["stop", "length"]


_SCHEMA = {"type": "json_schema", "name": "answer", "schema": {}}


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/chat/completions", {"response_format": _SCHEMA, "reasoning_effort": "low"}, ("json", "low", None)),
        ("/chat/completions", {"response_format": {"type": "text"}}, ("text", None, None)),
        (
            "/responses",
            {"text": {"format": _SCHEMA}, "reasoning": {"effort": "high"}, "previous_response_id": "resp_0"},
            ("json", "high", "resp_0"),
        ),
        ("/responses", {"text": "x", "reasoning": None, "previous_response_id": openai.NOT_GIVEN}, (None, None, None)),
        ("/api/chat", {"format": "json", "think": "low"}, ("json", "low", None)),
        ("/api/generate", {"format": {"type": "object"}, "think": True, "options": None}, ("json", None, None)),
        ("/api/generate", {"format": "", "options": {"seed": 1}}, (None, None, None)),
    ],
)
def test_request_says_what_it_asks_for_when_the_apis_have_other_words_for_it(
    path: str, body: dict[str, Any], said: tuple[str | None, ...]
) -> None:
    """The form of the answer, how hard to think, and the answer that it goes on from."""
    endpoint = endpoint_of(path)
    assert endpoint is not None
    attributes = request_attributes(endpoint.parameters(body), endpoint.route.parameters)
    keys = ("gen_ai.output.type", "gen_ai.request.reasoning.level", "gen_ai.request.previous_response.id")
    assert tuple(attributes.get(key) for key in keys) == said


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("/chat/completions", "/chat/completions"),
        ("/v1/chat/completions?api-version=1", "/chat/completions"),
        ("https://host/openai/deployments/x/chat/completions", "/chat/completions"),
        ("/deployments/x/completions/", "/completions"),
        ("/responses", "/responses"),
        ("/responses/resp_1/cancel", None),
        ("/models", None),
        ("", None),
    ],
)
def test_route_is_found_when_the_path_is_longer(url: str, path: str | None) -> None:
    """Gateways and Azure put more in front."""
    assert route_of(url) is (ROUTES[path] if path else None)


@pytest.mark.parametrize(
    ("url", "base_url", "server"),
    [
        ("/chat", "http://127.0.0.1:8080/v1", ("127.0.0.1", 8080)),
        ("/chat", "https://api.openai.com/v1/", ("api.openai.com", 443)),
        ("http://user:secret@other:81/chat", "https://api.openai.com", ("other", 81)),
        ("/chat", "http://[::1]/v1", ("::1", 80)),
        ("/chat", None, (None, None)),
        ("/chat", "unix:/run/llm.sock", (None, None)),
        ("http+unix://%2Frun%2FLLM.sock/v1/chat", None, ("/run/LLM.sock", None)),
        ("http+docker://localhost/v1/chat", None, (None, None)),
    ],
)
def test_server_is_known_when_the_address_names_it(url: str, base_url: object, server: tuple[object, object]) -> None:
    """Default ports are filled in, credentials left out."""
    assert server_of(url, base_url) == server


@given(st.integers(0, 10**15), st.sampled_from([1.0, 1e3, 1e9]))
def test_length_of_time_is_to_the_nanosecond_whatever_the_noise_of_floats(length_ns: int, per_second: float) -> None:
    """Milliseconds as llama.cpp gives them come from floats, and end in 00000000001 or 99999999999."""
    given_length = length_ns / NS_PER_SECOND * per_second
    for noisy in (given_length, math.nextafter(given_length, 0.0), math.nextafter(given_length, math.inf)):
        assert as_seconds(noisy, per_second) == length_ns / NS_PER_SECOND


@pytest.mark.parametrize("nonsense", [-1, -0.5, math.nan, math.inf, 2**63, "1", True, None])
def test_length_of_time_is_not_known_when_it_is_none(nonsense: object) -> None:
    """Nothing is made of what no clock could have counted."""
    assert as_seconds(nonsense, 1e3) is None

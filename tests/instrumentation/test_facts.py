"""Facts are read from any payload without failing, and none are made up."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_llm_instrumentation import ServerTimings
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


_AT_WORK = {**payloads.RESPONSE, "model": "alias", "usage": None}


@pytest.mark.parametrize(
    "answer",
    [
        [{**payloads.RESPONSE, "timings": payloads.TIMINGS}],
        [
            {"type": "response.created", "response": _AT_WORK},
            {"type": "response.completed", "response": payloads.RESPONSE, "timings": payloads.TIMINGS},
        ],
    ],
    ids=["whole", "streamed"],
)
def test_response_is_read_wherever_llama_cpp_puts_its_timings(answer: list[object]) -> None:
    """Into the response, or beside it in the last event, which has the last word in a stream."""
    facts = read_response(answer)
    assert (facts.provider, facts.response_model, facts.response_id) == ("llama.cpp", "smollm2-135m", "resp_1")
    assert facts.timings == ServerTimings(0.0755, 0.09225)
    assert (facts.input_tokens, facts.output_tokens, facts.cached_input_tokens) == (38, 8, 20)


@pytest.mark.parametrize("choices", [3, {"index": 0}, [None, {"finish_reason": "stop"}]])
def test_tokens_are_read_when_the_choices_are_odd(choices: object) -> None:
    """One odd field costs no other one."""
    facts = read_completion([payloads.chat(choices=choices)])
    assert (facts.output_tokens, facts.finish_reasons) == (8, ["stop"] if isinstance(choices, list) else None)


@pytest.mark.parametrize(
    ("timings", "read", "tokens"),
    [
        ({"prompt_ms": 250.0, "prompt_n": 3}, ServerTimings(0.25, None), (3, None, None)),
        ({"predicted_ms": 500.0, "predicted_n": 2}, ServerTimings(None, 0.5), (None, 2, None)),
        ({"prompt_n": 3, "cache_n": 4}, None, (7, None, 4)),
    ],
)
def test_timings_are_read_as_far_as_they_go_when_a_server_tells_a_part_of_them(
    timings: dict[str, float], read: ServerTimings | None, tokens: tuple[int | None, ...]
) -> None:
    """A prompt may be all that there is to work on, or have been in the cache as a whole."""
    facts = read_completion([payloads.chat(usage=..., timings=timings)])
    assert facts.timings == read
    assert (facts.input_tokens, facts.output_tokens, facts.cached_input_tokens) == tokens


@pytest.mark.parametrize(
    ("said", "read"),
    [
        ({"prompt_eval_duration": 250_000_000}, ServerTimings(0.25, None, None)),
        ({"eval_duration": 250_000_000}, ServerTimings(None, 0.25, None)),
        ({"load_duration": 250_000_000}, ServerTimings(None, None, 0.25)),
        ({"total_duration": 250_000_000}, None),
    ],
)
def test_durations_are_read_as_far_as_they_go_when_ollama_tells_a_part_of_them(
    said: dict[str, int], read: ServerTimings | None
) -> None:
    """Whether it had to load the model or to read a prompt differs by call and operation."""
    assert read_answer([{"model": "m", **said}]).timings == read


@pytest.mark.parametrize("ended", [((1, "length"), (0, "stop")), ((0, "stop"), (1, "length"))])
def test_finish_reasons_are_in_order_of_choices_when_a_stream_has_several(
    ended: tuple[tuple[int, str], ...],
) -> None:
    """Each choice of a stream ends in a chunk of its own."""
    ends = [payloads.chunk(choices=[{"index": index, "finish_reason": reason, "delta": {}}]) for index, reason in ended]
    assert read_completion(ends).finish_reasons == ["stop", "length"]


def test_reason_to_stop_is_llama_cpps_own_when_its_own_route_says_it() -> None:
    """In the last chunk of a stream; the ones before it have none yet."""
    endpoint = endpoint_of("/completion")
    assert endpoint is not None
    read = endpoint.route.read
    chunks = [{"content": "Paris", "stop": False}, {"content": ".", "stop": True, "stop_type": "limit", "model": "m"}]
    assert (read(chunks).finish_reasons, read(chunks).response_model) == (["limit"], "m")
    assert read(chunks[:1]).finish_reasons is None
    assert read([]).finish_reasons is None


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
        ("/api/generate", {"format": {}, "think": ""}, (None, None, None)),
        ("/api/generate", {"format": "yaml"}, (None, None, None)),
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


_LARGEST = 2**63 - 1  # that OTLP can carry


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            {"stop": ["a", "b"], "seed": 7, "temperature": 1},
            {"stop_sequences": ["a", "b"], "seed": 7, "temperature": 1.0},
        ),
        ({"stop": ("a", 1), "seed": -7, "max_tokens": 0}, {"stop_sequences": ["a"], "seed": -7, "max_tokens": 0}),
        ({"seed": -_LARGEST, "max_tokens": _LARGEST}, {"seed": -_LARGEST, "max_tokens": _LARGEST}),
        ({"seed": _LARGEST, "n": 2}, {"seed": _LARGEST, "choice.count": 2}),
        ({"seed": 2**63, "max_tokens": 2**63, "n": 1}, {}),
        (
            {"seed": True, "max_tokens": True, "n": True, "temperature": True, "stop": True, "reasoning_effort": True},
            {},
        ),
        ({"seed": -(2**64), "max_tokens": -1, "n": 0, "temperature": "0", "stop": [1], "reasoning_effort": ""}, {}),
    ],
)
def test_parameter_is_an_attribute_when_it_is_what_the_api_asks_for(body: dict[str, Any], said: dict[str, Any]) -> None:
    """The server refuses what is not; half of it would be no truth."""
    attributes = request_attributes(body, ROUTES["/chat/completions"].parameters)
    assert attributes == {f"gen_ai.request.{name}": value for name, value in said.items()}


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
        ("http+unix:///v1/chat", None, (None, None)),
        ("http+docker://localhost/v1/chat", None, (None, None)),
    ],
)
def test_server_is_known_when_the_address_names_it(url: str, base_url: object, server: tuple[object, object]) -> None:
    """Default ports are filled in, credentials left out."""
    assert server_of(url, base_url) == server


class _Around:
    """A transport around another one, or around itself."""

    def __init__(self, inner: object, method: str) -> None:
        self.inner = self if inner is None else inner
        setattr(self, method, lambda _request: None)


class _Client:
    """Of httpx, as far as its transports go."""

    def __init__(self, transport: object) -> None:
        self._transport_for_url = lambda _url: transport


@pytest.mark.parametrize("method", ["handle_request", "handle_async_request"])
@pytest.mark.parametrize(
    ("inner", "server"),
    [
        (SimpleNamespace(_pool=SimpleNamespace(_uds="/run/llm.sock"), handle_request=None), ("/run/llm.sock", None)),
        (SimpleNamespace(_pool=SimpleNamespace(_uds=None), handle_request=None), ("host", 81)),
        (SimpleNamespace(_pool=SimpleNamespace(_uds=""), handle_request=None), ("host", 81)),
        (None, ("host", 81)),
    ],
    ids=["a socket", "TCP", "no path", "itself"],
)
def test_server_is_that_of_the_innermost_transport_when_others_are_around_it(
    inner: object, server: tuple[object, object], method: str
) -> None:
    """For retries and the like, of either kind."""
    client = _Client(_Around(_Around(inner, method), method))
    assert server_of("/chat", "http://host:81/v1", client) == server
    assert server_of("/chat", "http://host:81/v1", object()) == ("host", 81)


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

"""The operations of the OpenAI API that spend tokens, and how their requests and answers read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from otel_llm_instrumentation import semconv
from otel_llm_instrumentation.calls import ServerTimings
from otel_llm_instrumentation.facts import (
    Facts,
    Parameter,
    Route,
    as_count,
    as_integer,
    as_number,
    as_seconds,
    as_text,
    as_texts,
    fields,
)
from otel_llm_instrumentation.openai import content
from otel_llm_instrumentation.providers import provider_in_answer

_MS_PER_SECOND = 1_000.0
# Where input and output tokens stand, and the details of each.
_COMPLETION_USAGE = ("prompt_tokens", "completion_tokens", "prompt_tokens_details", "completion_tokens_details")
_RESPONSE_USAGE = ("input_tokens", "output_tokens", "input_tokens_details", "output_tokens_details")


def read_completion(payloads: Sequence[object]) -> Facts:
    """Completions and embeddings of OpenAI and of compatible servers.

    Where servers put a cumulative usage into every chunk, the last one holds. llama.cpp adds its ``timings``.
    """
    facts = Facts()
    usage = timings = None
    reasons: dict[int, str] = {}
    for payload in reversed(payloads):
        answer = fields(payload)
        said = answer.get
        facts.provider = facts.provider or provider_in_answer(answer)
        usage = usage or said("usage")
        timings = timings or said("timings")
        facts.response_model = facts.response_model or as_text(said("model"))
        facts.response_id = facts.response_id or as_text(said("id"))
        if choices := said("choices"):
            _add_finish_reasons(reasons, choices)
    if reasons:
        facts.finish_reasons = [reasons[index] for index in sorted(reasons)]
    if timings is not None:
        _add_timings(facts, fields(timings))
    if usage is not None:
        _add_usage(facts, fields(usage), _COMPLETION_USAGE)
    return facts


def read_response(payloads: Sequence[object]) -> Facts:
    """The Responses API: a response, or the events of a stream, of which the last carries the whole response.

    llama.cpp puts its ``timings`` beside the response where it streams, and into it where it does not.
    """
    facts = Facts()
    for payload in reversed(payloads):
        event = fields(payload)
        answer = fields(event.get("response", payload))
        if event.get("type") == "error" or answer.get("status") == "failed":
            facts.error_type = semconv.OTHER_ERROR
        if "output" in answer:
            facts.provider = provider_in_answer(event) or provider_in_answer(answer)
            if (timings := event.get("timings")) is not None:
                _add_timings(facts, fields(timings))
            facts.response_model = as_text(answer.get("model"))
            facts.response_id = as_text(answer.get("id"))
            _add_usage(facts, fields(answer.get("usage")), _RESPONSE_USAGE)
            break
    return facts


def _add_finish_reasons(reasons: dict[int, str], choices: object) -> None:
    if not isinstance(choices, list):
        return
    for choice in choices:
        chosen = fields(choice)
        reason = chosen.get("finish_reason")
        if isinstance(reason, str):
            reasons.setdefault(as_count(chosen.get("index")) or 0, reason)


def _add_usage(facts: Facts, usage: Mapping[str, Any], keys: tuple[str, str, str, str]) -> None:
    input_key, output_key, input_details_key, output_details_key = keys
    input_tokens, output_tokens = as_count(usage.get(input_key)), as_count(usage.get(output_key))
    if input_tokens is not None:
        facts.input_tokens = input_tokens
    if output_tokens is not None:
        facts.output_tokens = output_tokens
    if (details := usage.get(input_details_key)) is not None:
        facts.cached_input_tokens = as_count(fields(details).get("cached_tokens"))
    if (details := usage.get(output_details_key)) is not None:
        facts.reasoning_output_tokens = as_count(fields(details).get("reasoning_tokens"))


def _add_timings(facts: Facts, timings: Mapping[str, Any]) -> None:
    """llama.cpp's own account of its work. ``prompt_n`` leaves out the tokens that its cache held."""
    prefill_seconds = as_seconds(timings.get("prompt_ms"), _MS_PER_SECOND)
    decode_seconds = as_seconds(timings.get("predicted_ms"), _MS_PER_SECOND)
    if prefill_seconds is not None or decode_seconds is not None:
        facts.timings = ServerTimings(prefill_seconds, decode_seconds)
    facts.cached_input_tokens = as_count(timings.get("cache_n"))
    facts.output_tokens = as_count(timings.get("predicted_n"))
    if (evaluated := as_count(timings.get("prompt_n"))) is not None:
        facts.input_tokens = evaluated + (facts.cached_input_tokens or 0)


def _output_type(value: object) -> str | None:
    kind = fields(value).get("type")
    if isinstance(kind, str):
        return "json" if kind.startswith("json") else kind
    return None


def _text_output_type(value: object) -> str | None:
    """Of the Responses API, which has the format among what else it says of the text."""
    return _output_type(fields(value).get("format"))


def _effort(value: object) -> str | None:
    return as_text(fields(value).get("effort"))


def _conversation(value: object) -> str | None:
    """The Responses API's own: an id, or an object that holds it."""
    return as_text(value) or as_text(fields(value).get("id"))


def _several(value: object) -> int | None:
    count = as_count(value)
    return count if count is not None and count > 1 else None


_SAMPLING: Final[Mapping[str, Parameter]] = {
    "temperature": Parameter(semconv.REQUEST_TEMPERATURE, as_number),
    "top_p": Parameter(semconv.REQUEST_TOP_P, as_number),
}
_COMPLETION: Final[Mapping[str, Parameter]] = {
    **_SAMPLING,
    "max_tokens": Parameter(semconv.REQUEST_MAX_TOKENS, as_count),
    "max_completion_tokens": Parameter(semconv.REQUEST_MAX_TOKENS, as_count),
    "frequency_penalty": Parameter(semconv.REQUEST_FREQUENCY_PENALTY, as_number),
    "presence_penalty": Parameter(semconv.REQUEST_PRESENCE_PENALTY, as_number),
    "seed": Parameter(semconv.REQUEST_SEED, as_integer),
    "stop": Parameter(semconv.REQUEST_STOP_SEQUENCES, as_texts),
    "n": Parameter(semconv.REQUEST_CHOICE_COUNT, _several),
    "response_format": Parameter(semconv.OUTPUT_TYPE, _output_type),
    "reasoning_effort": Parameter(semconv.REQUEST_REASONING_LEVEL, as_text),
}
LLAMA_COMPLETION: Final[Mapping[str, Parameter]] = {
    **_COMPLETION,
    "n_predict": Parameter(semconv.REQUEST_MAX_TOKENS, as_count),
    "top_k": Parameter(semconv.REQUEST_TOP_K, as_count),
}
"""Of llama.cpp's own ``/completion`` and ``/infill``, whose answers read like OpenAI's."""
_RESPONSES: Final[Mapping[str, Parameter]] = {
    **_SAMPLING,
    "max_output_tokens": Parameter(semconv.REQUEST_MAX_TOKENS, as_count),
    "text": Parameter(semconv.OUTPUT_TYPE, _text_output_type),
    "reasoning": Parameter(semconv.REQUEST_REASONING_LEVEL, _effort),
    "previous_response_id": Parameter(semconv.REQUEST_PREVIOUS_RESPONSE_ID, as_text),
    "conversation": Parameter(semconv.CONVERSATION_ID, _conversation),
}
_EMBEDDINGS: Final[Mapping[str, Parameter]] = {
    "dimensions": Parameter(semconv.EMBEDDINGS_DIMENSION_COUNT, as_count),
    "encoding_format": Parameter(semconv.REQUEST_ENCODING_FORMATS, as_texts),
}

# The longer path first: an address that ends in the one also ends in the other.
ROUTES: Final[Mapping[str, Route]] = {
    "/chat/completions": Route(semconv.CHAT, _COMPLETION, read_completion, content.CHAT),
    "/completions": Route(semconv.TEXT_COMPLETION, _COMPLETION, read_completion, content.TEXT),
    "/responses": Route(semconv.CHAT, _RESPONSES, read_response, content.RESPONSES),
    "/embeddings": Route(semconv.EMBEDDINGS, _EMBEDDINGS, read_completion),
}


def route_of(url: str) -> Route | None:
    """The operation behind a path or an address; ``None`` if it spends no tokens."""
    route = ROUTES.get(url)
    if route is not None:
        return route
    path = urlsplit(url).path.rstrip("/")
    return next((route for suffix, route in ROUTES.items() if path.endswith(suffix)), None)

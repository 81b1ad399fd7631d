"""The operations of the OpenAI API that spend tokens, and how their requests and answers read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
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
    member,
)

_MS_PER_SECOND = 1_000.0


class CompletionReader:
    """Reads completions and embeddings, whole or as chunks of a stream, of OpenAI and of compatible servers.

    Where servers put a cumulative usage into every chunk, the last one holds. llama.cpp adds its ``timings``.
    """

    __slots__ = ("_finish_reasons", "_first", "_timings", "_usage")

    def __init__(self) -> None:
        self._first: object = None
        self._usage: object = None
        self._timings: object = None
        self._finish_reasons: dict[object, str] | None = None

    def see(self, payload: object) -> None:
        fields, extra = _fields(payload)
        if self._first is None:
            self._first = payload
        usage = fields.get("usage")
        if usage is not None:
            self._usage = usage
        if extra:
            timings = extra.get("timings")
            if timings is not None:
                self._timings = timings
        choices = fields.get("choices")
        if choices:
            for choice in choices:  # type: ignore[attr-defined]  # what is no list raises, and is guarded
                reason = member(choice, "finish_reason")
                if reason is not None:
                    self._see_finish_reason(choice, reason)

    def facts(self) -> Facts:
        facts = Facts(
            response_model=as_text(member(self._first, "model")),
            response_id=as_text(member(self._first, "id")),
            finish_reasons=list(self._finish_reasons.values()) if self._finish_reasons else None,
        )
        if self._timings is not None:
            _add_timings(facts, self._timings)
        if self._usage is not None:
            _add_completion_usage(facts, self._usage)
        return facts

    def _see_finish_reason(self, choice: object, reason: object) -> None:
        if self._finish_reasons is None:
            self._finish_reasons = {}
        if isinstance(reason, str):
            self._finish_reasons[as_integer(member(choice, "index"))] = reason


class ResponsesReader:
    """Reads the Responses API: a response, or the events of a stream, of which some carry the response so far."""

    __slots__ = ("_response",)

    def __init__(self) -> None:
        self._response: object = None

    def see(self, payload: object) -> None:
        fields, _ = _fields(payload)
        if "response" in fields:
            self._response = fields["response"]
        elif "output" in fields:
            self._response = payload

    def facts(self) -> Facts:
        response = self._response
        facts = Facts(response_model=as_text(member(response, "model")), response_id=as_text(member(response, "id")))
        usage = member(response, "usage")
        facts.input_tokens = as_count(member(usage, "input_tokens"))
        facts.output_tokens = as_count(member(usage, "output_tokens"))
        facts.cached_input_tokens = as_count(member(member(usage, "input_tokens_details"), "cached_tokens"))
        facts.reasoning_output_tokens = as_count(member(member(usage, "output_tokens_details"), "reasoning_tokens"))
        return facts


def _fields(payload: object) -> tuple[dict[str, object], dict[str, object] | None]:
    """The declared fields of a payload, and where undeclared ones are. Raises if it has no fields."""
    if isinstance(payload, dict):
        return payload, payload
    fields = payload.__dict__
    # pydantic 2 keeps undeclared fields apart, pydantic 1 among the others.
    return fields, getattr(payload, "__pydantic_extra__", fields)


def _add_completion_usage(facts: Facts, usage: object) -> None:
    input_tokens = as_count(member(usage, "prompt_tokens"))
    output_tokens = as_count(member(usage, "completion_tokens"))
    if input_tokens is not None:
        facts.input_tokens = input_tokens
    if output_tokens is not None:
        facts.output_tokens = output_tokens
    if (details := member(usage, "prompt_tokens_details")) is not None:
        facts.cached_input_tokens = as_count(member(details, "cached_tokens"))
    if (details := member(usage, "completion_tokens_details")) is not None:
        facts.reasoning_output_tokens = as_count(member(details, "reasoning_tokens"))


def _add_timings(facts: Facts, timings: object) -> None:
    """llama.cpp's own account of its work. ``prompt_n`` leaves out the tokens that its cache held."""
    prefill_seconds = as_seconds(member(timings, "prompt_ms"), _MS_PER_SECOND)
    decode_seconds = as_seconds(member(timings, "predicted_ms"), _MS_PER_SECOND)
    if prefill_seconds is not None or decode_seconds is not None:
        facts.timings = ServerTimings(prefill_seconds, decode_seconds)
    evaluated, cached = as_count(member(timings, "prompt_n")), as_count(member(timings, "cache_n"))
    facts.cached_input_tokens = cached
    if evaluated is not None:
        facts.input_tokens = evaluated + (cached or 0)
    facts.output_tokens = as_count(member(timings, "predicted_n"))


def _output_type(value: object) -> str | None:
    kind = member(value, "type")
    if isinstance(kind, str):
        return "json" if kind.startswith("json") else kind
    return None


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
_RESPONSES: Final[Mapping[str, Parameter]] = {
    **_SAMPLING,
    "max_output_tokens": Parameter(semconv.REQUEST_MAX_TOKENS, as_count),
}
_EMBEDDINGS: Final[Mapping[str, Parameter]] = {
    "dimensions": Parameter(semconv.EMBEDDINGS_DIMENSION_COUNT, as_count),
    "encoding_format": Parameter(semconv.REQUEST_ENCODING_FORMATS, as_texts),
}

# The longer path first: an address that ends in the one also ends in the other.
ROUTES: Final[Mapping[str, Route]] = {
    "/chat/completions": Route(semconv.CHAT, _COMPLETION, CompletionReader),
    "/completions": Route(semconv.TEXT_COMPLETION, _COMPLETION, CompletionReader),
    "/responses": Route(semconv.CHAT, _RESPONSES, ResponsesReader),
    "/embeddings": Route(semconv.EMBEDDINGS, _EMBEDDINGS, CompletionReader),
}


def route_of(url: str) -> Route | None:
    """The operation behind a path or an address; ``None`` if it spends no tokens."""
    route = ROUTES.get(url)
    if route is not None:
        return route
    path = urlsplit(url).path.rstrip("/")
    return next((route for suffix, route in ROUTES.items() if path.endswith(suffix)), None)

"""The operations of the Ollama API that spend tokens, and how their requests and answers read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from otel_llm_instrumentation import semconv
from otel_llm_instrumentation.calls import ServerTimings
from otel_llm_instrumentation.facts import (
    NS_PER_SECOND,
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
from otel_llm_instrumentation.ollama import content

# Go writes as many digits of the second's fraction as it needs: https://pkg.go.dev/time#RFC3339Nano
_RFC3339 = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)")


def read_answer(payloads: Sequence[object]) -> Facts:
    """An answer of Ollama. A stream says all that counts in its last chunk."""
    last = fields(payloads[-1]) if payloads else {}
    reason = as_text(last.get("done_reason"))
    return Facts(
        response_model=as_text(last.get("model")),
        finish_reasons=[reason] if reason is not None else None,
        input_tokens=as_count(last.get("prompt_eval_count")),
        output_tokens=as_count(last.get("eval_count")),
        timings=_timings(last),
    )


def _timings(last: Mapping[str, Any]) -> ServerTimings | None:
    """Ollama's own account, in nanoseconds. ``total_duration`` holds the queue as well, so it says nothing of work."""
    prefill_seconds = as_seconds(last.get("prompt_eval_duration"), NS_PER_SECOND)
    decode_seconds = as_seconds(last.get("eval_duration"), NS_PER_SECOND)
    load_seconds = as_seconds(last.get("load_duration"), NS_PER_SECOND)
    if prefill_seconds is None and decode_seconds is None and load_seconds is None:
        return None
    return ServerTimings(prefill_seconds, decode_seconds, load_seconds, unix_ns(last.get("created_at")))


def unix_ns(timestamp: object) -> int | None:
    """Unix time in ns of an RFC 3339 timestamp with up to nine digits of fraction; ``None`` if it is none."""
    match = _RFC3339.fullmatch(timestamp) if isinstance(timestamp, str) else None
    if match is None:
        return None
    instant, fraction, zone = match.groups()
    try:
        seconds = int(datetime.fromisoformat(instant + zone.replace("Z", "+00:00")).timestamp())
    except ValueError:
        return None
    return seconds * NS_PER_SECOND + int((fraction or "").ljust(9, "0"))


def parameters(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a request asks for: its options, and what stands beside them."""
    options = body.get("options")
    return {**(options if isinstance(options, dict) else {}), **{name: body.get(name) for name in _BESIDE_OPTIONS}}


def _output_type(value: object) -> str | None:
    """``"json"``, or a schema of it."""
    return "json" if value == "json" or (value and isinstance(value, dict)) else None


_BESIDE_OPTIONS: Final = ("format", "think")
PARAMETERS: Final[Mapping[str, Parameter]] = {
    "temperature": Parameter(semconv.REQUEST_TEMPERATURE, as_number),
    "top_p": Parameter(semconv.REQUEST_TOP_P, as_number),
    "top_k": Parameter(semconv.REQUEST_TOP_K, as_count),
    "num_predict": Parameter(semconv.REQUEST_MAX_TOKENS, as_count),
    "frequency_penalty": Parameter(semconv.REQUEST_FREQUENCY_PENALTY, as_number),
    "presence_penalty": Parameter(semconv.REQUEST_PRESENCE_PENALTY, as_number),
    "seed": Parameter(semconv.REQUEST_SEED, as_integer),
    "stop": Parameter(semconv.REQUEST_STOP_SEQUENCES, as_texts),
    "format": Parameter(semconv.OUTPUT_TYPE, _output_type),
    "think": Parameter(semconv.REQUEST_REASONING_LEVEL, as_text),
}

ROUTES: Final[Mapping[str, Route]] = {
    "/api/chat": Route(semconv.CHAT, PARAMETERS, read_answer, content.CHAT),
    "/api/generate": Route(semconv.TEXT_COMPLETION, PARAMETERS, read_answer, content.TEXT),
    "/api/embed": Route(semconv.EMBEDDINGS, PARAMETERS, read_answer),
    "/api/embeddings": Route(semconv.EMBEDDINGS, PARAMETERS, read_answer),
}

"""What the span of another library says of its call: that it is one, who answered, its tokens and timings. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from opentelemetry.attributes import BoundedAttributes
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.util.types import AttributeValue

from otel_llm_energy import conventions
from otel_llm_energy.quantities import NS_PER_SECOND
from otel_llm_energy.servers.announced import URL_PORTS
from otel_llm_energy.tracing.claims import CallFacts, Tokens

Attributes = Mapping[str, AttributeValue]

# Attributes by which other libraries mark the span of one LLM call (never of a chain, an agent or a tool).
_CALL_MARKS: Final[Mapping[str, tuple[str, ...]]] = {
    "gen_ai.operation.name": ("chat", "text_completion", "generate_content", "embeddings"),
    "openinference.span.kind": ("LLM", "EMBEDDING"),
    "llm.request.type": ("chat", "completion", "embedding"),
}
# Current names first, then those of before, and those of OpenInference and OpenLLMetry.
_INPUT_TOKEN_KEYS: Final = (
    "gen_ai.usage.input_tokens",
    "gen_ai.usage.prompt_tokens",
    "llm.token_count.prompt",
    "llm.usage.prompt_tokens",
)
_OUTPUT_TOKEN_KEYS: Final = (
    "gen_ai.usage.output_tokens",
    "gen_ai.usage.completion_tokens",
    "llm.token_count.completion",
    "llm.usage.completion_tokens",
)
_PROVIDER_KEYS: Final = ("gen_ai.provider.name", "gen_ai.system", "llm.provider", "llm.system")
_OPERATION_KEYS: Final = ("gen_ai.operation.name", "llm.request.type", "openinference.span.kind")
_MODEL_KEYS: Final = ("gen_ai.request.model", "llm.model_name")
_MOST_SECONDS: Final = 1e12


@dataclass(frozen=True, slots=True)
class SpanTimings:
    """The server's own timings, as a span tells them; a `ServerReport`."""

    prefill_seconds: float | None
    decode_seconds: float | None
    load_seconds: float | None
    end_unix_ns: int | None


def raw_attributes(span: ReadableSpan) -> dict[str, AttributeValue]:
    """A new dict of the attributes; the public view of the SDK would cost a Python call for each of them."""
    attributes = span._attributes
    if isinstance(attributes, BoundedAttributes):
        copied = attributes.copy()
        return copied if type(copied) is dict else dict(copied)  # an ordered one in older SDKs
    return dict(attributes or {})


def is_call_of_another_library(span: ReadableSpan) -> bool:
    """Whether the span says of itself that it is one LLM call, and says nothing of energy yet.

    A span of no length is a note of a call that another span stands for (logfire's, at the end of a stream).
    """
    attributes = raw_attributes(span)
    if not marks_a_call(attributes) or conventions.QUALITY in attributes:
        return False
    return span.start_time != span.end_time


def marks_a_call(attributes: Attributes) -> bool:
    """Whether these are the attributes of one LLM call's span, by whichever library."""
    if _CALL_MARKS.keys().isdisjoint(attributes):
        return False
    return any(attributes.get(mark) in values for mark, values in _CALL_MARKS.items())


def tokens_of(attributes: Attributes) -> Tokens:
    """The token counts on a span of another library."""
    return Tokens(_count(attributes, _INPUT_TOKEN_KEYS), _count(attributes, _OUTPUT_TOKEN_KEYS))


def _count(attributes: Attributes, keys: Iterable[str]) -> int | None:
    for key in keys:
        value = attributes.get(key)
        if isinstance(value, int) and value >= 0:
            return int(value)
    return None


def server_of(attributes: Attributes) -> tuple[str | None, int | None]:
    """Who answers, by ``server.address`` or by the address that OpenLLMetry gives."""
    address, port = attributes.get("server.address"), attributes.get("server.port")
    if isinstance(address, str) and "://" not in address:
        return address or None, port if isinstance(port, int) else None
    url = address or attributes.get("gen_ai.openai.api_base")
    if not isinstance(url, str):
        return None, None
    try:
        parts = urlsplit(url)
        return parts.hostname, parts.port or URL_PORTS.get(parts.scheme)
    except ValueError:
        return None, None


def timings_of(attributes: Attributes) -> SpanTimings | None:
    """The server's own timings (``llm.server.*``); ``None`` if the span tells none."""
    prefill = _seconds(attributes, conventions.SERVER_PREFILL_SECONDS)
    decode = _seconds(attributes, conventions.SERVER_DECODE_SECONDS)
    load = _seconds(attributes, conventions.SERVER_LOAD_SECONDS)
    if prefill is None and decode is None and load is None:
        return None
    end = _seconds(attributes, conventions.SERVER_END_TIME)
    return SpanTimings(prefill, decode, load, None if end is None else int(end * NS_PER_SECOND))


def _seconds(attributes: Attributes, key: str) -> float | None:
    value = attributes.get(key)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < _MOST_SECONDS:
        return float(value)
    return None


def provider_of(attributes: Attributes) -> str:
    """Whose API was called; empty if the span does not say."""
    return _first(attributes, _PROVIDER_KEYS)


def operation_of(attributes: Attributes) -> str:
    """What was asked for, in the library's own words; empty if the span does not say."""
    return _first(attributes, _OPERATION_KEYS)


def _first(attributes: Attributes, keys: tuple[str, ...]) -> str:
    return next((value for key in keys if isinstance(value := attributes.get(key), str)), "")


def is_embedding(operation: str | None) -> bool:
    """Whether an operation makes embeddings, in the words of any library."""
    return (operation or "").lower().startswith("embedding")


def facts_of(attributes: Attributes) -> CallFacts:
    """What the metrics of the call say."""
    host, port = server_of(attributes)
    return CallFacts(
        operation=operation_of(attributes).lower() or None,
        provider=provider_of(attributes) or None,
        request_model=_first(attributes, _MODEL_KEYS) or None,
        response_model=_first(attributes, ("gen_ai.response.model",)) or None,
        address=host,
        port=port,
        error_type=_first(attributes, ("error.type",)) or None,
    )

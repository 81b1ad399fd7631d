"""Which requests are calls of an LLM: a known route, and a body of its shape."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from otel_llm_instrumentation import semconv
from otel_llm_instrumentation.facts import Facts, Route, as_text, fields
from otel_llm_instrumentation.ollama import routes as ollama
from otel_llm_instrumentation.openai import routes as openai
from otel_llm_instrumentation.providers import LLAMA_CPP, OLLAMA, OPENAI, provider_of_host

_LONGEST_INDENT: Final = 64  # of a body that an app writes itself


def _read_llama(payloads: Sequence[object]) -> Facts:
    """An answer of llama.cpp's own routes, which names the reason to stop in its own words."""
    facts = openai.read_completion(payloads)
    reason = as_text(fields(payloads[-1]).get("stop_type")) if payloads else None
    facts.finish_reasons = [reason] if reason is not None else None
    return facts


_LLAMA: Final = Route(semconv.TEXT_COMPLETION, openai.LLAMA_COMPLETION, _read_llama)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A route as it is spoken to without a client library.

    Attributes:
        suffix: how its path ends; any prefix may stand before.
        provider: whose API it is, which is all that is known before the answer says who gave it.
        needs: fields that a request to it has; by them it is told from an app's own route of that name.
        streams: whether it streams where the request does not say.
    """

    suffix: str
    route: Route
    provider: str
    needs: tuple[str, ...]
    streams: bool = False

    def fits(self, body: Mapping[str, Any]) -> bool:
        """Whether a body has what this route needs. Messages are a list; a model is a name."""
        return (
            all(name in body for name in self.needs)
            and isinstance(body.get("messages", []), (list, tuple))
            and isinstance(body.get("model", ""), str)
        )

    def parameters(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """The parameters that the request gives."""
        return ollama.parameters(body) if self.provider == OLLAMA else body

    def provider_at(self, host: str | None) -> str:
        """Who answers at this host, as far as is known before the answer."""
        return provider_of_host(host) if self.provider == OPENAI else self.provider

    def is_streaming(self, body: Mapping[str, Any]) -> bool:
        """Whether the request asks for a stream."""
        return body.get("stream", self.streams) is True


def _openai(suffix: str, *needs: str, path: str | None = None) -> Endpoint:
    return Endpoint(suffix, openai.ROUTES[path or suffix], OPENAI, needs)


def _ollama(path: str, *needs: str, streams: bool = False) -> Endpoint:
    return Endpoint(path, ollama.ROUTES[path], OLLAMA, ("model", *needs), streams)


# The longer path first: an address that ends in the one also ends in the other.
ENDPOINTS: Final = (
    _ollama("/api/chat", "messages", streams=True),
    _ollama("/api/generate", "prompt", streams=True),
    _ollama("/api/embed", "input"),
    _ollama("/api/embeddings", "prompt"),
    _openai("/chat/completions", "messages"),
    _openai("/completions", "prompt"),
    _openai("/responses", "model", "input"),
    _openai("/v1/embeddings", "input", path="/embeddings"),
    _openai("/embeddings", "model", "input"),
    Endpoint("/completion", _LLAMA, LLAMA_CPP, ("prompt",)),
    Endpoint("/infill", _LLAMA, LLAMA_CPP, ("input_prefix", "input_suffix")),
)
_SUFFIXES: Final = tuple(endpoint.suffix for endpoint in ENDPOINTS)


def endpoint_of(path: str) -> Endpoint | None:
    """The endpoint behind a path; ``None`` for any other path."""
    path = path.rstrip("/")
    if not path.endswith(_SUFFIXES):
        return None
    return next(endpoint for endpoint in ENDPOINTS if path.endswith(endpoint.suffix))


def json_object(body: object) -> Mapping[str, Any] | None:
    """The JSON object that a request carries; ``None`` if it carries anything else."""
    if not isinstance(body, (bytes, str)) or body[:_LONGEST_INDENT].lstrip()[:1] not in (b"{", "{"):
        return None
    try:
        found = json.loads(body)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None

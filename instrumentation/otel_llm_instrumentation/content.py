"""Prompts and answers in the shape of the GenAI conventions. Captured only where the standard variable asks for it.

The shape: https://github.com/open-telemetry/semantic-conventions-genai/blob/main/docs/gen-ai/non-normative/models.py
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from otel_llm_instrumentation import semconv

Part = dict[str, Any]
Message = dict[str, Any]

CAPTURE_VARIABLE: Final = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
_logger = logging.getLogger("otel_llm_instrumentation")


class Capture(Enum):
    """Where content goes: the values of the standard variable."""

    NO_CONTENT = 0
    SPAN_ONLY = 1
    EVENT_ONLY = 2
    SPAN_AND_EVENT = 3

    @property
    def on_span(self) -> bool:
        return self in (Capture.SPAN_ONLY, Capture.SPAN_AND_EVENT)

    @property
    def in_event(self) -> bool:
        return self in (Capture.EVENT_ONLY, Capture.SPAN_AND_EVENT)


def wanted_capture(environ: Mapping[str, str] = os.environ) -> Capture:
    """What the user wants; a wrong value warns and captures nothing."""
    text = environ.get(CAPTURE_VARIABLE, "").strip().upper()
    if not text:
        return Capture.NO_CONTENT
    try:
        return Capture[text]
    except KeyError:
        allowed = ", ".join(each.name for each in Capture)
        _logger.warning("%s cannot be %r. Allowed: %s. Using NO_CONTENT.", CAPTURE_VARIABLE, text, allowed)
        return Capture.NO_CONTENT


@dataclass(slots=True)
class Asked:
    """What a request says to the model."""

    messages: list[Message]
    instructions: list[Part] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Content:
    """How the requests and answers of one operation are read.

    Attributes:
        asked: what the body of a request says.
        answered: what an answer says: the one response, or all the chunks of a stream.
    """

    asked: Callable[[Mapping[str, Any]], Asked]
    answered: Callable[[Sequence[object]], list[Message]]


def content_attributes(asked: Asked | None, answered: Sequence[Message]) -> dict[str, Any]:
    """The attributes that hold content; what is empty is left out."""
    known: dict[str, Sequence[dict[str, Any]]] = {
        semconv.SYSTEM_INSTRUCTIONS: asked.instructions if asked else [],
        semconv.INPUT_MESSAGES: asked.messages if asked else [],
        semconv.OUTPUT_MESSAGES: answered,
    }
    return {key: value for key, value in known.items() if value}


def as_json(value: object) -> str:
    """For a span, whose attributes cannot be structured."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=_plain)
    return text.encode("utf-8", "replace").decode()  # half a surrogate pair, which servers send, is no UTF-8


def as_structure(value: object) -> Any:
    """For an event, whose attributes can be structured: nothing in it that OTLP cannot carry."""
    return json.loads(as_json(value), parse_int=_int64_or_text)


def _int64_or_text(digits: str) -> int | str:
    number = int(digits)
    return number if -(2**63) <= number < 2**63 else digits


def _plain(value: object) -> str:
    return b64encode(value).decode() if isinstance(value, bytes) else str(value)


def message(role: object, parts: Sequence[Part], *, finish_reason: str | None = None) -> Message:
    """One message; an answer's says why it ended."""
    made: Message = {"role": role if isinstance(role, str) else "user", "parts": list(parts)}
    if finish_reason is not None:
        made["finish_reason"] = finish_reason
    return made


def text_parts(*texts: object) -> list[Part]:
    """A part for each text that says something."""
    return [{"type": "text", "content": text} for text in texts if isinstance(text, str) and text]


def reasoning_parts(*texts: object) -> list[Part]:
    """The same for thoughts before the answer."""
    return [{"type": "reasoning", "content": text} for text in texts if isinstance(text, str) and text]


def tool_call(name: object, arguments: object, call_id: object = None) -> Part:
    """The model asks for a tool; arguments that are JSON are shown as what they mean."""
    if isinstance(arguments, str):
        with contextlib.suppress(ValueError):
            arguments = json.loads(arguments)
    return {"type": "tool_call", "id": call_id, "name": name, "arguments": arguments}


def tool_result(response: object, call_id: object = None) -> Part:
    """What a tool gave back."""
    return {"type": "tool_call_response", "id": call_id, "response": response}


def image_part(url: object) -> Part:
    """An image by its address, or the image itself in a ``data:`` URL."""
    text = url if isinstance(url, str) else ""
    head, _, data = text.partition(",")
    if text.startswith("data:") and head.endswith(";base64"):
        return {"type": "blob", "modality": "image", "mime_type": head[5:-7] or None, "content": data}
    return {"type": "uri", "modality": "image", "mime_type": None, "uri": text}

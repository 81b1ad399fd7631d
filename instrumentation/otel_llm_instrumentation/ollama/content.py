"""What requests to Ollama's API and its answers say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from otel_llm_instrumentation.content import (
    Asked,
    Content,
    Message,
    Part,
    message,
    reasoning_parts,
    text_parts,
    tool_call,
    tool_result,
)
from otel_llm_instrumentation.facts import as_items, as_text, fields


def _images(images: object) -> Iterator[Part]:
    """Base64, without a word of what kind of image it is."""
    for image in as_items(images):
        yield {"type": "blob", "modality": "image", "mime_type": None, "content": image}


def _calls(calls: object) -> Iterator[Part]:
    for each in as_items(calls):
        function = fields(fields(each).get("function"))
        yield tool_call(function.get("name"), function.get("arguments"))


def chat_asked(body: Mapping[str, Any]) -> Asked:
    """Messages with images and tools; instructions are among them."""
    return Asked([_message(fields(each)) for each in as_items(body.get("messages"))])


def _message(given: Mapping[str, Any]) -> Message:
    if given.get("role") == "tool":
        return message("tool", [tool_result(given.get("content"))])
    parts = [*text_parts(given.get("content")), *_images(given.get("images")), *_calls(given.get("tool_calls"))]
    return message(given.get("role"), parts)


def prompt_asked(body: Mapping[str, Any]) -> Asked:
    """A prompt with images; instructions stand apart."""
    parts = [*text_parts(body.get("prompt")), *_images(body.get("images"))]
    return Asked([message("user", parts)], text_parts(body.get("system")))


def answered(payloads: Sequence[object]) -> list[Message]:
    """Chat and generate, whole or in chunks."""
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[Part] = []
    reason = None
    for payload in payloads:
        chunk = fields(payload)
        said = fields(chunk.get("message"))
        texts.append(as_text(said.get("content")) or as_text(chunk.get("response")) or "")
        thoughts.append(as_text(said.get("thinking")) or as_text(chunk.get("thinking")) or "")
        calls += _calls(said.get("tool_calls"))
        reason = as_text(chunk.get("done_reason")) or reason
    parts = [*reasoning_parts("".join(thoughts)), *text_parts("".join(texts)), *calls]
    return [message("assistant", parts, finish_reason=reason)] if parts else []


CHAT: Final = Content(chat_asked, answered)
TEXT: Final = Content(prompt_asked, answered)

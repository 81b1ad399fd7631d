"""What requests to OpenAI's API and its answers say."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from otel_llm_instrumentation.content import (
    Asked,
    Content,
    Message,
    Part,
    image_part,
    message,
    reasoning_parts,
    text_parts,
    tool_call,
    tool_result,
)
from otel_llm_instrumentation.facts import as_count, as_items, as_text, fields

_TEXT_TYPES = ("text", "input_text", "output_text")


def _parts(content: object) -> list[Part]:
    """A text, or a list of parts in one of OpenAI's shapes; what is of no known kind is named and left out."""
    if isinstance(content, str):
        return text_parts(content)
    return [part for item in as_items(content) for part in _part(fields(item))]


def _part(item: Mapping[str, Any]) -> Iterator[Part]:
    kind = item.get("type")
    if kind in _TEXT_TYPES:
        yield from text_parts(item.get("text"))
    elif kind == "refusal":
        yield from text_parts(item.get("refusal"))
    elif kind in ("image_url", "input_image"):
        url = item.get("image_url")
        yield image_part(url if isinstance(url, str) else fields(url).get("url"))
    elif isinstance(kind, str):
        yield {"type": kind}


def _calls(calls: object) -> Iterator[Part]:
    for each in as_items(calls):
        call = fields(each)
        function = fields(call.get("function"))
        yield tool_call(function.get("name"), function.get("arguments"), call.get("id"))


# Chat completions


def chat_asked(body: Mapping[str, Any]) -> Asked:
    """Chat completions keep instructions among the messages."""
    return Asked([_chat_message(fields(each)) for each in as_items(body.get("messages"))])


def _chat_message(given: Mapping[str, Any]) -> Message:
    if given.get("role") == "tool":
        return message("tool", [tool_result(given.get("content"), given.get("tool_call_id"))])
    return message(given.get("role"), [*_parts(given.get("content")), *_calls(given.get("tool_calls"))])


class _Choice:
    """One answer, put together from its chunks; a whole answer is one chunk."""

    def __init__(self) -> None:
        self.role = "assistant"
        self.texts: list[str] = []
        self.thoughts: list[str] = []
        self.calls: dict[int, dict[str, Any]] = {}
        self.finish_reason: str | None = None

    def add(self, choice: Mapping[str, Any]) -> None:
        said = fields(choice.get("message") or choice.get("delta"))
        self.role = as_text(said.get("role")) or self.role
        self.finish_reason = as_text(choice.get("finish_reason")) or self.finish_reason
        for text in (choice.get("text"), said.get("content"), said.get("refusal")):
            if isinstance(text, str):
                self.texts.append(text)
        thought = said.get("reasoning_content") or said.get("reasoning")
        if isinstance(thought, str):
            self.thoughts.append(thought)
        for position, each in enumerate(as_items(said.get("tool_calls"))):
            self._add_call(position, fields(each))

    def _add_call(self, position: int, given: Mapping[str, Any]) -> None:
        index = as_count(given.get("index"))
        call = self.calls.setdefault(position if index is None else index, {"arguments": ""})
        function = fields(given.get("function"))
        call["id"] = given.get("id") or call.get("id")
        call["name"] = function.get("name") or call.get("name")
        call["arguments"] += as_text(function.get("arguments")) or ""

    def message(self) -> Message:
        calls = [tool_call(each.get("name"), each["arguments"], each.get("id")) for each in self.calls.values()]
        parts = [*reasoning_parts("".join(self.thoughts)), *text_parts("".join(self.texts)), *calls]
        return message(self.role, parts, finish_reason=self.finish_reason)


def choices_answered(payloads: Sequence[object]) -> list[Message]:
    """Chat and text completions, whole or in chunks."""
    choices: dict[int, _Choice] = {}
    for payload in payloads:
        for each in as_items(fields(payload).get("choices")):
            choice = fields(each)
            choices.setdefault(as_count(choice.get("index")) or 0, _Choice()).add(choice)
    return [choices[index].message() for index in sorted(choices)]


# Text completions


def prompt_asked(body: Mapping[str, Any]) -> Asked:
    """One prompt, or several; tokens are not shown."""
    prompt = body.get("prompt")
    return Asked([message("user", text_parts(each)) for each in _texts(prompt)])


def _texts(prompt: object) -> Iterable[str]:
    given = [prompt] if isinstance(prompt, str) else as_items(prompt)
    return [each for each in given if isinstance(each, str)]


# Responses


def response_asked(body: Mapping[str, Any]) -> Asked:
    """Instructions stand apart; the input is a text, or messages and what tools gave back."""
    given = body.get("input")
    if isinstance(given, str):
        return Asked([message("user", text_parts(given))], text_parts(body.get("instructions")))
    messages = [made for each in as_items(given) for made in _item(fields(each))]
    return Asked(messages, text_parts(body.get("instructions")))


def _item(item: Mapping[str, Any]) -> Iterator[Message]:
    kind = item.get("type")
    if kind == "function_call":
        yield message("assistant", [tool_call(item.get("name"), item.get("arguments"), item.get("call_id"))])
    elif kind == "function_call_output":
        yield message("tool", [tool_result(item.get("output"), item.get("call_id"))])
    elif kind == "reasoning":
        thoughts = reasoning_parts(*[fields(each).get("text") for each in as_items(item.get("summary"))])
        yield message("assistant", thoughts)
    elif "content" in item:
        yield message(item.get("role"), _parts(item.get("content")))


def response_answered(payloads: Sequence[object]) -> list[Message]:
    """A whole response, which is also in the last event of a stream; of one that broke off, the text so far."""
    for payload in reversed(payloads):
        event = fields(payload)
        answer = fields(event.get("response", payload))
        items = as_items(answer.get("output"))
        if items:
            reason = as_text(fields(answer.get("incomplete_details")).get("reason")) or "stop"
            parts = [part for each in items for made in _item(fields(each)) for part in made["parts"]]
            return [message("assistant", parts, finish_reason=reason)]
    events = [fields(payload) for payload in payloads]
    deltas = [each.get("delta") for each in events if each.get("type") == "response.output_text.delta"]
    text = "".join(delta for delta in deltas if isinstance(delta, str))
    return [message("assistant", text_parts(text))] if text else []


CHAT: Final = Content(chat_asked, choices_answered)
TEXT: Final = Content(prompt_asked, choices_answered)
RESPONSES: Final = Content(response_asked, response_answered)

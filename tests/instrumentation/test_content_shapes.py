"""What requests and answers of each API say, read into the shape of the GenAI conventions."""

from __future__ import annotations

from typing import Any

import pytest

from otel_llm_instrumentation.content import Asked, Content, as_structure
from otel_llm_instrumentation.ollama import content as of_ollama
from otel_llm_instrumentation.openai import content as of_openai


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "content": text}


_CALL = {"function": {"name": "add", "arguments": {"a": 1}}}
_CALL_PART = {"type": "tool_call", "id": None, "name": "add", "arguments": {"a": 1}}
_OUTPUT = {"type": "output_text", "text": "a"}
_IMAGE = {"modality": "image", "mime_type": None}


@pytest.mark.parametrize(
    ("content", "body", "asked"),
    [
        (
            of_openai.CHAT,
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "image_url", "image_url": {"url": "https://host/a.png"}},
                            {"type": "image_url", "image_url": {"url": "https://host/b;base64,c"}},
                            {"type": "input_image", "image_url": "data:;base64,aGk="},
                            {"type": "image_url", "image_url": {"url": "data:text/plain,hi"}},
                            {"type": "input_audio", "input_audio": {}},
                            {"type": "refusal", "refusal": "No."},
                            {"type": "text", "text": 3},
                            {"text": "of no kind"},
                        ],
                    }
                ]
            },
            Asked(
                [
                    {
                        "role": "user",
                        "parts": [
                            {"type": "uri", **_IMAGE, "uri": "https://host/a.png"},
                            {"type": "uri", **_IMAGE, "uri": "https://host/b;base64,c"},
                            {"type": "blob", **_IMAGE, "content": "aGk="},
                            {"type": "uri", **_IMAGE, "uri": "data:text/plain,hi"},
                            {"type": "input_audio"},
                            _text("No."),
                        ],
                    }
                ]
            ),
        ),
        (
            of_openai.TEXT,
            {"prompt": ["a", 3, "b"]},
            Asked([{"role": "user", "parts": [_text("a")]}, {"role": "user", "parts": [_text("b")]}]),
        ),
        (
            of_openai.RESPONSES,
            {
                "instructions": "Be brief.",
                "input": [
                    {"role": "developer", "content": "Add."},
                    {"type": "reasoning", "summary": [{"text": "Hm"}]},
                    {"type": "function_call", "name": "add", "arguments": '{"a": 1}', "call_id": "c"},
                    {"type": "function_call_output", "output": "3", "call_id": "c"},
                ],
            },
            Asked(
                [
                    {"role": "developer", "parts": [_text("Add.")]},
                    {"role": "assistant", "parts": [{"type": "reasoning", "content": "Hm"}]},
                    {"role": "assistant", "parts": [{**_CALL_PART, "id": "c"}]},
                    {"role": "tool", "parts": [{"type": "tool_call_response", "id": "c", "response": "3"}]},
                ],
                [_text("Be brief.")],
            ),
        ),
        (
            of_ollama.CHAT,
            {
                "messages": [
                    {"role": "user", "content": "Add.", "images": ["aGk="]},
                    {"role": "assistant", "tool_calls": [_CALL]},
                    {"role": "tool", "content": "3"},
                ]
            },
            Asked(
                [
                    {"role": "user", "parts": [_text("Add."), {"type": "blob", **_IMAGE, "content": "aGk="}]},
                    {"role": "assistant", "parts": [_CALL_PART]},
                    {"role": "tool", "parts": [{"type": "tool_call_response", "id": None, "response": "3"}]},
                ]
            ),
        ),
    ],
    ids=["chat", "text", "response", "Ollama"],
)
def test_what_is_asked_is_read_in_every_form_that_an_api_has(
    content: Content, body: dict[str, Any], asked: Asked
) -> None:
    """What is of no known kind is named, or left out."""
    assert content.asked(body) == asked


@pytest.mark.parametrize(
    ("content", "answer", "role", "parts", "reason"),
    [
        (
            of_openai.CHAT,
            [
                {
                    "choices": [
                        {"message": {"role": "model", "content": "a", "reasoning": "Hm"}, "finish_reason": "length"}
                    ]
                }
            ],
            "model",
            [{"type": "reasoning", "content": "Hm"}, _text("a")],
            "length",
        ),
        (
            of_openai.CHAT,
            [{"choices": [{"delta": {"content": "a"}, "finish_reason": "stop"}]}, {"choices": [{"delta": {}}]}],
            "assistant",
            [_text("a")],
            "stop",
        ),
        (
            of_openai.RESPONSES,
            [{"output": [{"content": [_OUTPUT]}], "incomplete_details": {"reason": "max_output_tokens"}}],
            "assistant",
            [_text("a")],
            "max_output_tokens",
        ),
        (
            of_ollama.CHAT,
            [
                {"message": {"thinking": "H"}},
                {"message": {"thinking": "m", "tool_calls": [_CALL]}, "done_reason": "stop"},
            ],
            "assistant",
            [{"type": "reasoning", "content": "Hm"}, _CALL_PART],
            "stop",
        ),
        (
            of_ollama.TEXT,
            [{"thinking": "Hm"}, {"response": "a", "done_reason": "length"}, {"response": ""}],
            "assistant",
            [{"type": "reasoning", "content": "Hm"}, _text("a")],
            "length",
        ),
    ],
)
def test_what_is_answered_is_read_in_every_form_that_a_server_has(
    content: Content, answer: list[object], role: str, parts: list[dict[str, Any]], reason: str
) -> None:
    """Thoughts and reasons stand in fields of several names, and the reason need not be in the last chunk."""
    assert content.answered(answer) == [{"role": role, "parts": parts, "finish_reason": reason}]


def test_answers_are_in_order_when_they_come_in_another() -> None:
    """Who has no index is the first."""
    choices = [{"index": 1, "text": "b"}, {"text": "a"}]
    read = of_openai.TEXT.answered([{"choices": choices}])
    assert [message["parts"] for message in read] == [[_text("a")], [_text("b")]]


def test_response_that_broke_off_is_only_the_text_so_far() -> None:
    """Other pieces of it say something else."""
    pieces = [
        ("response.output_text.delta", "Par"),
        ("response.reasoning_text.delta", "Hm"),
        ("response.output_text.delta", 3),
    ]
    read = of_openai.RESPONSES.answered([{"type": kind, "delta": delta} for kind, delta in pieces])
    assert read == [{"role": "assistant", "parts": [_text("Par")]}]


@pytest.mark.parametrize(
    ("said", "carried"),
    [
        (2**63 - 1, 2**63 - 1),
        (2**63, "9223372036854775808"),
        (-(2**63), -(2**63)),
        (-(2**63) - 1, "-9223372036854775809"),
        (b"hi", "aGk="),
        ({1.5: [None, True]}, {"1.5": [None, True]}),
    ],
)
def test_an_event_carries_what_is_said_when_otlp_has_no_such_value(said: object, carried: object) -> None:
    """As text, and bytes in base64."""
    assert as_structure({"arguments": said}) == {"arguments": carried}

"""Answers in the form that the servers gave when they were recorded (llama.cpp, Ollama 0.11.4), shortened."""

from __future__ import annotations

import copy
from typing import Any

MESSAGES: Any = [{"role": "user", "content": "What is the capital of France?"}]
TIMINGS = {"cache_n": 20, "prompt_n": 18, "prompt_ms": 75.5, "predicted_n": 8, "predicted_ms": 92.25}
USAGE = {
    "prompt_tokens": 38,
    "completion_tokens": 8,
    "total_tokens": 46,
    "prompt_tokens_details": {"cached_tokens": 20},
}
CHAT: dict[str, Any] = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1763800000,
    "model": "smollm2-135m",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Paris."}}],
    "usage": USAGE,
    "timings": TIMINGS,
}
EMBEDDINGS: dict[str, Any] = {
    "object": "list",
    "model": "smollm2-135m",
    "data": [{"object": "embedding", "index": 0, "embedding": [0.25, 0.5]}],
    "usage": {"prompt_tokens": 5, "total_tokens": 5},
}
RESPONSE: dict[str, Any] = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1763800000,
    "model": "smollm2-135m",
    "status": "completed",
    "output": [],
    "parallel_tool_calls": False,
    "tool_choice": "auto",
    "tools": [],
    "usage": {
        "input_tokens": 38,
        "output_tokens": 8,
        "total_tokens": 46,
        "input_tokens_details": {"cached_tokens": 20},
        "output_tokens_details": {"reasoning_tokens": 3},
    },
}


def chat(**changes: Any) -> dict[str, Any]:
    """A chat completion with these fields changed; `...` leaves a field out."""
    return _changed(CHAT, changes)


def chunk(text: str | None = "Paris", finish_reason: str | None = None, **changes: Any) -> dict[str, Any]:
    """A chunk of a streamed chat completion."""
    delta = {} if text is None else {"content": text}
    base = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1763800000,
        "model": "smollm2-135m",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}],
    }
    return _changed(base, changes)


def chunks(usage: bool = True, timings: bool = True) -> list[dict[str, Any]]:
    """A whole streamed answer: text, the reason to finish, and a last chunk without choices."""
    last = chunk(choices=[], usage=USAGE if usage else ..., timings=TIMINGS if timings else ...)
    return [chunk("The"), chunk(" capital"), chunk(None, "stop"), last]


def ollama_chat(**changes: Any) -> dict[str, Any]:
    """An answer of /api/chat, and of /api/generate, which says ``response`` for ``message``."""
    base = {
        "model": "smollm2",
        "created_at": "2026-11-22T10:11:12.123456789Z",
        "message": {"role": "assistant", "content": "Paris."},
        "response": "Paris.",
        "done_reason": "stop",
        "done": True,
        "total_duration": 912000000,
        "load_duration": 650000000,
        "prompt_eval_count": 38,
        "prompt_eval_duration": 150000000,
        "eval_count": 8,
        "eval_duration": 112000000,
    }
    return _changed(base, changes)


def ollama_chunks() -> list[dict[str, Any]]:
    """The same, streamed."""
    piece = {
        "model": "smollm2",
        "created_at": "2026-11-22T10:11:11.5Z",
        "message": {"role": "assistant", "content": "Pa"},
        "response": "Pa",
        "done": False,
    }
    return [piece, piece, ollama_chat(message={"role": "assistant", "content": ""})]


def _changed(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    whole = {**copy.deepcopy(base), **changes}
    return {key: value for key, value in whole.items() if value is not ...}

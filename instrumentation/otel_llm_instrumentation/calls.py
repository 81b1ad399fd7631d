"""One LLM call as observers see it, and the registry of observers.

An observer is told of every call, sampled or not: spans only display calls. Nothing here knows what an
observer does with what it is told.
"""

from __future__ import annotations

import threading
from typing import NamedTuple, Protocol

from opentelemetry.context import Context
from opentelemetry.trace import Span


class ServerTimings(NamedTuple):
    """What the server itself said about its work on a call; ``None`` where it said nothing.

    Attributes:
        prefill_seconds: reading the prompt (llama.cpp ``prompt_ms``, Ollama ``prompt_eval_duration``).
        decode_seconds: writing the answer (llama.cpp ``predicted_ms``, Ollama ``eval_duration``).
        load_seconds: loading the model, at the start of the request, before the queue (Ollama ``load_duration``).
        end_unix_ns: the server's own wall-clock time at the end (Ollama ``created_at`` of the last message).
    """

    prefill_seconds: float | None = None
    decode_seconds: float | None = None
    load_seconds: float | None = None
    end_unix_ns: int | None = None


class CallView(Protocol):
    """The facts of a call that observers may read, filled in as they become known.

    ``started_ns``, ``first_chunk_ns`` and ``ended_ns`` are instants of ``time.monotonic_ns()``.
    ``span`` is the span that displays the call: our own, or, where another instrumentation made one and ours
    steps aside, that one (``owns_span`` is then False). It may be non-recording: the call counts all the same.
    ``reached_server`` is False if no connection was made, so that nobody worked on the call.
    ``in_process`` calls have no server: the model runs in this process.
    """

    span: Span
    owns_span: bool
    context: Context
    operation: str
    provider: str
    request_model: str | None
    response_model: str | None
    response_id: str | None
    server_address: str | None
    server_port: int | None
    in_process: bool
    input_tokens: int | None
    output_tokens: int | None
    cached_input_tokens: int | None
    timings: ServerTimings | None
    error_type: str | None
    reached_server: bool
    started_ns: int
    first_chunk_ns: int | None
    ended_ns: int | None


class CallObserver(Protocol):
    """Told of every call. Its methods must not block; what they raise is logged and swallowed.

    A call whose stream is abandoned ends while that is collected, which can be at any allocation in any thread: a
    lock that `call_ended` takes must be re-entrant.
    """

    def call_started(self, call: CallView) -> None: ...

    def first_chunk(self, call: CallView) -> None: ...

    def call_ended(self, call: CallView) -> None:
        """Tokens and timings are known; the call's own span is still open and ends right after."""


_lock = threading.Lock()
_observers: tuple[CallObserver, ...] = ()


def add_observer(observer: CallObserver) -> None:
    """From now on, tell ``observer`` of every call that starts."""
    global _observers  # noqa: PLW0603 - the one registry of this package
    with _lock:
        if observer not in _observers:
            _observers = (*_observers, observer)


def remove_observer(observer: CallObserver) -> None:
    """Tell ``observer`` nothing more."""
    global _observers  # noqa: PLW0603 - the one registry of this package
    with _lock:
        _observers = tuple(o for o in _observers if o is not observer)


def observers() -> tuple[CallObserver, ...]:
    """The observers of now; a snapshot that stays valid."""
    return _observers

"""Answers that the app has yet to read: streams, and responses whose body is still to come."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import AsyncGeneratorType, GeneratorType
from typing import Any

from otel_llm_instrumentation.call import Call, Lease
from otel_llm_instrumentation.streams import is_running, watched, watched_async


class PendingStream:
    """Ends its call at the last chunk, at a close, at a failure or when it is collected, whichever is first.

    However the library lets go of a response, it closes ``response.stream``: the close is noticed there. That
    object is no part of a copy or pickle of the response, and neither type changes. Only the hooks hold this
    object, and they are gone once the call has ended.

    Args:
        call: whose answer it is.
        stream: an ``openai.Stream`` or ``AsyncStream``.
    """

    def __init__(self, call: Call, stream: Any) -> None:
        self._lease = Lease(call)
        self._chunks: object = None
        self._hooks: list[tuple[Any, str, object]] = []
        body = getattr(stream.response, "stream", None)
        for name in ("close", "aclose"):
            if hasattr(body, name):
                hook = _observed(getattr(body, name), self._closed)
                self._hooks.append((body, name, hook))
                setattr(body, name, hook)
        chunks = stream._iterator
        if isinstance(chunks, GeneratorType):
            stream._iterator = self._chunks = watched(self._lease, chunks)
        elif isinstance(chunks, AsyncGeneratorType):
            stream._iterator = self._chunks = watched_async(self._lease, chunks, closes_chunks=False)

    def _closed(self, _result: object = None) -> None:
        self._unhook()
        if not is_running(self._chunks):  # a close within a read is the read's to judge: it knows whether it failed
            self._lease.call.end_with_error_in_flight()

    def _unhook(self) -> None:
        """Take the hooks off again; none stays behind to keep this alive."""
        hooks, self._hooks = self._hooks, []
        for target, name, hook in hooks:
            if vars(target).get(name) is hook:
                delattr(target, name)


def watch_parse(raw: Any, adopt: Callable[[Any], bool]) -> None:
    """Show ``adopt`` what a raw response parses into, each time that the app asks for it, until it takes it."""
    parse = raw.parse

    def show(parsed: Any) -> None:
        if adopt(parsed) and vars(raw).get("parse") is shadow:
            del raw.parse

    shadow = _observed(parse, show)
    raw.parse = shadow


def _observed(method: Callable[..., Any], after: Callable[[Any], None]) -> Callable[..., Any]:
    """``method``, and what came of it: ``None`` if it failed."""

    def observed(*args: Any, **kwargs: Any) -> Any:
        result = None
        try:
            result = method(*args, **kwargs)
        finally:
            after(result)
        return result

    async def observed_async(*args: Any, **kwargs: Any) -> Any:
        result = None
        try:
            result = await method(*args, **kwargs)
        finally:
            after(result)
        return result

    return observed_async if inspect.iscoroutinefunction(method) else observed

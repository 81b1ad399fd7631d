"""Answers that the app has yet to read: streams, and responses whose body is still to come."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import AsyncGeneratorType, GeneratorType
from typing import Any

from otel_llm_instrumentation.call import Call, Lease
from otel_llm_instrumentation.streams import is_running, watched, watched_async

_Outcome = Callable[[Any, "BaseException | None"], None]


class PendingAnswer:
    """Ends its call at the last byte, at a close, at a failure or when it is collected, whichever is first.

    However the library lets go of a response, it closes ``response.stream``: the close is noticed there. That
    object is no part of a copy or pickle of the response, and neither type changes. Only the hooks hold this
    object, and they are gone once the call has ended.
    """

    def __init__(self, call: Call, response: Any) -> None:
        self._lease = Lease(call)
        self._chunks: object = None
        self._reading = False
        self._hooks: list[tuple[Any, str, object]] = []
        body = getattr(response, "stream", None)
        for name in ("close", "aclose"):
            if hasattr(body, name):
                self._hook(body, name, self._closed)

    def watch_stream(self, stream: Any) -> None:
        """End the call with the iteration of an ``openai.Stream`` or ``AsyncStream``."""
        chunks = stream._iterator
        if isinstance(chunks, GeneratorType):
            stream._iterator = self._chunks = watched(self._lease, chunks)
        elif isinstance(chunks, AsyncGeneratorType):
            stream._iterator = self._chunks = watched_async(self._lease, chunks, closes_chunks=False)

    def watch_parse(self, raw: Any, stream_types: tuple[type, ...]) -> None:
        """Watch the stream that a raw response parses into, once the app asks for it."""

        def adopt(parsed: Any, error: BaseException | None) -> None:
            if isinstance(parsed, stream_types):
                self._unhook(raw)
                self.watch_stream(parsed)

        self._hook(raw, "parse", adopt)

    def watch_read(self, raw: Any) -> None:
        """Read the tokens of a body once the app has read it: ``parse``, ``json`` and ``text`` go through ``read``."""

        def begin() -> None:
            self._reading = True

        def adopt(body: Any, error: BaseException | None) -> None:
            if error is None:
                self._lease.call.see_body(body)
            self._lease.call.end(error)
            self._unhook()

        self._hook(raw, "read", adopt, begin)

    def _closed(self, _result: object, _error: BaseException | None) -> None:
        self._unhook()
        if self._reading or is_running(self._chunks):
            return  # a close within a read is the read's to judge: it knows whether it failed
        self._lease.call.end_with_error_in_flight()

    def _hook(self, target: Any, name: str, after: _Outcome, before: Callable[[], None] | None = None) -> None:
        """Shadow one method of one object, for as long as the call is open."""
        shadow = _observed(getattr(target, name), after, before)
        self._hooks.append((target, name, shadow))
        setattr(target, name, shadow)

    def _unhook(self, only: object = None) -> None:
        """Take the hooks off again, of one object or of all; none stays behind to keep the others alive."""
        hooks, self._hooks = self._hooks, []
        for hook in hooks:
            target, name, shadow = hook
            if only is not None and only is not target:
                self._hooks.append(hook)
            elif vars(target).get(name) is shadow:
                delattr(target, name)


def _observed(method: Callable[..., Any], after: _Outcome, before: Callable[[], None] | None) -> Callable[..., Any]:
    """``method``, saying before it begins and what came of it."""
    begin = before or _nothing

    def observed(*args: Any, **kwargs: Any) -> Any:
        begin()
        try:
            result = method(*args, **kwargs)
        except BaseException as error:
            after(None, error)
            raise
        after(result, None)
        return result

    async def observed_async(*args: Any, **kwargs: Any) -> Any:
        begin()
        try:
            result = await method(*args, **kwargs)
        except BaseException as error:
            after(None, error)
            raise
        after(result, None)
        return result

    return observed_async if inspect.iscoroutinefunction(method) else observed


def _nothing() -> None:
    pass

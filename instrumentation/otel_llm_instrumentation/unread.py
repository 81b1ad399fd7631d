"""Calls whose answers the app has yet to read."""

from __future__ import annotations

import atexit
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

if TYPE_CHECKING:
    from otel_llm_instrumentation.call import Call


class Unread:
    """Ends, at the exit, the calls whose streams are still open then: what is collected later reaches no exporter."""

    def __init__(self) -> None:
        self._calls: WeakValueDictionary[int, Call] = WeakValueDictionary()
        self._watching = False

    def add(self, call: Call) -> None:
        """See to it that this call ends."""
        if not self._watching:
            self._watching = True
            atexit.register(self.end)  # so late, it runs before the providers' own hooks
        self._calls[id(call)] = call

    def end(self) -> None:
        """End those that have not ended."""
        for reference in self._calls.valuerefs():  # a copy, made at once: another thread may still begin calls
            call = reference()
            if call is not None:
                call.end(collected=True)

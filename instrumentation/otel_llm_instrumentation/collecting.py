"""What must not be done within a garbage collection, which may begin anywhere, is done soon after it."""

from __future__ import annotations

import atexit
import gc
import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any


class AfterCollection:
    """Runs actions that take locks which their thread may hold already when a collection begins in it.

    An abandoned stream that is part of a cycle ends while it is collected: in any thread, at any allocation, also of
    one that is inside the SDK's metrics and holds a lock of theirs. To record a metric there would wait for ever.
    """

    def __init__(self, on_error: Callable[[], None]) -> None:
        self._on_error = on_error  # told inside the ``except`` block
        self._collector: int | None = None  # the thread that collects just now
        self._deferred: deque[tuple[Callable[..., object], tuple[object, ...]]] = deque()

    def start(self) -> None:
        """Take note of collections from now on."""
        gc.callbacks.append(self._collects)

    def stop(self) -> None:
        """Take no more note, and do what is left to do."""
        if self._collects in gc.callbacks:
            gc.callbacks.remove(self._collects)
        atexit.unregister(self._catch_up)
        self._catch_up()

    def run(self, action: Callable[..., object], *arguments: object) -> None:
        """Do it now; within a collection, when something is to be done outside of one, or at the exit."""
        if self._collector == threading.get_ident():
            if not self._deferred:
                atexit.register(self._catch_up)  # so late, it runs before the meter provider's own hook
            self._deferred.append((action, arguments))
            return
        if self._deferred:
            self._catch_up()
        action(*arguments)

    def _catch_up(self) -> None:
        while self._deferred:
            try:
                action, arguments = self._deferred.popleft()
            except IndexError:  # another thread was faster
                return
            try:
                action(*arguments)
            except Exception:  # noqa: BLE001 - whose action it is has gone on long ago
                self._on_error()

    def _collects(self, phase: str, _info: Mapping[str, Any]) -> None:
        self._collector = threading.get_ident() if phase == "start" else None

"""A background thread that does one thing again and again, at the pace that the thing itself asks for."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from contextlib import suppress

from opentelemetry.instrumentation.utils import suppress_instrumentation

from otel_llm_energy.tracing.forks import rest_for_ever
from otel_llm_energy.tracing.right_of_way import BackgroundThread
from otel_llm_energy.troubles import Troubles

_AFTER_ERROR_SECONDS = 5.0

_logger = logging.getLogger(__name__)


class Poller:
    """Calls ``work`` until it is stopped; ``work`` returns the seconds to wait before the next time.

    What it does is not traced: its thread runs with instrumentation suppressed.
    """

    def __init__(self, name: str, work: Callable[[], float]) -> None:
        self._name = name
        self._work = work
        self._wakes = _new_queue()
        self._background = BackgroundThread()
        self._stopped = self._is_parents = False
        self._thread: threading.Thread | None = None
        self._troubles = Troubles(_logger)

    def start(self) -> None:
        """Start the thread; it never keeps the interpreter from ending."""
        if self._thread is None:
            # Made together and by the names of now: gevent may have replaced both since `__init__`, or since this
            # module was imported, and a green thread that waits at a queue of the other kind would stop all others.
            self._wakes = _new_queue()
            thread = threading.Thread(target=self._run, name=f"otel-llm-energy {self._name}", daemon=True)
            thread.start()
            self._thread = thread

    def wake(self) -> None:
        """Do it now."""
        self._background.woken()
        if self._wakes.empty():
            self._wakes.put(None)

    def stop(self, timeout_seconds: float = 1.0) -> None:
        """Stop after what it is doing now; a thread that hangs in I/O is left to end by itself."""
        self._stopped = True
        self.wake()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout_seconds)

    def forget_in_child(self) -> None:
        """In a forked child, where gevent's threads live on: this one does its thing in the parent."""
        self._is_parents = True

    def _run(self) -> None:
        with suppress_instrumentation(), self._background:
            while not self._stopped:
                seconds = max(self._step(), 0.0)
                with suppress(queue.Empty), self._background.waiting(seconds):
                    self._wakes.get(timeout=seconds)
                if self._is_parents:
                    rest_for_ever()

    def _step(self) -> float:
        try:
            return self._work()
        except Exception:  # noqa: BLE001 - the thread must outlive whatever goes wrong in one round
            self._troubles.warn("poll", "%s failed and is tried again.", self._name, exc_info=True)
            return _AFTER_ERROR_SECONDS


def _new_queue() -> queue.SimpleQueue[None]:
    """Reentrant: a signal, or a collection, may end a call anywhere."""
    return queue.SimpleQueue()

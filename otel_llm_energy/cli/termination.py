"""SIGTERM ends a program that has no handler of its own as ever, but first what is held goes out."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType

_FLUSH_SECONDS = 8.0  # `docker stop` and supervisord kill who has not ended in 10 s
_TERMINATED = 128 + signal.SIGTERM  # exit code, as shells have it


def flush_at_sigterm(flush: Callable[[int], object]) -> None:
    """Call ``flush`` with its timeout, ms, when SIGTERM comes, and then end by that signal.

    For who owns the process, before the program starts: a handler of the program's own replaces this one, and a server
    that raises the signal anew when it has shut down, as uvicorn does, comes back to it. Where SIGTERM is ignored, or
    somebody's already, nothing is done. To be called in the main thread.
    """
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        return

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(number, lambda number, frame: None)  # GNU timeout sends it twice
        try:
            _run_for(_FLUSH_SECONDS, flush)
        finally:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
            os._exit(_TERMINATED)  # the first process of a container is not ended by it

    signal.signal(signal.SIGTERM, end)


def _run_for(seconds: float, flush: Callable[[int], object]) -> None:
    """In another thread: this one may hold, wherever the signal met it, a lock that the flush needs."""
    thread = threading.Thread(target=flush, args=(int(seconds * 1000),), name="otel-llm-energy sigterm", daemon=True)
    thread.start()
    thread.join(seconds)

"""SIGTERM ends a program that has no handler of its own as ever, but first what is held goes out."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType

_FLUSH_SECONDS = 8.0  # `docker stop` and supervisord kill who has not ended in 10 s
_LEAST_SECONDS = 1.0  # for the flush, where something of ours has used up the time
_AGAIN_SECONDS = 0.05
_TERMINATED = 128 + signal.SIGTERM  # exit code, as shells have it
_TELEMETRY = ("otel_llm_energy.", "opentelemetry.sdk.", "opentelemetry.exporter.")
_AROUND_THE_PROGRAM = ("otel_llm_energy.cli.", "otel_llm_energy.tracing.measured_functions.")
_ONLY_WAITS = "otel_llm_energy.tracing.idle_measurement."


def flush_at_sigterm(flush: Callable[[int], object], clock_seconds: Callable[[], float] = time.monotonic) -> None:
    """Call ``flush`` with its timeout, ms, when SIGTERM comes, and then end by that signal.

    For who owns the process, before the program starts: a handler of the program's own replaces this one, and a server
    that raises the signal anew when it has shut down, as uvicorn does, comes back to it. Where SIGTERM is ignored, or
    somebody's already, nothing is done. To be called in the main thread.
    """
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        return
    first_seconds: list[float] = []

    def end(number: int, frame: FrameType | None) -> None:
        first_seconds.append(clock_seconds())
        left_seconds = _FLUSH_SECONDS - (first_seconds[-1] - first_seconds[0])
        if left_seconds >= 0 and amid_telemetry(frame) and _told_again(number):
            return
        signal.signal(number, lambda number, frame: None)  # GNU timeout sends it twice
        try:
            _run_for(max(left_seconds, _LEAST_SECONDS), flush, number)
        finally:
            _end_by(number)

    signal.signal(signal.SIGTERM, end)


def _end_by(number: int) -> None:
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)
    os._exit(_TERMINATED)  # the first process of a container is not ended by it


def _told_again(number: int) -> bool:
    """Have the signal come again soon, when the program has gone on; False if that cannot be."""
    timer = threading.Timer(_AGAIN_SECONDS, os.kill, (os.getpid(), number))
    timer.daemon = True
    try:
        timer.start()
    except RuntimeError:
        if signal.getsignal(signal.SIGALRM) not in (signal.SIG_DFL, _tell_again):
            return False
        _at_alarm(_AGAIN_SECONDS, _tell_again)
    return True


def _tell_again(alarm: int, frame: FrameType | None) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def _run_for(seconds: float, flush: Callable[[int], object], number: int) -> None:
    """In another thread: this one may still hold, wherever the signal met it, a lock that the flush needs."""
    millis = int(seconds * 1000)
    thread = threading.Thread(target=flush, args=(millis,), name="otel-llm-energy sigterm", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # at the limit on processes, or with Python 3.12 at the interpreter's exit
        _at_alarm(seconds, lambda alarm, frame: _end_by(number))
        flush(millis)
    else:
        thread.join(seconds)


def _at_alarm(seconds: float, handle: Callable[[int, FrameType | None], None]) -> None:
    """Where no thread can be started: the alarm comes in this one, also while that waits for a lock."""
    signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, seconds)


def amid_telemetry(frame: FrameType | None) -> bool:
    """Whether the program was interrupted while it held a span on or flushed: with locks that a flush needs, too."""
    while frame is not None:
        module = f"{frame.f_globals.get('__name__', '')}."
        if module == _ONLY_WAITS:
            return False
        if module.startswith(_TELEMETRY) and not module.startswith(_AROUND_THE_PROGRAM):
            return True
        frame = frame.f_back
    return False

"""Clocks other than the monotonic one, by which all else is done: the wall clock that may be stepped, and sleep."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from otel_llm_energy.quantities import NS_PER_SECOND

# Slewing moves the wall clock by 0.5 ms a second at most (adjtime(3)); what is more was a step.
_STEPPED_NS = 20_000_000
_SLEPT_NS = NS_PER_SECOND
_BOOT_CLOCK: Final[int | None] = getattr(time, "CLOCK_BOOTTIME", None)  # Linux has one that goes on while it sleeps


class WallClock:
    """Places wall-clock times on the monotonic clock. Not thread-safe.

    Args:
        clock_ns: the monotonic clock.
        unix_clock_ns: the wall clock.
    """

    def __init__(
        self, *, clock_ns: Callable[[], int] = time.monotonic_ns, unix_clock_ns: Callable[[], int] = time.time_ns
    ) -> None:
        self._clock_ns = clock_ns
        self._unix_clock_ns = unix_clock_ns
        self._ahead_ns = unix_clock_ns() - clock_ns()
        self._stepped_ns: int | None = None

    def look(self) -> None:
        """Notice a step; to be called every second or so."""
        now_ns = self._clock_ns()
        ahead_ns = self._unix_clock_ns() - now_ns
        if abs(ahead_ns - self._ahead_ns) > _STEPPED_NS:
            self._stepped_ns = now_ns
        self._ahead_ns = ahead_ns

    def place(self, unix_ns: int, since_ns: int) -> int | None:
        """A wall-clock time as a monotonic one; ``None`` if the wall clock was stepped after ``since_ns``."""
        self.look()
        if self._stepped_ns is not None and self._stepped_ns >= since_ns:
            return None
        return unix_ns - self._ahead_ns


class SleepWatch:
    """Notices that the machine has slept: the monotonic clock stood still, counters may not have. Thread-safe.

    Args:
        asleep_ns: how long it has slept since it was started.
    """

    def __init__(self, asleep_ns: Callable[[], int] | None = None) -> None:
        self._read_asleep_ns = asleep_ns or _asleep_ns
        self._asleep_ns = self._read_asleep_ns()
        self._lock = threading.RLock()

    def look(self, woke: Callable[[], None]) -> None:
        """Call ``woke`` if the machine has slept since the last time; whoever looks meanwhile waits for that."""
        if abs(self._read_asleep_ns() - self._asleep_ns) <= _SLEPT_NS:
            return
        with self._lock:
            asleep_ns = self._read_asleep_ns()
            if abs(asleep_ns - self._asleep_ns) > _SLEPT_NS:
                woke()
                self._asleep_ns = asleep_ns


def _asleep_ns(clock_ns: Callable[[], int] = time.monotonic_ns) -> int:
    return 0 if _BOOT_CLOCK is None else time.clock_gettime_ns(_BOOT_CLOCK) - clock_ns()

"""The interpreter's lock, between the app's threads and ours: whoever has it can see which of us have long wanted it.

An app that lets go of the lock for a moment in each call (`os.urandom` does) wakes a thread of ours that waits for it,
and has taken it back before that one is awake. CPython's own remedy never comes: a thread that is woken in vain begins
its 5 ms anew (`take_gil` in Python/ceval_gil.h). So the thread waits for a second and more, and on a machine of several
CPUs each call pays some 50 us for waking it. Once it has the lock for a moment, both are over.
"""

from __future__ import annotations

import sys
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Final

from otel_llm_energy.quantities import NS_PER_SECOND
from otel_llm_energy.tracing.forks import after_fork_in_child, threads_are_green

_LATE_NS: Final = 1_000_000  # a thread that gets the lock when it asks for it has done most of what it does by then
_SLOW_NS: Final = 20_000_000  # what takes longer waits for a network, if for anything
_ASIDE_SECONDS: Final = 0.00001  # to which Linux adds 50 us (timer slack, prctl(2)): a thread wakes up meanwhile
_has_lock: Final[Callable[[], bool]] = getattr(sys, "_is_gil_enabled", lambda: True)


class RightOfWay:
    """Which threads of ours share one lock with the app's.

    Args:
        clock_ns: the monotonic clock.
        sleep: lets go of the lock for so many seconds.
    """

    def __init__(
        self, clock_ns: Callable[[], int] = time.monotonic_ns, sleep: Callable[[float], object] = time.sleep
    ) -> None:
        self.clock_ns = clock_ns
        self._sleep = sleep
        self._threads: list[BackgroundThread] = []
        after_fork_in_child(weakref.WeakMethod(self._forget_all))

    def give_way(self) -> None:
        """Let go of the lock once, if somebody has wanted it for long. Takes no lock of its own."""
        now_ns = self.clock_ns()
        for thread in self._threads:
            if _LATE_NS < now_ns - thread.since_ns < _SLOW_NS:
                self._sleep(_ASIDE_SECONDS)
                return

    def add(self, thread: BackgroundThread) -> None:
        """It takes part, unless threads are played by one, which must not run others within a call."""
        if _has_lock() and not threads_are_green():
            self._threads.append(thread)

    def remove(self, thread: BackgroundThread) -> None:
        """It ends."""
        with suppress(ValueError):
            self._threads.remove(thread)

    def _forget_all(self) -> None:
        self._threads.clear()


RIGHT_OF_WAY: Final = RightOfWay()


class BackgroundThread:
    """A thread of ours, as a context manager around all that it does.

    Attributes:
        since_ns: from when on it wants the lock, by the monotonic clock; ahead of it while it waits for something else.
    """

    def __init__(self, right_of_way: RightOfWay = RIGHT_OF_WAY) -> None:
        self._right_of_way = right_of_way
        self.since_ns = 0

    def __enter__(self) -> BackgroundThread:
        self._right_of_way.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._right_of_way.remove(self)

    @contextmanager
    def waiting(self, seconds: float) -> Iterator[None]:
        """Around what it waits at, for so long at most."""
        self.since_ns = self._right_of_way.clock_ns() + int(seconds * NS_PER_SECOND)
        try:
            yield
        finally:
            self.since_ns = self._right_of_way.clock_ns()

    def woken(self) -> None:
        """It waits no more, as another thread knows that has ended the wait."""
        self.since_ns = min(self.since_ns, self._right_of_way.clock_ns())

"""What a call that ended inside the SDK still has to tell the SDK."""

from __future__ import annotations

import atexit
import inspect
from collections import deque
from collections.abc import Callable
from typing import Final

_SDK: Final = "opentelemetry.sdk."


class Backlog:
    """Reports that wait until no lock of the SDK can be held by the thread that makes them.

    An abandoned stream that is part of a cycle ends while it is collected: in any thread, at any allocation, also of
    one that is inside the SDK and holds a lock there. To record a metric, or to end a span, might wait for ever.
    """

    def __init__(self) -> None:
        self._reports: deque[Callable[[], None]] = deque()

    def __bool__(self) -> bool:
        return bool(self._reports)

    def add(self, report: Callable[[], None]) -> None:
        """Keep it until `make_up`, or the exit. ``report`` must not raise."""
        atexit.register(self.make_up)  # so late, it runs before the providers' own hooks
        self._reports.append(report)

    def make_up(self) -> None:
        """Make the reports that wait. Not to be called where a collection may be the caller."""
        atexit.unregister(self.make_up)
        while self._reports:
            try:
                report = self._reports.popleft()
            except IndexError:  # another thread was faster
                return
            report()


def is_inside_sdk() -> bool:
    """Whether the SDK is among the callers, and so may hold a lock that it does not take twice."""
    frame = inspect.currentframe()
    while frame is not None:
        if str(frame.f_globals.get("__name__")).startswith(_SDK):
            return True
        frame = frame.f_back
    return False

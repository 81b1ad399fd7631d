"""Waiting for what comes later, in another thread or process."""

from __future__ import annotations

import time
from collections.abc import Callable


def until(condition: Callable[[], bool], timeout_seconds: float = 30) -> None:
    """Return once ``condition()`` holds; fail if that takes too long."""
    deadline_seconds = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline_seconds, "That took too long."
        time.sleep(0.02)

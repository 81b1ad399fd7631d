"""What a command is doing, on stderr: standard output is for results."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

_LOOK_SECONDS = 0.1


def say(text: str) -> None:
    """One line."""
    print(text, file=sys.stderr, flush=True)


def can_be_redrawn() -> bool:
    """Whether stderr is a terminal that obeys more than the end of a line: editors' shells (``TERM=dumb``) do not."""
    return sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


def count_up(what: str, done: Callable[[], bool], at_least_seconds: float, at_most_seconds: float) -> bool:
    """Show the seconds that pass until ``done()``; on a terminal in place.

    Returns:
        whether it was done in time.
    """
    live = can_be_redrawn()
    started_seconds = time.monotonic()
    if not live:
        say(f"{what} ...")
    while (passed_seconds := time.monotonic() - started_seconds) < at_most_seconds:
        if live:
            print(f"\r{what}: {passed_seconds:.0f} s ", end="", file=sys.stderr, flush=True)
        if passed_seconds >= at_least_seconds and done():
            break
        time.sleep(_LOOK_SECONDS)
    if live:
        print("\r\033[K", end="", file=sys.stderr, flush=True)
    return done()

"""What must start afresh in a forked child: its threads are gone, and locks may be held for ever."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable


def after_fork_in_child(method: weakref.WeakMethod[Callable[[], None]]) -> None:
    """Call a bound method in every forked child, as long as its object lives."""

    def renew() -> None:
        bound = method()
        if bound is not None:
            bound()

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=renew)

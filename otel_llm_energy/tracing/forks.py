"""What must start afresh in a forked child: its threads are gone, and locks may be held for ever."""

from __future__ import annotations

import os
import sys
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


def at_exit_of_worker(hook: Callable[[], None]) -> None:
    """Call ``hook`` at the end of this process if it is a worker of multiprocessing, or of billiard, which is Celery's.

    A forked one runs none of the interpreter's exit hooks; these libraries have their own, which each fork forgets.
    """
    for name in ("multiprocessing.util", "billiard.util"):
        library = sys.modules.get(name)
        if library is not None:
            library.Finalize(None, hook, exitpriority=0)

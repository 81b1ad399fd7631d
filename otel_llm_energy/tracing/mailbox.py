"""Run actions one at a time and in order, without ever blocking whoever posts one."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Any


class Mailbox:
    """Actions are queued. The thread that posts one runs the queue until it is empty, unless another thread is at it.

    So actions never run at the same time, and state that only they touch needs no lock. A plain lock around that state
    would deadlock: the garbage collector may end a span (of an abandoned stream) at any instruction, also in a thread
    that holds the lock already.

    Args:
        on_error: told, inside the ``except`` block, that an action raised.
        most_noted: whoever notes an action beyond so many helps to run them.
    """

    def __init__(self, on_error: Callable[[], None], most_noted: int = sys.maxsize) -> None:
        self._on_error = on_error
        self._most_noted = most_noted
        self.renew()

    def renew(self) -> None:
        """Start afresh, as a forked child must: forget what is posted and whoever was at work."""
        self._actions: deque[tuple[Any, ...]] = deque()  # a function and its arguments
        self._work = threading.RLock()
        self._worker: int | None = None

    def note(self, action: Callable[..., object], *arguments: object) -> None:
        """Have ``action`` run, after all that was posted before it, by whoever works next."""
        self._actions.append((action, *arguments))
        if len(self._actions) > self._most_noted:
            self.work()

    def post(self, action: Callable[..., object], *arguments: object) -> None:
        """Run ``action`` after all that was posted before it: now, or soon by the thread that is at work."""
        self._actions.append((action, *arguments))
        self.work()

    def work(self) -> None:
        """Run what is there to run, unless another thread is at it: then that one does."""
        if self._worker == threading.get_ident():
            return
        # Looked at again after each release: what is posted while the worker leaves has no other taker.
        while self._actions and self._work.acquire(blocking=False):
            self._run_all()

    def __len__(self) -> int:
        return len(self._actions)

    def wait(self) -> None:
        """Return once all that was posted before is done; at once if called by an action."""
        if self._worker == threading.get_ident():
            return
        self._work.acquire()
        self._run_all()

    def _run_all(self) -> None:
        self._worker = threading.get_ident()
        try:
            while self._actions:
                self._run(*self._actions.popleft())
        finally:
            self._worker = None
            self._work.release()

    def _run(self, action: Callable[..., object], *arguments: object) -> None:
        try:
            action(*arguments)
        except Exception:  # noqa: BLE001 - the owner logs it; the next action must run
            self._on_error()

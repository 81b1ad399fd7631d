"""What must start afresh in a forked child: its threads are gone, and locks may be held for ever."""

from __future__ import annotations

import _thread
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable

_UNTIL_EXEC_SECONDS = 0.05


def after_fork_in_child(method: weakref.WeakMethod[Callable[[], object]]) -> None:
    """Call a bound method in every forked child, as long as its object lives."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=while_alive(method))


def while_alive(method: weakref.WeakMethod[Callable[[], object]]) -> Callable[[], None]:
    """Calls a bound method, as long as its object lives."""

    def call() -> None:
        bound = method()
        if bound is not None:
            bound()

    return call


def start_in_child(work: Callable[[], None]) -> None:
    """For a hook in a forked child: start threads at once, or a moment later where the hook must not wait for them.

    Where gevent plays threads, whoever waits in the hook, even for a thread to start, lets the parent's green threads
    run on in the child, so that what they do is done twice. And all that its ``subprocess`` starts are such children.
    """
    if threads_are_green():
        _thread.start_new_thread(_do_later, (work,))
    else:
        work()


def threads_are_green() -> bool:
    """What `threading` starts are no threads, but played by one, as by gevent."""
    return _thread.start_new_thread.__module__ != "_thread"


def _do_later(work: Callable[[], None]) -> None:
    time.sleep(_UNTIL_EXEC_SECONDS)
    work()


def rest_for_ever() -> None:
    """For a thread of the parent's that lives on in a forked child, as gevent's do, where it is to do nothing.

    Were it to end there, gevent would write a traceback: `threading` knows it no more.
    """
    threading.Event().wait()


def at_exit_of_worker(hook: Callable[[], None]) -> None:
    """Call ``hook`` at the end of this process if it is a forked worker of multiprocessing, of billiard or of Celery.

    Such a one runs none of the interpreter's exit hooks; these libraries have their own, which each fork forgets. Those
    of Celery's pool do not even run billiard's, but send a signal.
    """
    for name in ("multiprocessing", "billiard"):
        processes, library = sys.modules.get(f"{name}.process"), sys.modules.get(f"{name}.util")
        if processes is not None and library is not None and _is_forked(processes.current_process().name):
            library.Finalize(None, hook, exitpriority=0)
    signals = sys.modules.get("celery.signals")
    if signals is not None:
        pid = os.getpid()  # a forked worker has what its parent connected, and connects its own
        signals.worker_process_shutdown.connect(lambda **_: hook() if os.getpid() == pid else None, weak=False)


def _is_forked(process_name: str) -> bool:
    """Those that were started anew end as any program does."""
    return process_name != "MainProcess" and not {"--multiprocessing-fork", "--billiard-fork"} & set(sys.orig_argv)

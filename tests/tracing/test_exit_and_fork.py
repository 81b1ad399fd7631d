"""Real interpreter exits and real forks, each in a process of its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from otel_llm_energy.tracing.forks import at_exit_of_worker
from tests.tracing.children import run_child
from tests.tracing.fakes import Pipeline


@pytest.mark.parametrize("program", ["exit_with_batch", "exit_with_pool"])
def test_held_spans_are_exported_when_the_interpreter_exits(program: str) -> None:
    """Our hook runs before the provider's, and a pool that is shut already does not matter."""
    lines = run_child(program)
    assert lines == ["chat 0.5 shutdown", "agent of chat 0.5", "exporter shut down"]


def test_call_in_an_exit_hook_is_exported_when_no_thread_can_start() -> None:
    """The last call of a program may come when the interpreter is on its way out."""
    assert run_child("exit_before_the_thread_started")[:2] == ["chat 0.5 shutdown", "agent of chat 0.5"]


def test_call_in_an_exit_hook_has_its_energy_when_ours_has_run_before() -> None:
    """Exit hooks run youngest first, so that an app's goodbye, or the end of an open stream, may come after ours."""
    lines = run_child("exit_with_a_late_call")
    assert lines == ["chat 0.5 shutdown", "agent of chat 0.5", "late 2.0", "exporter shut down"]


def test_each_process_exports_its_own_when_forked_while_spans_are_held() -> None:
    """Held spans leave once, in the parent; the child's ancestors say what they know to be missing."""
    assert sorted(run_child("fork_while_held")) == sorted(
        [
            "child 2.0",
            "agent of child 2.0",
            "root 2.0",
            "before 1.0",
            "agent of before 1.0",
            "parent 2.0",
            "agent of parent 2.0",
            "root 3.0",
            "exporter shut down",
        ]
    )


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_what_was_counted_does_not_go_down_in_a_forked_child() -> None:
    """The SDK's counters go on there; as a difference, the one that began anew was less than nothing."""
    line = Pipeline()
    for name in ("first", "held"):
        span = line.tracer.start_span(name)
        claim = line.call(span)
        span.end()
        if name == "first":
            line.desk.settle(claim, 1.0)
    line.sent()
    assert (line.gate.health.forwarded, line.gate.health.held) == (1, 1)
    child = os.fork()
    if not child:
        health = line.gate.health
        os._exit(0 if (health.forwarded, health.held) == (1, 0) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_held_spans_are_exported_when_a_worker_of_multiprocessing_ends() -> None:
    """As in a ProcessPoolExecutor: such a process ends without the interpreter's exit hooks."""
    names = ("first", "second", "before")
    spans = [line for name in names for line in (f"{name} 0.5 shutdown", f"agent of {name} 0.5")]
    assert run_child("worker_of_multiprocessing") == [*spans, "exporter shut down"]


def test_held_spans_are_handed_on_when_a_worker_of_celery_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pool sends a signal and runs no hook at all (seen with Celery 5.7, for whose signals a list stands here).

    A worker also has what its parent connected before the fork: each hook is for the process that it was made in.
    """
    receivers: list[Callable[..., None]] = []

    def connect(receiver: Callable[..., None], *, weak: bool) -> None:
        assert not weak
        receivers.append(receiver)

    shutdown = SimpleNamespace(connect=connect)
    monkeypatch.setitem(sys.modules, "celery.signals", SimpleNamespace(worker_process_shutdown=shutdown))
    ended: list[str] = []
    with monkeypatch.context() as parent:
        parent.setattr("os.getpid", lambda: -1)
        at_exit_of_worker(lambda: ended.append("parent"))
    at_exit_of_worker(lambda: ended.append("worker"))
    for receiver in receivers:
        receiver(sender="worker", pid=1, exitcode=0)
    assert ended == ["worker"]


def test_child_works_when_another_thread_was_inside_at_the_fork() -> None:
    """No lock of ours survives a fork."""
    assert run_child("fork_in_the_middle_of_our_work") == ["child 2.0", "agent of child 2.0", "exporter shut down"]

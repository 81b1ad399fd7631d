"""The forwarding thread and what it waits at, and the processor that comes after it."""

from __future__ import annotations

import queue
import threading
from typing import Any

import pytest
from opentelemetry.sdk.trace import SpanProcessor

from otel_llm_energy.tracing.forks import rest_for_ever
from otel_llm_energy.tracing.forward import Downstream, Forwarder
from tests.support.waiting import until


def test_items_go_through_the_queue_of_now_when_it_was_replaced_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """As gevent does; this only plays it: gevent may crash an interpreter in which threads run already."""
    made: list[object] = []

    class Replacement(queue.Queue[Any]):
        def __init__(self) -> None:
            super().__init__()
            made.append(self)

    sent: list[str] = []
    forwarder: Forwarder[str] = Forwarder(sent.append, lambda: 1.0, capacity=8)
    monkeypatch.setattr(queue, "SimpleQueue", Replacement)
    forwarder.put("first")
    forwarder.put("second")
    assert forwarder.stop(timeout_seconds=10)
    assert sent == ["first", "second"]
    assert len(made) == 1


def test_items_are_sent_in_order_when_the_thread_can_be_started_only_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit on processes may be reached for a moment; else all would wait for a flush, or the exit."""
    start, failures = threading.Thread.start, [RuntimeError("can't start new thread")] * 2

    def fail_twice(thread: threading.Thread) -> None:
        if failures:
            raise failures.pop()
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", fail_twice)
    sent: list[str] = []
    forwarder: Forwarder[str] = Forwarder(sent.append, lambda: 60.0, capacity=8)
    for item in ("first", "second", "third"):
        forwarder.put(item)
    until(lambda: sent == ["first", "second", "third"])
    assert forwarder.stop(timeout_seconds=10)


def test_forwarder_of_the_parent_sends_nothing_in_a_forked_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where gevent plays threads it lives on there, and would send a second time what the parent sends."""
    sent: list[str] = []
    rests = threading.Event()
    monkeypatch.setattr("otel_llm_energy.tracing.forward.rest_for_ever", lambda: (rests.set(), rest_for_ever()))
    forwarder: Forwarder[str] = Forwarder(sent.append, lambda: 60.0, capacity=8)
    forwarder.put("before")
    assert forwarder.flush(10)
    queued = forwarder._queue
    forwarder.renew()
    queued.put("the parent's")
    assert rests.wait(10)
    assert sent == ["before"]


@pytest.mark.parametrize(("answer", "flushed"), [(True, True), (None, True), (False, False)])
def test_flush_has_failed_only_when_the_next_processor_says_so(answer: Any, flushed: bool) -> None:
    """A user's own may return nothing, and has flushed all the same."""

    class Answering(SpanProcessor):
        def force_flush(self, timeout_millis: int = 30_000) -> bool:
            return answer  # type: ignore[no-any-return]

    assert Downstream(Answering()).force_flush(1_000) is flushed

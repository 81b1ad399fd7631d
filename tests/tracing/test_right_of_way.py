"""When a call's end lets our threads have the interpreter."""

from __future__ import annotations

import _thread
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest

from otel_llm_energy.tracing.forward import Forwarder
from otel_llm_energy.tracing.pollers import Poller
from otel_llm_energy.tracing.right_of_way import RIGHT_OF_WAY, BackgroundThread, RightOfWay
from tests.support.waiting import until
from tests.tracing.fakes import ManualClock

_ASIDE_SECONDS = 0.00001


class _Road:
    """A right of way whose clock stands still, and what those slept that gave way."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.slept_seconds: list[float] = []
        self.right_of_way = RightOfWay(self.clock, self.slept_seconds.append)

    def gives_way_after(self, seconds: float) -> bool:
        self.clock.advance(seconds)
        before = len(self.slept_seconds)
        self.right_of_way.give_way()
        return len(self.slept_seconds) > before


@pytest.fixture(autouse=True)
def _with_a_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the tests themselves run without one."""
    monkeypatch.setattr("otel_llm_energy.tracing.right_of_way._has_lock", lambda: True)


def test_call_gives_way_to_a_thread_that_is_late_and_to_no_other() -> None:
    road = _Road()
    with BackgroundThread(road.right_of_way) as thread, thread.waiting(0.5):
        assert not road.gives_way_after(0.5)  # it is due just now
        assert road.gives_way_after(0.002)
        assert road.gives_way_after(0.01)  # it has not come to it yet
        assert not road.gives_way_after(0.01)  # whatever it waits for, it is not us
    assert road.slept_seconds == [_ASIDE_SECONDS, _ASIDE_SECONDS]


def test_call_gives_way_to_a_thread_that_is_at_work() -> None:
    """It may have let go of the interpreter, to read a file, and have waited for it since."""
    road = _Road()
    with BackgroundThread(road.right_of_way) as thread:
        with thread.waiting(60.0):
            pass
        assert not road.gives_way_after(0.0005)
        assert road.gives_way_after(0.001)
        assert not road.gives_way_after(0.1)


def test_thread_that_another_one_wakes_is_late_from_then_on() -> None:
    road = _Road()
    with BackgroundThread(road.right_of_way) as thread, thread.waiting(60.0):
        assert not road.gives_way_after(1.0)
        thread.woken()
        assert not road.gives_way_after(0.0005)
        assert road.gives_way_after(0.001)


def test_waking_a_thread_that_is_late_already_makes_it_no_less_so() -> None:
    road = _Road()
    with BackgroundThread(road.right_of_way) as thread, thread.waiting(0):
        road.clock.advance(0.002)
        thread.woken()
        assert road.gives_way_after(0)


def test_call_gives_way_once_however_many_threads_are_late() -> None:
    road = _Road()
    one, other = BackgroundThread(road.right_of_way), BackgroundThread(road.right_of_way)
    with one, other, one.waiting(0), other.waiting(0):
        assert road.gives_way_after(0.002)
    assert len(road.slept_seconds) == 1


def test_nobody_gives_way_to_a_thread_that_has_ended() -> None:
    road = _Road()
    with BackgroundThread(road.right_of_way) as thread, thread.waiting(0):
        pass
    assert not road.gives_way_after(0.002)


def test_nobody_gives_way_to_green_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """As gevent plays them: others of the app's would run within a call that ends in the hub, where none may."""

    def spawn(function: Callable[..., Any], arguments: tuple[Any, ...]) -> None: ...

    monkeypatch.setattr(_thread, "start_new_thread", spawn)
    road = _Road()
    with BackgroundThread(road.right_of_way) as thread, thread.waiting(0):
        assert not road.gives_way_after(0.002)


def test_nobody_gives_way_where_threads_share_no_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("otel_llm_energy.tracing.right_of_way._has_lock", lambda: False)
    road = _Road()
    with BackgroundThread(road.right_of_way) as thread, thread.waiting(0):
        assert not road.gives_way_after(0.002)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_forked_child_gives_way_to_none_of_the_threads_of_its_parent() -> None:
    road = _Road()
    with BackgroundThread(road.right_of_way) as thread, thread.waiting(0):
        child = os.fork()
        if not child:
            os._exit(int(road.gives_way_after(0.002)))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert road.gives_way_after(0.002)  # the parent still does


class _Work:
    """Something that a thread does until the test lets it go on."""

    def __init__(self) -> None:
        self.began, self.may_end = threading.Event(), threading.Event()

    def __call__(self) -> float:
        self.began.set()
        self.may_end.wait(10)
        return 60.0


_Deed = Callable[[], None]


def _poller(work: _Work) -> tuple[_Deed, _Deed]:
    """One that is at this work; what wakes it, and what ends it."""
    poller = Poller("seen", work)
    poller.start()
    return poller.wake, lambda: poller.stop(timeout_seconds=10)


def _forwarder(work: _Work) -> tuple[_Deed, _Deed]:
    def send(item: str) -> None:
        work()

    def end() -> None:
        assert forwarder.stop(timeout_seconds=10)

    forwarder: Forwarder[str] = Forwarder(send, lambda: 60.0, capacity=8)
    forwarder.put("first")
    return lambda: forwarder.put("second"), end


@pytest.mark.parametrize("start", [_poller, _forwarder])
def test_thread_is_seen_to_want_the_interpreter_at_its_work_and_when_it_is_woken(
    start: Callable[[_Work], tuple[_Deed, _Deed]],
) -> None:
    def wants() -> bool:
        return seen.since_ns <= RIGHT_OF_WAY.clock_ns()

    work, before = _Work(), list(RIGHT_OF_WAY._threads)
    wake, end = start(work)
    assert work.began.wait(10)
    (seen,) = (thread for thread in RIGHT_OF_WAY._threads if thread not in before)
    assert wants()
    work.may_end.set()
    until(lambda: not wants())
    work.began.clear()
    work.may_end.clear()
    wake()
    assert wants()
    assert work.began.wait(10)
    work.may_end.set()
    end()
    assert seen not in RIGHT_OF_WAY._threads

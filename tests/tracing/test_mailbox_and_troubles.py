"""The two small helpers: actions one at a time, and words at most once a minute."""

from __future__ import annotations

import logging
import threading

import pytest

from otel_llm_energy.tracing.mailbox import Mailbox
from otel_llm_energy.troubles import Troubles
from tests.tracing.fakes import ManualClock


def test_action_posted_by_an_action_runs_after_it() -> None:
    """Actions never nest, and waiting inside one does not wait for itself."""
    mailbox, done = Mailbox(lambda: None), []

    def outer() -> None:
        mailbox.post(lambda: done.append("inner"))
        mailbox.wait()
        done.append("outer")

    mailbox.post(outer)
    assert done == ["outer", "inner"]


def test_noted_action_waits_for_whoever_works_next() -> None:
    """It costs the one who notes it nothing, and keeps its place before what is posted later."""
    mailbox, done = Mailbox(lambda: None), []
    mailbox.note(done.append, "noted")
    mailbox.note(done.append, "noted, too")
    assert done == []
    mailbox.post(done.append, "posted")
    assert done == ["noted", "noted, too", "posted"]
    mailbox.note(done.append, "last")
    mailbox.work()
    assert done[-1] == "last"


def test_who_notes_more_than_may_wait_helps() -> None:
    """Where nobody comes to work, what waits stays bounded."""
    mailbox, done = Mailbox(lambda: None, most_noted=2), []
    for number in range(1, 6):
        mailbox.note(done.append, number)
        assert done == ([] if number < 3 else [1, 2, 3])
    assert len(mailbox) == 2


def test_poster_is_not_blocked_when_another_thread_is_at_work() -> None:
    """Whoever is at work takes over what is posted meanwhile; wait() waits for it."""
    mailbox, done = Mailbox(lambda: None), []
    entered, leave = threading.Event(), threading.Event()

    def long() -> None:
        entered.set()
        leave.wait(30)
        done.append("long")

    worker = threading.Thread(target=mailbox.post, args=(long,))
    worker.start()
    assert entered.wait(30)
    mailbox.post(lambda: done.append("short"))
    assert done == []
    leave.set()
    mailbox.wait()
    assert done == ["long", "short"]
    worker.join()


def test_next_action_runs_when_one_raises() -> None:
    """A failure is reported and does not stop the others."""
    errors, done = [], []
    mailbox = Mailbox(lambda: errors.append("told"))
    mailbox.post(lambda: 1 // 0)
    mailbox.post(lambda: done.append("next"))
    assert (errors, done) == (["told"], ["next"])


def test_no_action_is_lost_when_many_threads_post() -> None:
    """Each action runs exactly once, never two at a time."""
    mailbox, inside, done = Mailbox(lambda: None), [], []

    def action() -> None:
        inside.append(1)
        done.append(len(inside))
        inside.pop()

    threads = [threading.Thread(target=lambda: [mailbox.post(action) for _ in range(500)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert done == [1] * 4000


def test_one_line_a_minute_is_logged_for_each_kind_of_trouble(caplog: pytest.LogCaptureFixture) -> None:
    """The first of a kind is said at once; its repeats only after a minute."""
    clock = ManualClock()
    troubles = Troubles(logging.getLogger("tracing-test"), clock_ns=clock)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            troubles.warn("a", "a %d", 1)
            troubles.warn("b", "b")
        clock.advance(59.0)
        troubles.warn("a", "a %d", 2)
        clock.advance(1.0)
        troubles.warn("a", "a %d", 3)
    assert [record.getMessage() for record in caplog.records] == ["a 1", "b", "a 3"]

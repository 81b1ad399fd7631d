"""Processes of one user on one host share their metering, whatever becomes of any of them."""

from __future__ import annotations

import signal

import pytest

from otel_llm_energy import conventions as names
from tests.host.workers import Crew, Results, together
from tests.support.waiting import until


def assert_adds_up(results: Results, within: float = 1e-3) -> None:
    """What was metered is on spans or nobody's."""
    assert results.metered_joules > 0
    assert results.joules + results.unattributed_joules == pytest.approx(results.metered_joules, rel=within)


def assert_measured(results: Results, count: int, *, another_holder: bool = False) -> None:
    """All calls have joules that are measured well; on a busy machine the readings may be rare for such short calls.

    Between one holder and ``another_holder`` nobody may sample what the server does of a call.
    """
    assert len(results.calls) == count
    assert all(names.JOULES in call for call in results.calls), results
    assert results.reasons <= ({"coarse-meter", "part-unknown"} if another_holder else {"coarse-meter"}), results


def test_energy_of_all_processes_adds_up_when_they_call_at_once(workers: Crew) -> None:
    """One reads the meters and accounts for them; each call of each is billed once, and says whom it shared with."""
    hired = workers.hire_metered(3)
    assert [worker.role for worker in hired] == ["holder", "member", "member"]
    for worker in hired:
        worker.tell("begin 3 8")
    for worker in hired:
        worker.tell("wait")
    until(lambda: all(worker.tell("status")["spans"] == 3 for worker in hired))
    members = [worker.finish() for worker in hired[1:]]
    assert [each.metered_joules for each in members] == [0, 0]
    results = together([*members, hired[0].finish()])
    assert_measured(results, 9)
    assert "shared" in {call[names.QUALITY] for call in results.calls}
    assert_adds_up(results)


def test_others_go_on_when_the_holder_is_killed(workers: Crew) -> None:
    """Calls under way are billed by the next holder as if nothing had happened; the killed one's are nobody's."""
    holder, *others = workers.hire_metered(3)
    for worker in (holder, *others):
        worker.tell("begin 4 16")
    until(lambda: others[0].tell("status")["spans"] >= 1)
    holder.send(signal.SIGKILL)
    for worker in others:
        worker.tell("wait")
    until(lambda: all(worker.tell("status")["spans"] == 4 for worker in others))
    assert {worker.role for worker in others} == {"holder", "member"}
    results = together([worker.finish() for worker in others])
    assert_measured(results, 8, another_holder=True)


@pytest.mark.e2e
def test_others_go_on_when_the_holder_is_undone(workers: Crew) -> None:
    """What it had metered by then it has accounted for, the next holder for the rest: together all of it."""
    holder, other = workers.hire_metered(2)
    other.tell("begin 8 16")
    until(lambda: other.tell("status")["spans"] >= 1)
    first = holder.finish()
    other.tell("wait")
    until(lambda: other.tell("status")["spans"] == 8)
    until(lambda: other.role == "holder")
    results = together([first, other.finish()])
    assert_measured(results, 8, another_holder=True)
    assert_adds_up(results)


@pytest.mark.e2e
def test_energy_adds_up_when_the_holder_exits(workers: Crew) -> None:
    """What is metered after its metrics went out for the last time, another one has to meter."""
    holder, other = workers.hire_metered(2)
    holder.tell("ask 1 8")
    first = holder.exit()
    other.tell("ask 2 8")
    results = together([first, other.finish()])
    assert_measured(results, 3)
    assert_adds_up(results)


@pytest.mark.e2e
def test_what_is_metered_is_recorded_when_the_first_process_has_no_metrics(workers: Crew) -> None:
    """As the parent of gunicorn's preloaded workers, or of Celery's: one that has metrics relieves it of the meters."""
    parent = workers.hire(UNRECORDED="1")
    until(lambda: parent.role == "holder")
    worker = workers.hire()
    until(lambda: worker.role == "holder")
    worker.tell("ask 2 8")
    until(lambda: worker.tell("status")["spans"] == 2)
    until(lambda: parent.role == "member")
    results = worker.finish()
    assert_measured(results, 2)
    assert_adds_up(results)


@pytest.mark.e2e
def test_next_one_reads_the_meters_when_the_holder_is_stopped(workers: Crew) -> None:
    """After a time limit, and it says so. The stopped one, once it goes on, is a member and its calls are billed."""
    holder, *others = workers.hire_metered(3)
    holder.tell("begin 1 48")
    holder.send(signal.SIGSTOP)
    for worker in others:
        worker.tell("ask 1 8")
    until(lambda: all(worker.tell("status")["spans"] == 1 for worker in others))
    assert {worker.role for worker in others} == {"holder", "member"}
    holder.send(signal.SIGCONT)
    until(lambda: holder.role == "member")
    holder.tell("wait")
    until(lambda: holder.tell("status")["spans"] == 1)
    results = together([worker.finish() for worker in (holder, *others)])
    assert len(results.calls) == 3
    assert all(names.JOULES in call for call in results.calls), results
    said = "".join(worker.end() for worker in others)
    assert "does not answer (is it stopped?)" in said


@pytest.mark.e2e
def test_nobody_waits_for_a_member_that_is_stopped(workers: Crew) -> None:
    """Longer than a moment; what it says late is billed as well as it can be."""
    holder, stopped, other = workers.hire_metered(3)
    stopped.send(signal.SIGSTOP)
    for worker in (holder, other):
        worker.tell("ask 2 8")
    until(lambda: all(worker.tell("status")["spans"] == 2 for worker in (holder, other)))
    stopped.send(signal.SIGCONT)
    stopped.tell("ask 1 8")
    until(lambda: stopped.tell("status")["spans"] == 1)
    results = together([worker.finish() for worker in (stopped, other, holder)])
    assert_measured(results, 5)
    assert_adds_up(results)


@pytest.mark.e2e
def test_member_that_is_killed_is_not_waited_for(workers: Crew) -> None:
    """Its calls are nobody's; metered is still the sum of all that is said."""
    holder, killed = workers.hire_metered(2)
    killed.tell("begin 1 48")
    holder.tell("ask 1 8")
    killed.send(signal.SIGKILL)
    holder.tell("ask 1 8")
    until(lambda: holder.tell("status")["spans"] == 2)
    assert holder.tell("status")["members"] == 0
    results = holder.finish()
    assert len(results.calls) == 2
    assert_adds_up(results)


def test_forked_child_is_a_member_of_its_own(workers: Crew) -> None:
    """It has none of its parent's descriptors and threads: the parent goes on holding the board, and bills both."""
    (parent,) = workers.hire_metered(1)
    parent.tell("ask 1 8")
    child = parent.tell("fork")
    assert child["role"] == "member"
    assert child["holder"] == parent.pid
    assert_measured(Results(child["calls"]), 1)
    parent.tell("ask 1 8")
    until(lambda: parent.tell("status")["spans"] == 2)
    own = parent.finish()
    both = together([own, Results(child["calls"])])
    assert len(both.calls) == 3
    assert_adds_up(both)


def test_work_of_a_member_is_not_taken_for_that_of_another_container(workers: Crew) -> None:
    """Both have a process 1. Who reads the meters cannot see what the other's does, and the bill says so."""
    holder, member = workers.hire_in_container(), workers.hire_in_container()
    until(lambda: holder.tell("status")["members"] == 1 and bool(holder.tell("status")["channels"]))
    holder.tell("work 100")
    member.tell("work 500")
    assert member.tell("flush")
    assert holder.tell("flush")
    assert member.finish().reasons == {"part-unknown"}
    assert holder.finish().reasons <= {"coarse-meter"}


@pytest.mark.e2e
def test_processes_of_different_settings_say_so(workers: Crew) -> None:
    """Each measures alone, neither sees the other's calls, and the bills of both are degraded for it."""
    holder = workers.hire()
    until(lambda: bool(holder.tell("status")["channels"]))
    stranger = workers.hire(OTEL_LLM_ENERGY_IDLE="none")
    until(lambda: stranger.role == "alone" and bool(stranger.tell("status")["channels"]))
    for worker in (holder, stranger):
        worker.tell("ask 1 8")
        until(lambda worker=worker: worker.tell("status")["spans"] == 1)  # type: ignore[misc]
    assert [worker.role for worker in (holder, stranger)] == ["holder", "alone"]
    assert "other options of metering" in stranger.tell("status")["message"]
    for worker in (holder, stranger):
        assert worker.finish().reasons == {"board-mismatch"}
        assert "other options of metering" in worker.end()

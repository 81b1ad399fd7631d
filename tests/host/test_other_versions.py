"""Processes of different versions of the package on one host: neither takes the other's words for something else."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from otel_llm_energy import conventions as names
from tests.host.versions import first_in_path, garbled_version, next_version
from tests.host.workers import Crew, Worker
from tests.support.waiting import until

Other = Callable[[Path], Path]


def hired_first(workers: Crew, path: str) -> Worker:
    """Reads the meters."""
    worker = workers.hire(PYTHONPATH=path)
    until(lambda: bool(worker.tell("status")["channels"]))
    assert worker.role == "holder"
    return worker


def hired_second(workers: Crew, path: str) -> Worker:
    """Cannot be a member, and knows."""
    worker = workers.hire(PYTHONPATH=path)
    until(lambda: worker.role == "alone" and bool(worker.tell("status")["channels"]))
    return worker


def paths(workers: Crew, other: Path, *, other_first: bool) -> tuple[str, str]:
    """``PYTHONPATH`` of the first and of the second process."""
    this = workers.environment["PYTHONPATH"]
    found = (first_in_path(other, this), this)
    return found if other_first else found[::-1]


@pytest.mark.parametrize(
    "other_first", [pytest.param(True, marks=pytest.mark.e2e), False], ids=["next-first", "this-first"]
)
@pytest.mark.parametrize("other", [next_version, pytest.param(garbled_version, marks=pytest.mark.e2e)])
def test_each_goes_on_with_its_own_figures_when_versions_differ(
    workers: Crew, tmp_path: Path, other: Other, other_first: bool
) -> None:
    """Nobody's turn is taken away; each one's bills are degraded, add up, and both say what to do: once in the log."""
    first_path, second_path = paths(workers, other(tmp_path), other_first=other_first)
    holder, stranger = hired_first(workers, first_path), hired_second(workers, second_path)
    for worker in (holder, stranger):
        worker.tell("ask 2 8")
        until(lambda worker=worker: worker.tell("status")["spans"] == 2)  # type: ignore[misc]
    assert [worker.role for worker in (holder, stranger)] == ["holder", "alone"]
    for worker in (holder, stranger):
        assert "version" in worker.tell("status")["message"]
        results = worker.finish()
        assert results.reasons == {"board-mismatch"}
        assert all(names.JOULES in call for call in results.calls), results
        assert results.joules + results.unattributed_joules == pytest.approx(results.metered_joules, rel=1e-3)
        assert worker.end().count("OTEL_LLM_ENERGY_BOARD" if worker is stranger else "sees the other's calls") == 1


@pytest.mark.e2e
def test_the_other_version_holds_the_board_when_the_first_has_gone(workers: Crew, tmp_path: Path) -> None:
    """As in a rolling upgrade: at its next try, within half a minute. It loses none of what it metered alone, and its
    bills are degraded no more."""
    this, following = paths(workers, next_version(tmp_path), other_first=False)
    old, new = hired_first(workers, this), hired_second(workers, following)
    new.tell("ask 1 8")
    until(lambda: new.tell("status")["spans"] == 1)
    old.send(signal.SIGKILL)
    until(lambda: new.role == "holder", 60)
    assert new.tell("status")["message"] == ""
    until(lambda: len({path.stem for path in workers.board.iterdir()}) == 1)  # the last thing that a new holder does
    (newest,) = {path.stem for path in workers.board.iterdir()}
    assert newest.startswith("local.")
    member = workers.hire(PYTHONPATH=following)
    until(lambda: member.role == "member" and new.tell("status")["members"] == 1)
    for worker in (new, member):
        worker.tell("ask 1 8")
    until(lambda: new.tell("status")["spans"] == 2 and member.tell("status")["spans"] == 1)
    member_results, results = member.finish(), new.finish()
    assert {call.get(names.REASON) for call in results.calls} >= {"board-mismatch"}
    assert not {call.get(names.REASON) for call in [*results.calls[1:], *member_results.calls]} - {None, "coarse-meter"}
    said_joules = results.joules + member_results.joules + results.unattributed_joules
    assert said_joules == pytest.approx(results.metered_joules, rel=1e-3)

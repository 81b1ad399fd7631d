"""Whose busy time was it: cells between samples, and a call that fills only a part of one."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from otel_llm_energy.ledger.activity import ActivityLog, Parts
from otel_llm_energy.ledger.timeline import Timeline
from otel_llm_energy.quantities import ActivitySample

MS = 1_000_000


def log(*samples: tuple[int, int, Mapping[str, int | None]], cpus: int = 2) -> ActivityLog:
    """Samples of (time, busy time of all, of each server), in ms, each closing a cell."""
    activity = ActivityLog()
    for at_ms, total_ms, by_server_ms in samples:
        by_server_ns = {name: None if ms is None else ms * MS for name, ms in by_server_ms.items()}
        activity.add(ActivitySample("cpu", at_ms * MS, total_ms * MS, by_server_ns, cpus, MS, 2 * MS), final=True)
    return activity


def at_work(*windows_ms: tuple[int, int], until_ms: int = 10_000) -> Timeline:
    timeline = Timeline(0)
    for start_ms, end_ms in windows_ms:
        timeline.add(start_ms * MS, end_ms * MS)
    timeline.freeze(until_ms * MS)
    return timeline


def parts_ms(parts: Parts) -> tuple[dict[str, float], float]:
    return {name: ns / MS for name, ns in parts.by_server_ns.items()}, parts.others_ns / MS


def test_short_call_gets_its_own_busy_time_when_neighbours_fill_the_cell() -> None:
    """100 ms of work on one CPU in a cell of 1 s, whose other CPU is busy all the time with something else.

    The server's mean over the cell is a tenth of a CPU, but while it worked it had one.
    """
    activity = log((0, 0, {"llm": 0}), (1000, 1100, {"llm": 100}))
    timeline = at_work((400, 500))
    assert parts_ms(activity.parts(400 * MS, 500 * MS, {"llm": timeline})) == ({"llm": 100.0}, 100.0)
    assert parts_ms(activity.parts(0, 400 * MS, {"llm": timeline})) == ({"llm": 0.0}, 400.0)
    assert parts_ms(activity.parts(450 * MS, 550 * MS, {"llm": timeline})) == ({"llm": 50.0}, 100.0)


def test_others_have_what_a_server_leaves_when_the_machine_is_full() -> None:
    """Two CPUs, of which a call takes one for 500 ms of 900: others cannot have had 1.44 all the time."""
    activity = log((0, 0, {"llm": 0}), (900, 1800, {"llm": 500}))
    timelines = {"llm": at_work((200, 700))}
    assert parts_ms(activity.parts(0, 200 * MS, timelines)) == ({"llm": 0.0}, 400.0)
    assert parts_ms(activity.parts(200 * MS, 700 * MS, timelines)) == ({"llm": 500.0}, 500.0)


def test_others_are_busy_evenly_as_far_as_a_server_leaves_them_cpus() -> None:
    """One CPU of two is what they used, and what is left all the time."""
    activity = log((0, 0, {"llm": 0}), (1000, 1500, {"llm": 500}))
    timelines = {"llm": at_work((0, 500))}
    assert parts_ms(activity.parts(0, 500 * MS, timelines)) == ({"llm": 500.0}, 500.0)
    assert parts_ms(activity.parts(500 * MS, 1000 * MS, timelines)) == ({"llm": 0.0}, 500.0)


def test_two_servers_share_a_cell_by_their_own_windows() -> None:
    """One after the other inside one cell: each has its busy time where it was at work."""
    activity = log((0, 0, {"a": 0, "b": 0}), (1000, 600, {"a": 400, "b": 200}))
    timelines = {"a": at_work((0, 500)), "b": at_work((500, 1000))}
    assert parts_ms(activity.parts(0, 500 * MS, timelines)) == ({"a": 400.0, "b": 0.0}, 0.0)
    assert parts_ms(activity.parts(500 * MS, 1000 * MS, timelines)) == ({"a": 0.0, "b": 200.0}, 0.0)


def test_busy_time_beyond_the_cpus_lies_outside_the_windows() -> None:
    """A server that used 500 ms with a window of 100 ms on two CPUs worked 300 ms at other times."""
    activity = log((0, 0, {"llm": 0}), (1000, 500, {"llm": 500}), cpus=2)
    timeline = at_work((400, 500))
    inside, _ = parts_ms(activity.parts(400 * MS, 500 * MS, {"llm": timeline}))
    before, _ = parts_ms(activity.parts(0, 300 * MS, {"llm": timeline}))
    assert inside == {"llm": 200.0}
    assert before == {"llm": 100.0}


def test_all_busy_time_is_kept_when_a_bucket_is_a_whole_cell() -> None:
    """Whatever the windows."""
    activity = log((0, 0, {"llm": 0}), (1000, 900, {"llm": 700}))
    for windows in ((), ((0, 1000),), ((100, 200), (300, 900))):
        assert parts_ms(activity.parts(0, 1000 * MS, {"llm": at_work(*windows)})) == ({"llm": 700.0}, 200.0)


def test_server_that_cannot_be_known_is_counted_with_the_others() -> None:
    """Before it was found, after it ended, behind another user's wall, or with a clock that went back."""
    timeline = at_work((0, 1000))
    for before, after in ((None, 100), (100, None), (100, 50)):
        activity = log((0, 0, {"llm": before}), (1000, 800, {"llm": after}))
        parts = activity.parts(0, 1000 * MS, {"llm": timeline})
        assert parts_ms(parts) == ({}, 800.0)


def test_server_is_unknown_in_a_bucket_that_reaches_into_a_cell_without_it() -> None:
    """What is known of it in the first cell joins the others, so that nothing is counted twice."""
    activity = log((0, 0, {"llm": 0}), (1000, 500, {"llm": 400}), (2000, 1000, {"llm": None}))
    parts = activity.parts(0, 2000 * MS, {"llm": at_work((500, 1500))})
    assert parts_ms(parts) == ({}, 1000.0)


def test_server_that_was_found_in_mid_work_worked_no_less_before() -> None:
    """The first call of a process: its server is looked up while it works already."""
    activity = log((0, 0, {}), (100, 100, {"llm": 0}), (1000, 1000, {"llm": 900}))
    parts = activity.parts(0, 1000 * MS, {"llm": at_work((0, 1000))})
    assert parts_ms(parts) == ({"llm": 1000.0}, 0.0)


def test_parts_are_not_known_when_a_stretch_lies_outside_all_cells() -> None:
    """The idle fit must not learn from it."""
    activity = log((1000, 0, {}), (2000, 100, {}))
    assert activity.parts(1000 * MS, 2000 * MS, {}).known
    assert not activity.parts(500 * MS, 1500 * MS, {}).known
    assert not activity.parts(1500 * MS, 2500 * MS, {}).known


@pytest.mark.parametrize(
    ("length_ms", "busy_ms", "closed"),
    [(100, 1000, False), (250, 250, True), (300, 100, False), (800, 150, False), (900, 0, True)],
)
def test_cell_is_closed_when_it_is_long_and_busy_enough(length_ms: int, busy_ms: int, closed: bool) -> None:
    """250 ms and 20 ticks of 10 ms, or 0.9 s: shorter ones drown in the ticks."""
    activity = ActivityLog()
    activity.add(ActivitySample("cpu", 0, 0, {}, 2, 0, 0))
    activity.add(ActivitySample("cpu", length_ms * MS, busy_ms * MS, {}, 2, 0, 0))
    assert bool(activity.cells(0, 10_000 * MS)) is closed


def test_bucket_waits_for_the_cell_that_it_reaches_into() -> None:
    """But not for one that begins after it, and not where there is no activity at all."""
    assert ActivityLog().needed_until(500) == 500
    activity = log((1000, 0, {}), (2000, 100, {}))
    assert log((1000, 0, {})).needed_until(900 * MS) == 900 * MS
    assert activity.needed_until(1500 * MS) == 2000 * MS
    assert activity.needed_until(2000 * MS) == 2000 * MS
    assert activity.needed_until(2001 * MS) is None


def test_old_cells_are_forgotten() -> None:
    """And the newer ones say the same as before."""
    activity = log(*[(1000 * index, 500 * index, {}) for index in range(1000)])
    activity.forget_before(900_000 * MS)
    assert len(activity.cells(0, 10**15)) == 99
    assert activity.parts(950_000 * MS, 951_000 * MS, {}).others_ns == 500 * MS

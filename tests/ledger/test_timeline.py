"""The number of calls at work over time, and cumulative quantities over time."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from otel_llm_energy.ledger import tracks
from otel_llm_energy.ledger.timeline import Timeline, merged
from otel_llm_energy.ledger.tracks import Track

MS = 1_000_000


def test_steps_say_how_many_were_at_work_and_when() -> None:
    """Only stretches with calls at work, cut to what was asked for."""
    timeline = Timeline(0)
    timeline.add(10, 40)
    timeline.add(20, 30)
    timeline.add(60, 70)
    timeline.freeze(100)
    assert timeline.steps(0, 100) == [(10, 20, 1, 0), (20, 30, 2, 0), (30, 40, 1, 0), (60, 70, 1, 0)]
    assert timeline.steps(25, 35) == [(25, 30, 2, 0), (30, 35, 1, 0)]
    assert timeline.steps(40, 60) == []
    assert [timeline.count_steps(*span) for span in ((0, 100), (25, 35), (40, 60))] == [4, 2, 0]
    assert timeline.busy.between(0, 100) == 40
    assert timeline.load.between(0, 100) == 50


def test_adjoining_calls_make_no_step_when_the_count_stays() -> None:
    """One ends where the next begins."""
    timeline = Timeline(0)
    timeline.add(0, 10)
    timeline.add(10, 20)
    timeline.freeze(30)
    assert timeline.steps(0, 30) == [(0, 20, 1, 0)]


def test_call_without_an_end_is_at_work_until_it_is_ended() -> None:
    """Also across several freezes."""
    timeline = Timeline(0)
    timeline.add(5)
    timeline.freeze(10)
    assert timeline.count == 1
    timeline.freeze(20)
    timeline.end(20)
    timeline.freeze(30)
    assert timeline.count == 0
    assert timeline.steps(0, 30) == [(5, 20, 1, 0)]


def test_peak_counts_slots_that_were_held_at_once_for_long_enough() -> None:
    """Not a few milliseconds in which neighbours in a queue seem to overlap, and not a model that is loaded."""
    timeline = Timeline(0)
    timeline.add(0, 1000 * MS)
    timeline.add(990 * MS, 2000 * MS)
    timeline.add(0, 2000 * MS, slots=0)
    timeline.freeze(3000 * MS)
    assert timeline.peak == 1
    timeline.add(3000 * MS, 4000 * MS)
    timeline.add(3500 * MS, 4500 * MS)
    timeline.freeze(5000 * MS)
    assert timeline.peak == 2


_EDGES = st.lists(st.tuples(st.integers(0, 100), st.integers(1, 30)), max_size=10)


@given(_EDGES, st.lists(st.integers(0, 140), max_size=5))
def test_steps_do_not_depend_on_when_the_timeline_is_frozen(calls: list[tuple[int, int]], freezes: list[int]) -> None:
    """Freezing in several steps is freezing once; and steps, busy time and load agree with one another."""
    once, often = Timeline(0), Timeline(0)
    for start, length in calls:
        once.add(start, start + length)
        often.add(start, start + length)
    for until in sorted(freezes):
        often.freeze(until)
    for timeline in (once, often):
        timeline.freeze(150)
    steps = once.steps(0, 150)
    assert steps == often.steps(0, 150)
    assert once.busy.between(0, 150) == sum(end_ns - start_ns for start_ns, end_ns, _, _ in steps)
    assert once.load.between(0, 150) == sum(length for _, length in calls)


@given(_EDGES, _EDGES)
def test_merged_steps_are_those_of_one_timeline(here: list[tuple[int, int]], there: list[tuple[int, int]]) -> None:
    """Several servers taken as one, but for steps that are cut where the count stays the same."""
    timelines = [Timeline(0), Timeline(0), Timeline(0)]
    for timeline, calls in zip(timelines, (here, there, here + there), strict=True):
        for start, length in calls:
            timeline.add(start, start + length)
        timeline.freeze(150)
    parts, whole = [timeline.steps(0, 150) for timeline in timelines[:2]], timelines[2].steps(0, 150)
    found = merged([steps for steps in parts if steps])
    for probe in range(150):
        assert [calls for start, end, calls, _ in found if start <= probe < end] == [
            calls for start, end, calls, _ in whole if start <= probe < end
        ]


def test_track_is_constant_outside_and_linear_inside() -> None:
    """And exact at its breakpoints."""
    track = Track()
    track.advance(100, 0)
    track.advance(200, 10)
    track.advance(300, 0)
    track.advance(400, 7)
    assert [track.at(time) for time in (0, 100, 150, 200, 250, 300, 350, 400, 900)] == [0, 0, 5, 10, 10, 10, 13, 17, 17]
    track.advance(400, 3)
    assert track.at(400) == 20


_STEPS = st.lists(st.tuples(st.integers(1, 50), st.integers(0, 1000)), min_size=1, max_size=60)


@given(_STEPS, st.lists(st.integers(0, 3000), min_size=2, max_size=6))
def test_differences_over_adjoining_stretches_add_up(steps: list[tuple[int, int]], cuts: list[int]) -> None:
    """Whatever lies between: this is what keeps every joule."""
    track = _track(steps)
    cuts.sort()
    parts = [track.between(a, b) for a, b in itertools.pairwise(cuts)]
    assert sum(parts) == track.between(cuts[0], cuts[-1])
    assert min(parts) >= 0


@given(_STEPS)
def test_growing_along_several_stretches_is_growing_by_one_after_the_other(steps: list[tuple[int, int]]) -> None:
    """With a pause before every third one."""
    one_by_one, at_once = Track(), Track()
    growths, at_ns = [], 0
    for number, (length, increment) in enumerate(steps):
        start_ns = at_ns + (5 if number % 3 == 0 else 0)
        at_ns = start_ns + length
        growths.append((start_ns, at_ns, increment))
        one_by_one.grow(*growths[-1])
    at_once.follow(growths)
    for time_ns in {*at_once.times_ns, *one_by_one.times_ns}:
        assert at_once.at(time_ns) == one_by_one.at(time_ns)
    assert at_once.end_ns == one_by_one.end_ns


def test_track_takes_no_memory_for_time_in_which_nothing_grows() -> None:
    """There may be a thousand servers to which nobody makes a call any more."""
    track = Track()
    track.advance(10, 5)
    for time_ns in range(20, 10_000, 10):
        track.advance(time_ns, 0)
    track.advance(10_000, 10)
    assert [track.at(time_ns) for time_ns in (10, 5_000, 9_990, 9_995, 10_000)] == [5, 5, 5, 10, 15]
    assert len(track.times_ns) == 4


def test_track_forgets_what_no_look_up_needs() -> None:
    """From the given time on every value is the same as before."""
    steps = [(1, value % 7) for value in range(5000)]
    forgetful, whole = _track(steps), _track(steps)
    forgetful.forget_before(3000)
    assert len(forgetful.times_ns) <= 2002
    assert [forgetful.at(t) for t in range(3000, 5001)] == [whole.at(t) for t in range(3000, 5001)]


def test_differences_still_add_up_when_the_oldest_points_were_thinned() -> None:
    """Memory is bounded while one call stays open for long; old detail is lost, not energy."""
    count = tracks._THIN_ABOVE + 1000
    track = Track()
    for time in range(1, count + 1):
        track.advance(2 * time, time % 13)
    before = track.values[-1]
    track.forget_before(1)
    assert len(track.times_ns) <= tracks._THIN_ABOVE
    cuts = [0, 1001, 30_003, 90_001, 2 * count - 5, 2 * count]
    parts = [track.between(a, b) for a, b in itertools.pairwise(cuts)]
    assert sum(parts) == track.between(0, 2 * count) == before
    assert min(parts) >= 0
    assert track.times_ns == sorted(set(track.times_ns))
    assert track.values == sorted(track.values)


def _track(steps: list[tuple[int, int]]) -> Track:
    track = Track()
    for length, increment in steps:
        track.advance(track.end_ns + length, increment)
    return track

"""Power over time comes from the readings that were taken anyway, and the counters of all runs add up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_llm_energy.instrument import Instrumentation
from otel_llm_energy.ledger.ledger import Balance
from otel_llm_energy.quantities import NJ_PER_JOULE, NS_PER_SECOND, Channel, Reading
from otel_llm_energy.status import ChannelStatus, Status
from otel_llm_energy.study import StudyError
from otel_llm_energy.study.power import PowerLog
from otel_llm_energy.study.sessions import Session, metered


def _reading(channel: str, seconds: float, joules: float) -> Reading:
    at_ns = round(seconds * NS_PER_SECOND)
    return Reading(channel, round(joules * 1e6), at_ns, at_ns)


def test_power_is_the_sum_of_all_counters_when_they_are_read_at_different_times() -> None:
    """20 W on one counter, 5 W and then 15 W on another: 25 W and then 35 W, from the first instant that both know."""
    log = PowerLog()
    log.note([_reading("a", second / 4, 20 * second / 4) for second in range(9)])
    log.note([_reading("b", 0.1, 0.5), _reading("b", 1.0, 5.0), _reading("b", 2.0, 20.0)])
    seconds, watts = log.watts(0, 2 * NS_PER_SECOND)
    assert seconds == sorted(seconds)
    assert seconds[-1] == 2.0
    for end, power in zip(seconds, watts, strict=True):
        assert power == pytest.approx(25.0 if end <= 1.0 else 35.0)


@given(steps=st.lists(st.tuples(st.floats(0.01, 1.0), st.floats(0, 200)), min_size=2, max_size=200))
def test_no_energy_is_lost_when_many_readings_are_drawn_as_few_steps(steps: list[tuple[float, float]]) -> None:
    """The area under the drawing is what the counter counted between the first and the last edge drawn."""
    log, at, joules = PowerLog(), 0.0, 0.0
    log.note([_reading("a", 0.0, 0.0)])
    counted = {0.0: 0.0}
    for length, power in steps:
        at, joules = at + length, joules + length * power
        counted[round(at, 4)] = joules
        log.note([_reading("a", at, joules)])
    ends, watts = log.watts(0, round(at * NS_PER_SECOND))
    assert 1 <= len(ends) <= 61
    edges = [0.0, *ends]
    area = sum(power * (until - since) for since, until, power in zip(edges, ends, watts, strict=False))
    assert area == pytest.approx(counted[ends[-1]], rel=0.02, abs=0.1)


def test_a_long_call_is_drawn_as_few_steps_when_its_counter_was_read_often() -> None:
    """Each row holds them, and a call may take minutes."""
    log = PowerLog()
    log.note([_reading("a", second / 10, second) for second in range(6_000)])
    seconds, watts = log.watts(0, 600 * NS_PER_SECOND)
    assert 30 <= len(seconds) <= 61
    assert watts == pytest.approx([10.0] * len(watts))


def test_power_is_unknown_when_nothing_was_read_around_a_call() -> None:
    """Nothing is drawn then."""
    log = PowerLog()
    log.note([_reading("a", 100.0, 1.0), _reading("a", 101.0, 2.0)])
    assert log.watts(0, NS_PER_SECOND) == ([], [])


def test_no_energy_counts_twice_when_an_older_reading_is_told_late() -> None:
    """Two threads read a counter, one at its pace and one at a call's edge; the slower one tells last."""
    log = PowerLog()
    log.note([_reading("a", 0.0, 0.0), _reading("a", 1.0, 20.0), _reading("a", 0.5, 10.0), _reading("a", 2.0, 40.0)])
    assert log.watts(0, 2 * NS_PER_SECOND) == ([1.0, 2.0], [20.0, 20.0])


def test_no_power_is_negative_when_a_counter_starts_anew() -> None:
    """A wrap or a reset is no energy given back."""
    log = PowerLog()
    log.note([_reading("a", 0.0, 900.0), _reading("a", 1.0, 950.0), _reading("a", 2.0, 10.0), _reading("a", 3.0, 60.0)])
    assert log.watts(0, 3 * NS_PER_SECOND)[1] == pytest.approx([50.0, 0.0, 50.0])


def _session(folder: Path, name: str, joules: float, idle_watts: float | None, **more: str) -> None:
    (folder / "sessions").mkdir(exist_ok=True)
    meter = {
        "meter": "rapl",
        "channel": "package-0",
        "idle_watts": idle_watts,
        "metered_joules": joules,
        "attributed_joules": joules / 2,
        "unattributed_joules": {"idle": joules / 2},
        **more,
    }
    (folder / "sessions" / f"{name}.json").write_text(json.dumps({"seconds": 10.0, "meters": [meter]}))


def test_counters_add_up_when_a_study_was_taken_up_again(tmp_path: Path) -> None:
    """Two runs: joules and seconds are sums; the idle power is the last that was learned."""
    _session(tmp_path, "1", 100.0, 20.0)
    _session(tmp_path, "2", 50.0, None)
    (found,) = metered([tmp_path])
    assert (found.metered_joules, found.attributed_joules, found.seconds, found.idle_watts) == (150.0, 75.0, 20.0, 20.0)
    assert found.unattributed_joules == {"idle": 75.0}


def test_counters_of_one_name_are_told_apart_when_they_are_of_different_hosts(tmp_path: Path) -> None:
    """Two machines, each with an exporter of its own, and a file of an earlier version, which names no host."""
    _session(tmp_path, "1", 100.0, 20.0, host="one:8080")
    _session(tmp_path, "2", 50.0, None, host="other:8080")
    _session(tmp_path, "3", 10.0, None)
    found = {each.label: (each.metered_joules, each.seconds) for each in metered([tmp_path])}
    assert found == {
        "rapl package-0 of one:8080": (100.0, 10.0),
        "rapl package-0 of other:8080": (50.0, 10.0),
        "rapl package-0": (10.0, 10.0),
    }


def test_session_holds_what_this_process_counted_when_another_reads_the_meters_later(tmp_path: Path) -> None:
    """Two hosts with counters of one name; in the end the holder alone knows where their joules go."""
    here, there = Channel("package-0", "cpu", "rapl"), Channel("package-0", "cpu", "rapl", host="one:8080")

    def status(*metered_joules: int) -> Status:
        counted = zip((here, there), metered_joules, strict=True)
        channels = [
            ChannelStatus(channel, Balance(joules * NJ_PER_JOULE, 0, 0, {}), 20.0, "learned", None, 0.1, None)
            for channel, joules in counted
        ]
        return Status(tuple(channels), (), {}, "joined")

    class Energy:
        def __init__(self) -> None:
            self.statuses = [status(0, 0), status(30, 40), status(0, 0)]

        def status(self) -> Status:
            return self.statuses.pop(0)

    session = Session(tmp_path / "sessions", cast(Instrumentation, Energy()))
    for labels in (
        set(),
        {"rapl package-0", "rapl package-0 of one:8080"},
        {"rapl package-0", "rapl package-0 of one:8080"},
    ):
        session.write()
        assert {each.label for each in metered([tmp_path])} == labels
    assert [each.metered_joules for each in metered([tmp_path])] == [30.0, 40.0]


def test_error_names_the_file_when_a_session_is_broken(tmp_path: Path) -> None:
    """Somebody's editor, not a kill: sessions are replaced as a whole."""
    _session(tmp_path, "1", 100.0, 20.0)
    (tmp_path / "sessions" / "2.json").write_text("{")
    with pytest.raises(StudyError, match=r"2\.json: not a session"):
        metered([tmp_path])

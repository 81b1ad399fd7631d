"""Bounds and phases of a bill, against a truth that the test knows: a power trace, sampled at the meter's readings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_llm_energy.ledger.bill import Bill, Quality, Window
from otel_llm_energy.ledger.bounds import held_nj, least_placed, most_placed, placed_in_two
from otel_llm_energy.ledger.counter import Bucket
from otel_llm_energy.ledger.idle import Baseline
from otel_llm_energy.ledger.ledger import Ledger
from otel_llm_energy.quantities import NJ_PER_JOULE, NS_PER_SECOND, ActivitySample, Channel, Reading

MS = 1_000_000
STEP_MS = 10
IDLE_WATTS, LIMIT_WATTS = 20, 100


@dataclass(frozen=True)
class Trace:
    """Power by steps of 10 ms, W; a lone call that all power above idle is due to; where the meter is read."""

    watts: Sequence[int]
    start_step: int
    end_step: int
    readings: Sequence[int]

    @property
    def call_nj(self) -> int:
        """What the call used."""
        return sum(self.watts[self.start_step : self.end_step]) * STEP_MS * MS

    def energy_uj(self, step: int) -> int:
        return sum(self.watts[:step]) * STEP_MS * MS // 1000


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    """Idle power around the call, any power up to the hardware's limit during it."""
    length = draw(st.integers(10, 120))
    start = draw(st.integers(1, length - 3))
    end = draw(st.integers(start + 1, length - 1))
    working = draw(st.lists(st.integers(IDLE_WATTS, LIMIT_WATTS), min_size=end - start, max_size=end - start))
    watts = [IDLE_WATTS] * start + working + [IDLE_WATTS] * (length - end)
    readings = sorted({0, length} | draw(st.sets(st.integers(1, length - 1), max_size=12)))
    return Trace(watts, start, end, readings)


def bill_of(
    trace: Trace,
    windows: Sequence[Window] | None = None,
    *,
    scale_error: float = 0.0,
    others_busy: float = 0.0,
    known: bool = True,
) -> Bill:
    """The ledger's bill; idle power and the hardware's limit are known.

    The server keeps one CPU busy while the call is at work, and other programs keep ``others_busy`` CPUs busy all the
    time. The server's part of that is not known if it is not ``known``.
    """
    ledger = Ledger(0)
    channel = Channel(
        "package-0", "cpu", "rapl", limit_watts=LIMIT_WATTS, idle_watts=IDLE_WATTS, scale_error=scale_error
    )
    ledger.add_channel(channel)
    ledger.add_server("llm")
    start_ns, end_ns = trace.start_step * STEP_MS * MS, trace.end_step * STEP_MS * MS
    ledger.sample(ActivitySample("cpu", 0, 0, {"llm": 0}, 2, 0, 0))
    entry = ledger.open("llm", start_ns)
    ledger.close(entry, windows or (Window(start_ns, end_ns),), reported=True)
    for step in trace.readings:
        at_ns = step * STEP_MS * MS
        ledger.read(Reading("package-0", trace.energy_uj(step), at_ns, at_ns))
    last_ns = len(trace.watts) * STEP_MS * MS
    server_ns = end_ns - start_ns
    total_ns = server_ns + int(others_busy * last_ns)
    by_server_ns = {"llm": server_ns if known else None}
    ledger.sample(ActivitySample("cpu", last_ns, total_ns, by_server_ns, 2, 0, 0), final=True)
    ledger.settle(last_ns + 1)
    assert entry.bill is not None
    return entry.bill


@given(traces())
def test_truth_lies_within_the_bounds_when_the_call_is_alone(trace: Trace) -> None:
    """However few readings there are, and however the power went."""
    bill = bill_of(trace)
    assert bill.lower_nj is not None
    assert bill.upper_nj is not None
    rounding_nj = 2_000 * len(trace.readings)  # the counter's microjoules
    assert bill.lower_nj - rounding_nj <= trace.call_nj <= bill.upper_nj + rounding_nj


@given(traces())
def test_bill_is_exact_when_readings_lie_at_the_edges(trace: Trace) -> None:
    """Then there is nothing to guess, and the bounds are narrow."""
    readings = sorted({*trace.readings, trace.start_step, trace.end_step})
    bill = bill_of(Trace(trace.watts, trace.start_step, trace.end_step, readings))
    rounding_nj = 2_000 * len(readings)
    assert bill.energy_nj is not None
    assert abs(bill.energy_nj - trace.call_nj) <= rounding_nj
    assert bill.lower_nj is not None
    assert bill.upper_nj is not None
    assert bill.upper_nj - bill.lower_nj <= 2 * rounding_nj


def test_bounds_are_as_wide_as_the_scale_error_when_all_else_is_exact() -> None:
    """5 % of the meter's scale, to either side."""
    trace = Trace([20, 20, 80, 80, 20, 20], 2, 4, [0, 2, 4, 6])
    bill = bill_of(trace, scale_error=0.05)
    assert bill.energy_nj == trace.call_nj
    assert bill.lower_nj == int(trace.call_nj * 0.95)
    assert bill.upper_nj == int(trace.call_nj * 1.05) + 1


_SHORT = Trace([20] * 59 + [90, 90] + [20] * 59, 59, 61, [0, 120])


def test_bill_is_degraded_when_the_meter_is_too_coarse_to_tell() -> None:
    """One bucket of 1.2 s around a call of 20 ms, and who was busy in it is not known."""
    bill = bill_of(_SHORT, known=False)
    assert (bill.quality, bill.reason) == (Quality.DEGRADED, "coarse-meter")


def test_bounds_are_narrow_in_a_coarse_bucket_when_only_the_server_was_busy_in_it() -> None:
    """Then all that is above idle is the call's, whenever it was drawn."""
    bill = bill_of(_SHORT)
    assert (bill.quality, bill.energy_nj) == (Quality.MEASURED, _SHORT.call_nj)
    assert bill.lower_nj is not None
    assert bill.upper_nj is not None
    assert bill.upper_nj - bill.lower_nj <= 2


@given(traces(), st.integers(1, 30), st.floats(1 / 1.1, 1.1))
def test_truth_lies_within_the_bounds_when_a_busy_second_of_others_costs_more_or_less(
    trace: Trace, others_watts: int, times: float
) -> None:
    """A tenth, at most; they are busy all the time."""
    quiet_watts, server_watts = IDLE_WATTS + others_watts, 30
    watts = [quiet_watts] * len(trace.watts)
    watts[trace.start_step : trace.end_step] = [quiet_watts + server_watts] * (trace.end_step - trace.start_step)
    others_busy = others_watts / (times * server_watts)
    bill = bill_of(Trace(watts, trace.start_step, trace.end_step, trace.readings), others_busy=others_busy)
    truth_nj = (IDLE_WATTS + server_watts) * (trace.end_step - trace.start_step) * STEP_MS * MS
    rounding_nj = 5_000 * len(trace.readings)
    assert bill.lower_nj is not None
    assert bill.upper_nj is not None
    assert bill.lower_nj - rounding_nj <= truth_nj <= bill.upper_nj + rounding_nj


def test_power_seen_before_bounds_what_one_of_two_calls_took_when_they_share_a_bucket() -> None:
    """The first call shows 30 W above idle; so of 40 J in one bucket neither of two calls can have taken above 33."""
    second = NS_PER_SECOND
    ledger = Ledger(0)
    ledger.add_channel(Channel("package-0", "cpu", "rapl", idle_watts=IDLE_WATTS))
    ledger.add_server("llm")
    entries = []
    for start in (0, 3, 5):
        entries.append(ledger.open("llm", start * second))
        ledger.close(entries[-1], (Window(start * second, (start + 1) * second),), reported=True)
    for at, joules, busy in ((0, 0, 0), (2, 70, 1), (7, 70 + 140, 3)):
        at_ns = at * second
        ledger.sample(ActivitySample("cpu", at_ns, busy * second, {"llm": busy * second}, 2, 0, 0), final=True)
        ledger.read(Reading("package-0", joules * 1_000_000, at_ns, at_ns))
    ledger.settle(8 * second)
    bills = [entry.bill for entry in entries if entry.bill is not None]
    joules = [
        [round((nj or 0) / NJ_PER_JOULE) for nj in (bill.lower_nj, bill.energy_nj, bill.upper_nj)] for bill in bills
    ]
    assert joules == [[50, 50, 50], [27, 40, 53], [27, 40, 53]]


@pytest.mark.parametrize(("gap_ms", "quality"), [(50, Quality.DEGRADED), (10, Quality.MEASURED)])
@pytest.mark.parametrize("limit_watts", [LIMIT_WATTS, None])
def test_upper_bound_has_room_for_what_was_drawn_in_a_gap(
    gap_ms: int, quality: Quality, limit_watts: float | None
) -> None:
    """A call draws 80 W for a second, of which some is in no reading: it may have been as much as ever there."""
    ledger = Ledger(0)
    ledger.add_channel(Channel("package-0", "cpu", "rapl", idle_watts=IDLE_WATTS, limit_watts=limit_watts))
    ledger.add_server("llm")
    entry = ledger.open("llm", 0)
    ledger.close(entry, (Window(0, 1000 * MS),), reported=True)
    for now_ms in (0, 500, 500 + gap_ms, 1000):
        if now_ms == 500 + gap_ms:
            ledger.interrupt("suspend")
        ledger.read(Reading("package-0", 80 * now_ms * 1000, now_ms * MS, now_ms * MS))
    for now_ms in (0, 1000):
        ledger.sample(ActivitySample("cpu", now_ms * MS, now_ms * MS, {"llm": now_ms * MS}, 2, 0, 0))
    ledger.settle(1000 * MS + 1)
    assert entry.bill is not None
    known_nj = 80 * (1000 - gap_ms) * MS
    most_watts = limit_watts or 1.1 * 80
    assert (entry.bill.quality, entry.bill.energy_nj) == (quality, known_nj)
    assert entry.bill.upper_nj == pytest.approx(known_nj + most_watts * gap_ms * MS, abs=10)


def test_there_is_no_upper_bound_when_nothing_says_what_can_be_drawn_in_a_gap() -> None:
    """No limit of the hardware is known, and calls were at work for too short a time to see how much they take."""
    ledger = Ledger(0)
    ledger.add_channel(Channel("package-0", "cpu", "rapl", idle_watts=IDLE_WATTS))
    ledger.add_server("llm")
    entry = ledger.open("llm", 2 * MS)
    ledger.close(entry, (Window(2 * MS, 102 * MS),), reported=True)
    for now_ms in (3, 102, 103):
        ledger.read(Reading("package-0", 80 * now_ms * 1000, now_ms * MS, now_ms * MS))
    for now_ms in (0, 103):
        ledger.sample(ActivitySample("cpu", now_ms * MS, now_ms * MS, {"llm": now_ms * MS}, 2, 0, 0), final=True)
    ledger.settle(103 * MS + 1)
    assert entry.bill is not None
    assert (entry.bill.energy_nj, entry.bill.upper_nj) == (80 * 99 * MS, None)


def test_edge_bucket_holds_what_power_allows() -> None:
    """lo = max(P0_lo o, D - P_hi (T - o)), hi = min(P_hi o, D - P0_lo (T - o)), within 0 and D."""
    bucket = Bucket(0, 10, 500)
    assert held_nj(bucket, Baseline(20, 20, 100), 5) == (100, 400)
    assert held_nj(bucket, Baseline(20, 20, 60), 5) == (200, 300)
    assert held_nj(bucket, Baseline(20, 20, None), 5) == (100, 400)
    assert held_nj(bucket, Baseline(90, 90, None), 5) == (450, 450)
    assert held_nj(bucket, Baseline(None, 0.0, None), 5) == (0, 500)


def phases(trace: Trace, *edges: int) -> tuple[dict[str, int], Bill]:
    """The phases of a call whose prefill ends at an edge, in nJ."""
    start, middle, end = (edge * STEP_MS * MS for edge in (trace.start_step, *edges, trace.end_step))
    bill = bill_of(trace, (Window(start, middle, "prefill"), Window(middle, end, "decode")))
    return dict(bill.phases_nj), bill


@given(
    energy_nj=st.floats(0, 1e15),
    most_watts=st.none() | st.floats(0, 1e4),
    length_ns=st.integers(1, 10**10),
    calls=st.lists(st.integers(1, 1_000), min_size=2, max_size=2),
)
def test_two_numbers_of_calls_do_for_many_changes(
    energy_nj: float, most_watts: float | None, length_ns: int, calls: list[int]
) -> None:
    """Where calls change often, the fewest and the most of them may each have been there for all of the time."""
    fewest, most = sorted(calls)
    divisions = [(length_ns, calls[0]), (length_ns, calls[1])]
    room_nj = None if most_watts is None else most_watts * length_ns
    for found, expected in (
        (placed_in_two(energy_nj, room_nj, most, fewest), least_placed(energy_nj, most_watts, divisions)),
        (placed_in_two(energy_nj, room_nj, fewest, most), most_placed(energy_nj, most_watts, divisions)),
    ):
        assert abs(found - expected) <= 1 + 1e-15 * energy_nj


def test_phases_are_told_apart_when_a_reading_lies_between_them() -> None:
    """And they sum to the call's energy."""
    trace = Trace([20] * 10 + [90] * 10 + [50] * 30 + [20] * 10, 10, 50, [0, 10, 20, 50, 60])
    parts, bill = phases(trace, 20)
    assert parts == {"prefill": 90 * 10 * STEP_MS * MS, "decode": 50 * 30 * STEP_MS * MS}
    assert sum(parts.values()) == bill.energy_nj


def test_phases_are_told_apart_when_the_reading_lies_near() -> None:
    """Within a tenth of the shorter phase."""
    trace = Trace([20] * 10 + [90] * 10 + [50] * 30 + [20] * 10, 10, 50, [0, 10, 21, 50, 60])
    parts, bill = phases(trace, 20)
    assert set(parts) == {"prefill", "decode"}
    assert sum(parts.values()) == bill.energy_nj


def test_phases_are_left_out_when_no_reading_tells_them_apart() -> None:
    """The call's energy is known all the same."""
    trace = Trace([20] * 10 + [90] * 10 + [50] * 30 + [20] * 10, 10, 50, [0, 10, 30, 50, 60])
    parts, bill = phases(trace, 20)
    assert parts == {}
    assert bill.energy_nj is not None

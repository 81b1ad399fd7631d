"""Bounds of calls that overlap, against a truth that the test knows: a power trace that is shared step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from otel_llm_energy.ledger.bill import Bill, Window
from otel_llm_energy.ledger.ledger import Ledger
from otel_llm_energy.ledger.sweep import BATCH_SHARINGS, BatchSharing
from otel_llm_energy.quantities import ActivitySample, Channel, Reading

STEP_NS = 10_000_000
IDLE_WATTS, LIMIT_WATTS = 20, 100


@dataclass(frozen=True)
class Phase:
    """Steps [start, end) at which a call works, and what it weighs."""

    start: int
    end: int
    weight: int


@dataclass(frozen=True)
class Trace:
    """Power by steps of 10 ms, W, above idle all due to the calls; the phases of each of these; the readings' steps."""

    watts: Sequence[int]
    calls: Sequence[Sequence[Phase]]
    readings: Sequence[int]

    def weights_at(self, step: int) -> dict[int, int]:
        """What the calls at work weigh, by number."""
        found = {}
        for number, phases in enumerate(self.calls):
            for phase in phases:
                if phase.start <= step < phase.end:
                    found[number] = phase.weight
        return found

    def shares_nj(self, sharing: BatchSharing) -> list[float]:
        """The truth: idle by time, the rest by the sharing, at each step."""
        shares = [0.0] * len(self.calls)
        for step, watts in enumerate(self.watts):
            weights = self.weights_at(step)
            if sharing == "equal-time" or not all(weights.values()):
                weights_used = dict.fromkeys(weights, 1)
            else:
                weights_used = weights
            for number, weight in weights_used.items():
                above = (watts - IDLE_WATTS) * weight / sum(weights_used.values())
                shares[number] += (IDLE_WATTS / len(weights) + above) * STEP_NS
        return shares


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    """Two or three calls, or many of which bounds know the extremes only; any power up to the limit while one works."""
    length = draw(st.integers(12, 60))
    calls = []
    for _ in range(draw(st.integers(2, 3) | st.integers(10, 14))):
        start = draw(st.integers(1, length - 4))
        turn = draw(st.integers(start + 1, length - 2))
        end = draw(st.integers(turn + 1, length - 1))
        weights = draw(st.tuples(st.integers(0, 50), st.integers(1, 50)))
        calls.append([Phase(start, turn, weights[0]), Phase(turn, end, weights[1])])
    worked = [any(call[0].start <= step < call[-1].end for call in calls) for step in range(length)]
    watts = [draw(st.integers(IDLE_WATTS, LIMIT_WATTS)) if busy else IDLE_WATTS for busy in worked]
    readings = sorted({0, length} | draw(st.sets(st.integers(1, length - 1), max_size=8)))
    return Trace(watts, calls, readings)


def bills_of(trace: Trace, sharing: BatchSharing) -> list[Bill]:
    """Idle power and the limit are known, and the server is all that works."""
    ledger = Ledger(0, share=sharing)
    ledger.add_channel(Channel("package-0", "cpu", "rapl", limit_watts=LIMIT_WATTS, idle_watts=IDLE_WATTS))
    ledger.add_server("llm")
    ledger.sample(ActivitySample("cpu", 0, 0, {"llm": 0}, 4, 0, 0))
    entries = []
    for phases in trace.calls:
        entry = ledger.open("llm", phases[0].start * STEP_NS)
        windows = [Window(p.start * STEP_NS, p.end * STEP_NS, "decode", p.weight) for p in phases]
        ledger.close(entry, windows, reported=True)
        entries.append(entry)
    for step in trace.readings:
        energy_uj = sum(trace.watts[:step]) * STEP_NS // 1000
        ledger.read(Reading("package-0", energy_uj, step * STEP_NS, step * STEP_NS))
    end_ns = len(trace.watts) * STEP_NS
    ledger.sample(ActivitySample("cpu", end_ns, end_ns, {"llm": end_ns}, 4, 0, 0), final=True)
    ledger.settle(end_ns + 1)
    return [entry.bill for entry in entries if entry.bill is not None]


@settings(max_examples=100)
@given(traces(), st.sampled_from(BATCH_SHARINGS))
def test_truth_lies_within_the_bounds_when_calls_overlap(trace: Trace, sharing: BatchSharing) -> None:
    """However few readings there are, and however the power went between them."""
    rounding_nj = 10_000 * (len(trace.readings) + 50)
    for bill, truth_nj in zip(bills_of(trace, sharing), trace.shares_nj(sharing), strict=True):
        assert bill.lower_nj is not None
        assert bill.upper_nj is not None
        assert bill.lower_nj - rounding_nj <= truth_nj <= bill.upper_nj + rounding_nj


def test_truth_lies_within_the_bounds_when_most_of_many_steps_are_shared_by_weight() -> None:
    """A call shares with light ones again and again, and then equally with one of unknown weight: there it draws."""
    light = [[Phase(start, start + 2, 1)] for start in range(3, 39, 4)]
    watts = [LIMIT_WATTS if 45 <= step < 57 else IDLE_WATTS for step in range(60)]
    trace = Trace(watts, [[Phase(1, 58, 100)], *light, [Phase(45, 57, 0)]], (0, 60))
    bill, truth_nj = bills_of(trace, "phase-tokens")[0], trace.shares_nj("phase-tokens")[0]
    assert bill.lower_nj is not None
    assert bill.upper_nj is not None
    assert bill.lower_nj - 1_000_000 <= truth_nj <= bill.upper_nj + 1_000_000

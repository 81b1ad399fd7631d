"""What a cell's CPU time says of all its buckets together, on machines on which a busy CPU second costs the same."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_llm_energy.ledger.activity import ActivityLog
from otel_llm_energy.ledger.bill import Window
from otel_llm_energy.ledger.counter import Bucket
from otel_llm_energy.ledger.ledger import Ledger
from otel_llm_energy.ledger.runs import Runs
from otel_llm_energy.ledger.timeline import Timeline
from otel_llm_energy.quantities import NJ_PER_JOULE, ActivitySample, Channel, Reading

MS = 1_000_000
STEP_MS = 5
IDLE_WATTS, CPU_WATTS, CPUS = 20, 60, 2
Calls = Sequence[tuple[int, int]]


def billed_joules(
    server: Sequence[int], others: Sequence[float], calls: Calls, read_at: Sequence[int], first_cpu_watts: float = 0.0
) -> float:
    """All calls' energy.

    Args:
        server: whether it is busy, in each step of 5 ms.
        others: how many CPUs they keep busy, in each step.
        calls: first step and end of each.
        read_at: steps at whose start the meter is read.
        first_cpu_watts: drawn on top whenever any CPU is busy.
    """
    ledger = Ledger(0)
    ledger.add_channel(Channel("package-0", "cpu", "rapl", idle_watts=IDLE_WATTS))
    ledger.add_server("llm")
    entries = []
    for start, end in calls:
        entries.append(ledger.open("llm", start * STEP_MS * MS))
        ledger.close(entries[-1], (Window(start * STEP_MS * MS, end * STEP_MS * MS),), reported=True)
    watts = [
        IDLE_WATTS + CPU_WATTS * (ours + theirs) + first_cpu_watts * bool(ours + theirs)
        for ours, theirs in zip(server, others, strict=True)
    ]
    ledger.sample(ActivitySample("cpu", 0, 0, {"llm": 0}, CPUS, 0, 0))
    for step in sorted({0, len(server), *read_at}):
        at_ns = step * STEP_MS * MS
        ledger.read(Reading("package-0", round(sum(watts[:step]) * STEP_MS * 1000), at_ns, at_ns))
    end_ns = len(server) * STEP_MS * MS
    server_ns, others_ns = sum(server) * STEP_MS * MS, round(sum(others) * STEP_MS * MS)
    ledger.sample(ActivitySample("cpu", end_ns, server_ns + others_ns, {"llm": server_ns}, CPUS, 0, 0), final=True)
    ledger.settle(end_ns + 1)
    return sum(entry.bill.energy_nj or 0 for entry in entries if entry.bill is not None) / NJ_PER_JOULE


def true_joules(server: Sequence[int], calls: Calls) -> float:
    """What the server used, and the idle energy of the calls' work."""
    return (CPU_WATTS * sum(server) + IDLE_WATTS * sum(end - start for start, end in calls)) * STEP_MS / 1000


def test_tiny_calls_are_billed_what_they_cost_when_their_client_is_busy_between_them() -> None:
    """20 ms each, of which the client takes 5; taken to be busy in the pause too it would leave them too much."""
    server, others = [0, 1, 1, 1] * 16 + [0] * 40, [1.0, 0, 0, 0] * 16 + [0.0] * 40
    calls = [(4 * i + 1, 4 * i + 4) for i in range(16)]
    read_at = [*range(0, 64, 4), *range(64, 104, 10)]
    assert billed_joules(server, others, calls, read_at) == pytest.approx(true_joules(server, calls), rel=1e-6)


def test_call_is_billed_what_it_cost_when_other_programs_take_all_that_it_leaves() -> None:
    """On a full machine others have one CPU of two during a call, and both before and after it."""
    server = [0] * 20 + [1] * 50 + [0] * 20
    others = [float(CPUS - busy) for busy in server]
    read_at = range(0, 90, 10)
    assert billed_joules(server, others, [(20, 70)], read_at) == pytest.approx(
        true_joules(server, [(20, 70)]), rel=1e-6
    )


def test_call_is_billed_what_it_cost_when_another_program_is_busy_right_before_it() -> None:
    """Half of the cell it takes a CPU, but none while the call is at work."""
    server, others = [0] * 30 + [1] * 30, [1.0] * 30 + [0.0] * 30
    read_at = range(0, 60, 10)
    assert billed_joules(server, others, [(30, 60)], read_at) == pytest.approx(
        true_joules(server, [(30, 60)]), rel=1e-6
    )


def test_call_pays_nothing_for_a_pause_whose_few_busy_moments_are_dear() -> None:
    """Where the first busy CPU costs most, what is alone in the pause pays for that; it was busy in the call too."""
    server, others = [0] * 30 + [1] * 30, [0.04] * 60
    read_at = range(0, 60, 10)
    linear = billed_joules(server, others, [(30, 60)], read_at)
    with_first = billed_joules(server, others, [(30, 60)], read_at, first_cpu_watts=2)
    assert with_first - linear == pytest.approx(2 * 30 * STEP_MS / 1000 / 1.04, rel=1e-3)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 1)), min_size=12, max_size=24))
def test_bills_are_within_a_tenth_when_others_come_and_go_in_one_cell(turns: list[tuple[bool, int]]) -> None:
    """Each turn of 50 ms has a call or none, and another program's CPU or none; a reading after each."""
    server = [int(at_work) for at_work, _ in turns for _ in range(10)]
    others = [float(busy) for _, busy in turns for _ in range(10)]
    changes = [0, *(i for i, (one, other) in enumerate(pairwise(server), 1) if one != other), len(server)]
    calls = [(start, end) for start, end in pairwise(changes) if server[start]]
    billed = billed_joules(server, others, calls, range(0, len(server), 10))
    truth = true_joules(server, calls)
    assert truth / 1.1 - 1e-3 <= billed <= truth * 1.1 + 1e-3


def test_a_server_is_busy_for_no_more_than_all_were_when_its_cell_says_that_it_used_more() -> None:
    """Of 100 J in a cell, 90 came when the server was not at work, though it had five sevenths of the busy time."""
    activity = ActivityLog()
    activity.add(ActivitySample("cpu", 0, 0, {"llm": 0}, CPUS, 0, 0))
    activity.add(ActivitySample("cpu", 1000 * MS, 700 * MS, {"llm": 500 * MS}, CPUS, 0, 0), final=True)
    at_work = Timeline(0)
    at_work.add(0, 500 * MS)
    at_work.freeze(1000 * MS)
    first, second = Bucket(0, 500 * MS, 10 * NJ_PER_JOULE), Bucket(500 * MS, 1000 * MS, 90 * NJ_PER_JOULE)
    runs = Runs()
    parts = [
        runs.parts(bucket, ahead, {"llm": at_work}, activity, idle_watts=0.0)
        for bucket, ahead in ((first, [second]), (second, []))
    ]
    assert [(each.by_server_ns["llm"], each.others_ns) for each in parts] == [(600 * MS, 0), (0, 100 * MS)]
    assert [each.portions_of_run for each in parts] == [{"llm": pytest.approx(5 / 7)}] * 2

"""Idle power below a load that never pauses, from readings and samples as they really come: apart, and seldom."""

from __future__ import annotations

import random
from bisect import bisect_right

import pytest

from otel_llm_energy.ledger.bill import Window
from otel_llm_energy.ledger.ledger import Ledger
from otel_llm_energy.quantities import NS_PER_SECOND, ActivitySample, Channel, Reading

IDLE_WATTS, WATTS_PER_CPU = 20, 60
SECONDS = 100


class Worked:
    """Calls of half a second to three seconds, one after another; another program keeps one CPU busy throughout."""

    def __init__(self, chance: random.Random) -> None:
        self.windows: list[tuple[int, int]] = []
        at = 10.0
        while at < SECONDS:
            end = at + chance.uniform(0.5, 3.0)
            self.windows.append((int(at * NS_PER_SECOND), int(end * NS_PER_SECOND)))
            at = end + chance.uniform(0.1, 1.5)

    def server_ns(self, at_ns: int) -> int:
        return sum(min(end_ns, at_ns) - start_ns for start_ns, end_ns in self.windows if start_ns < at_ns)

    def at_work(self, at_ns: int) -> bool:
        index = bisect_right(self.windows, (at_ns, at_ns)) - 1
        return index >= 0 and at_ns < self.windows[index][1]


def learned_watts(worked: Worked, chance: random.Random, open_seconds: float, idle_seconds: float) -> float | None:
    """Idle power after all of it, with a sample some milliseconds after a reading, four times a second at most."""
    ledger = Ledger(0)
    ledger.add_channel(Channel("package-0", "cpu", "rapl"))
    ledger.add_server("llm", reports=True)
    edges = sorted(edge_ns for window in worked.windows for edge_ns in window)
    at_ns = next_sample_ns = 0
    while at_ns < SECONDS * NS_PER_SECOND:
        server_ns = worked.server_ns(at_ns)
        energy_uj = (IDLE_WATTS * at_ns + WATTS_PER_CPU * (at_ns + server_ns)) // 1000
        ledger.read(Reading("package-0", energy_uj, at_ns, at_ns))
        if at_ns >= next_sample_ns:
            next_sample_ns = at_ns + NS_PER_SECOND // 4
            sampled_ns = at_ns + int(chance.uniform(0.001, 0.01) * NS_PER_SECOND)
            llm_ns = worked.server_ns(sampled_ns)
            ledger.sample(ActivitySample("cpu", sampled_ns, sampled_ns + llm_ns, {"llm": llm_ns}, 2, 0, 0))
        step_ns = int((open_seconds if worked.at_work(at_ns) else idle_seconds) * NS_PER_SECOND)
        following = bisect_right(edges, at_ns)
        at_edge = open_seconds < 1 and following < len(edges) and edges[following] < at_ns + step_ns
        at_ns = edges[following] if at_edge else at_ns + step_ns
    for start_ns, end_ns in worked.windows:
        ledger.close(ledger.open("llm", start_ns), (Window(start_ns, end_ns),), reported=True)
    ledger.settle(at_ns + 1)
    return ledger.baselines()["package-0"].watts


@pytest.mark.parametrize(("open_seconds", "idle_seconds"), [(0.05, 1.0), (2.2, 2.2)])
@pytest.mark.parametrize("seed", range(5))
def test_idle_is_found_below_a_constant_load_when_readings_and_samples_lie_apart(
    seed: int, open_seconds: float, idle_seconds: float
) -> None:
    """As RAPL files are read at the edges of calls, and Scaphandre every 2.2 s; cells of activity end elsewhere."""
    chance = random.Random(seed)
    watts = learned_watts(Worked(chance), chance, open_seconds, idle_seconds)
    assert watts == pytest.approx(IDLE_WATTS, abs=1.5)

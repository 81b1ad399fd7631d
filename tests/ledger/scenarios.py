"""Random machines for the ledger: readings, samples of activity and calls, on a coarse grid of time.

The grid makes edges coincide often, which is where sharing goes wrong.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from hypothesis import strategies as st

from otel_llm_energy.ledger.bill import Window
from otel_llm_energy.ledger.entry import Entry
from otel_llm_energy.ledger.ledger import Ledger
from otel_llm_energy.quantities import ActivitySample, Channel, Reading
from tests.ledger.reference import Call, RefBucket, RefCell

GRID_NS = 50_000_000
SERVERS = ("alpha", "beta", "gamma")
IDLE_WATTS = 5
MOST_WEIGHT = 100


@dataclass(frozen=True)
class Machine:
    """Everything that happened on a machine, each list in order of time."""

    readings_uj: list[tuple[int, int]]
    samples: list[tuple[int, int, dict[str, int | None]]]
    calls: list[Call]

    @property
    def buckets(self) -> list[RefBucket]:
        # A repeated value closes no bucket: the ledger takes it for a frozen counter.
        kept = [self.readings_uj[0]]
        for time_ns, energy_uj in self.readings_uj[1:]:
            if energy_uj != kept[-1][1]:
                kept.append((time_ns, energy_uj))
        return [RefBucket(a, b, (f - e) * 1000) for (a, e), (b, f) in itertools.pairwise(kept)]

    @property
    def cells(self) -> list[RefCell]:
        cells = []
        for (a, total, mine), (b, later, theirs) in zip(self.samples, self.samples[1:], strict=False):
            parts = {
                name: None if theirs[name] is None or mine[name] is None else theirs[name] - mine[name]
                for name in theirs
            }
            cells.append(RefCell(a, b, later - total, parts, 2))
        return cells


@st.composite
def machines(draw: st.DrawFn, *, most_calls: int = 8, unknown: bool = True) -> Machine:
    length = draw(st.integers(20, 60))
    edges = sorted(draw(st.sets(st.integers(1, length - 1), max_size=12)) | {0, length})
    energy, readings = draw(st.integers(0, 10**6)), []
    for edge in edges:
        readings.append((edge * GRID_NS, energy))
        energy += draw(st.integers(0, 20_000_000))
    calls = []
    for index in range(draw(st.integers(0, most_calls))):
        start = draw(st.integers(0, length - 1))
        end = draw(st.integers(start + 1, length))
        server = draw(st.sampled_from(SERVERS))
        calls.append(Call(f"call-{index}", server, start * GRID_NS, end * GRID_NS, *_phases(draw, start, end)))
    return Machine(readings, _samples(draw, length, unknown), calls)


def _phases(draw: st.DrawFn, start: int, end: int) -> tuple[int | None, tuple[int, int]]:
    """Where prefill ends, and what the phases weigh, as far as that is known."""
    if end - start < 2 or draw(st.booleans()):
        return None, (0, 0)
    weights = draw(st.tuples(st.integers(0, MOST_WEIGHT), st.integers(0, MOST_WEIGHT)))
    return draw(st.integers(start + 1, end - 1)) * GRID_NS, weights


def _samples(draw: st.DrawFn, length: int, unknown: bool) -> list[tuple[int, int, dict[str, int | None]]]:
    """Cells of 5 to 15 grid steps, long and busy enough for the ledger to keep each."""
    hidden = draw(st.sets(st.sampled_from(SERVERS))) if unknown else set()
    at, total = 0, draw(st.integers(0, 10**9))
    mine = dict.fromkeys(SERVERS, 0)
    samples = []
    while True:
        samples.append((at * GRID_NS, total, {s: None if s in hidden else mine[s] for s in SERVERS}))
        if at >= length:
            return samples
        at += draw(st.integers(5, 15))
        # Who was busy for some microseconds, or less, would drown in the rounding of busy time.
        busy = {server: draw(st.just(0) | st.integers(50_000_000, 400_000_000)) for server in SERVERS}
        others = draw(st.just(0) | st.integers(50_000_000, 10**9))
        if sum(busy.values()) < 200_000_000:
            others = max(others, 200_000_000)
        total += sum(busy.values()) + others
        for server in SERVERS:
            mine[server] += busy[server]


def new_ledger(idle_watts: float | None = IDLE_WATTS, range_uj: int | None = None, **options: object) -> Ledger:
    ledger = Ledger(0, **options)  # type: ignore[arg-type]
    ledger.add_channel(Channel("package-0", "cpu", "rapl", idle_watts=idle_watts, range_uj=range_uj))
    for server in SERVERS:
        ledger.add_server(server)
    return ledger


def reading(time_ns: int, energy_uj: int, channel: str = "package-0") -> Reading:
    return Reading(channel, energy_uj, time_ns, time_ns)


def sample(time_ns: int, total_ns: int, by_server_ns: dict[str, int | None]) -> ActivitySample:
    return ActivitySample("cpu", time_ns, total_ns, by_server_ns, 2, 0, 0)


def close(ledger: Ledger, entry: Entry, call: Call, *, reported: bool = True) -> None:
    ledger.close(entry, windows_of(call), reported=reported)


def windows_of(call: Call) -> tuple[Window, ...]:
    """Prefill and decode, where they are known apart."""
    if call.turn_ns is None:
        return (Window(call.start_ns, call.end_ns),)
    prefill, decode = call.weights
    return (
        Window(call.start_ns, call.turn_ns, "prefill", prefill),
        Window(call.turn_ns, call.end_ns, "decode", decode),
    )

"""Which of the calls' edges are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_llm_energy.ledger.ledger import Ledger
from otel_llm_energy.meters.base import Pace
from otel_llm_energy.meters.discovery import OpenMeter
from otel_llm_energy.quantities import NS_PER_SECOND, Channel, Reading
from otel_llm_energy.tracing.books import Books
from otel_llm_energy.tracing.clocks import SleepWatch
from otel_llm_energy.tracing.reader import MeterReader
from tests.tracing.fakes import ManualClock

PACE = Pace(idle_seconds=1.0, open_seconds=0.05, at_edges=True, edge_gap_seconds=0.005, edges_per_second=100.0)
MS = NS_PER_SECOND // 1000


class Edges:
    """A meter of this pace that is read at calls' edges; ``read_ns`` are the times at which it was."""

    name = "rapl"

    def __init__(self, pace: Pace = PACE) -> None:
        self.pace = pace
        self.clock = ManualClock()
        self.read_ns: list[int] = []
        opened = OpenMeter(self, tuple(self.open()))
        books = Books(Ledger(0), clock_ns=self.clock)
        self.reader = MeterReader(opened, books, lambda _: None, self.clock, SleepWatch(lambda: 0))

    def open(self) -> Sequence[Channel]:
        return [Channel("package-0", "cpu", self.name)]

    def read(self) -> Sequence[Reading]:
        self.read_ns.append(self.clock.now_ns)
        return [Reading("package-0", 0, self.clock.now_ns, self.clock.now_ns)]

    def close(self) -> None: ...

    def edge(self, at_ns: int) -> None:
        self.clock.now_ns = at_ns
        self.reader.read_edge()


def taken(edges_ns: list[int], pace: Pace = PACE) -> list[int]:
    """Those of the edges that are read, where nobody else reads."""
    edges = Edges(pace)
    for edge_ns in edges_ns:
        edges.edge(edge_ns)
    return edges.read_ns


def test_every_edge_of_a_hundred_a_second_is_read_without_end() -> None:
    """As many as ever tell calls apart."""
    edges_ns = [number * 10 * MS for number in range(6000)]
    assert taken(edges_ns) == edges_ns


def test_edges_5_ms_apart_are_all_read_as_long_as_there_are_few() -> None:
    """Eight calls that begin and end one after the other."""
    edges_ns = [number * 5 * MS for number in range(16)]
    assert taken(edges_ns) == edges_ns


@pytest.mark.parametrize("rest_ms", [0, 3_600_000])
def test_calls_without_a_pause_are_read_a_hundred_times_a_second(rest_ms: int) -> None:
    """A thousand edges a second for a minute; what was saved up before, however long, is spent in the first second."""
    read = taken([(rest_ms + number) * MS for number in range(60_000)])
    assert 60 * 100 <= len(read) <= 60 * 100 + 32


def test_32_edges_at_one_instant_are_read_and_no_more() -> None:
    """Of a meter that may be read twice within no time: then the rate alone bounds them."""
    instant_ns = 7 * NS_PER_SECOND
    assert len(taken([instant_ns] * 40, replace(PACE, edge_gap_seconds=0.0))) == 32


def test_an_edge_soon_after_a_poll_is_not_read() -> None:
    """The meter's own thread reads, too."""
    edges = Edges()
    edges.clock.now_ns = 100 * MS
    edges.reader._poll()
    edges.edge(104 * MS)
    assert edges.read_ns == [100 * MS]
    edges.edge(105 * MS)
    assert edges.read_ns == [100 * MS, 105 * MS]


@given(gaps_ns=st.lists(st.integers(0, 30 * MS), max_size=300))
def test_never_more_than_the_rate_and_what_was_saved_up(gaps_ns: list[int]) -> None:
    """In any stretch of time, and never two within the gap."""
    edges_ns = [sum(gaps_ns[: index + 1]) for index in range(len(gaps_ns))]
    read = taken(edges_ns)
    assert all(later - earlier >= 5 * MS for earlier, later in pairwise(read))
    for first, start_ns in enumerate(read):
        for last in range(first, len(read)):
            assert last - first + 1 <= 32 + (read[last] - start_ns) * 100 / NS_PER_SECOND + 1

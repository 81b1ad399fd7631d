"""Clocks that jump: a stepped wall clock moves no joule out of a call's span, a sleep is a gap, a start may be past."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import SpanKind

from otel_llm_energy.ledger.bill import Bill, Quality
from otel_llm_energy.ledger.ledger import Ledger
from otel_llm_energy.meters.base import Pace
from otel_llm_energy.meters.discovery import Discovery, OpenMeter
from otel_llm_energy.quantities import NJ_PER_JOULE, NS_PER_SECOND, ActivitySample, Channel, Reading
from otel_llm_energy.tracing.books import Books
from otel_llm_energy.tracing.claims import Claim
from otel_llm_energy.tracing.clocks import SleepWatch, WallClock
from otel_llm_energy.tracing.desk import SettlingDesk
from otel_llm_energy.tracing.directory import Directory
from otel_llm_energy.tracing.reader import MeterReader
from otel_llm_energy.tracing.station import MachineAccess, Station
from otel_llm_energy.tracing.unobserved import UnobservedCalls
from otel_llm_instrumentation import ServerTimings
from tests.instrument.test_sampling import NoActivity, _nobody
from tests.tracing.fakes import ManualClock

START_UNIX_NS = 1_800_000_000 * NS_PER_SECOND
WATTS = 50
MS = 1_000_000


class Clocks:
    """A monotonic clock and a wall clock that can be stepped; both move together otherwise."""

    def __init__(self) -> None:
        self.monotonic = ManualClock()
        self.step_ns = 0

    def unix_ns(self) -> int:
        return START_UNIX_NS + self.monotonic.now_ns + self.step_ns


def books_on(clocks: Clocks) -> Books:
    """Books of a machine that draws 50 W, its idle power unknown, read every 100 ms by `pass_time`."""
    books = Books(
        Ledger(clocks.monotonic.now_ns, max_wait_ns=3600 * NS_PER_SECOND),
        clock_ns=clocks.monotonic,
        unix_clock_ns=clocks.unix_ns,
    )
    books.add_channels([Channel("package-0", "cpu", "rapl", idle_watts=20)])
    return books


def pass_time(clocks: Clocks, books: Books, seconds: float) -> None:
    for _ in range(round(seconds * 10)):
        clocks.monotonic.advance(0.1)
        now_ns = clocks.monotonic.now_ns
        books.read([Reading("package-0", WATTS * now_ns // 1000, now_ns, now_ns)])
        books.sample(ActivitySample("cpu", now_ns, now_ns, {"llm": now_ns}, 2, 0, 0))
        books.settle()


def bill_of_call(*, step_seconds: float = 0.0, step_at: int = 0, server_says_end: bool = True) -> Bill:
    """A call of 4 s whose server worked on it for the first 2 s after 1 s in a queue; then its stream was read slowly.

    ``step_at``: the second in which the wall clock is stepped, from the start of the call.
    """
    clocks = Clocks()
    books = books_on(clocks)
    pass_time(clocks, books, 1)
    claim = Claim()
    books.open(claim, "llm", "chat", reports=True)
    end_unix_ns = 0
    for second in range(8):
        if second == step_at:
            clocks.step_ns += round(step_seconds * NS_PER_SECOND)
        if second == 3:
            end_unix_ns = clocks.unix_ns()
        if second == 4:
            books.close(claim, ServerTimings(0.5, 1.5, None, end_unix_ns if server_says_end else None))
        pass_time(clocks, books, 1)
    assert claim.bill is not None
    return claim.bill


def test_servers_end_is_believed_when_the_wall_clock_is_not_stepped() -> None:
    """It places the work before the time in which the stream was only read."""
    at_its_end, at_the_calls_end = bill_of_call(), bill_of_call(server_says_end=False)
    assert (at_its_end.queue_ns, at_the_calls_end.queue_ns) == (1 * NS_PER_SECOND, 2 * NS_PER_SECOND)
    assert at_its_end.energy_nj == at_the_calls_end.energy_nj == 100 * NJ_PER_JOULE


@given(st.floats(-1e9, 1e9).filter(lambda seconds: abs(seconds) > 0.1), st.integers(0, 7))
def test_bill_is_the_same_when_the_wall_clock_is_stepped(step_seconds: float, step_at: int) -> None:
    """By any time, at any time: joules, bounds and length are those of a wall clock that stood."""
    bill, expected = bill_of_call(step_seconds=step_seconds, step_at=step_at), bill_of_call()
    assert bill.energy_nj == expected.energy_nj
    assert bill.work_ns == expected.work_ns
    assert (bill.lower_nj, bill.upper_nj) == (expected.lower_nj, expected.upper_nj)
    assert bill.quality is expected.quality is Quality.MEASURED
    # Only where the work is placed may differ, and it stays inside the call.
    assert bill.queue_ns in (1 * NS_PER_SECOND, 2 * NS_PER_SECOND)


@given(st.integers(-(10**19), 10**19))
def test_work_stays_inside_the_call_when_the_servers_clock_is_wrong(end_unix_ns: int) -> None:
    """A server that says it ended before the call began, or next year."""
    clocks = Clocks()
    books = books_on(clocks)
    pass_time(clocks, books, 1)
    claim = Claim()
    books.open(claim, "llm", "chat", reports=True)
    pass_time(clocks, books, 4)
    books.close(claim, ServerTimings(0.5, 1.5, None, end_unix_ns))
    pass_time(clocks, books, 2)
    assert claim.bill is not None
    assert claim.bill.energy_nj == 100 * NJ_PER_JOULE
    assert 0 <= claim.bill.queue_ns <= 2 * NS_PER_SECOND


def test_wall_clock_time_is_placed_when_it_is_only_slewed() -> None:
    """NTP moves it by half a millisecond a second."""
    clocks = Clocks()
    wall = WallClock(clock_ns=clocks.monotonic, unix_clock_ns=clocks.unix_ns)
    begun_ns = clocks.monotonic.now_ns
    for _ in range(1000):
        clocks.monotonic.advance(1)
        clocks.step_ns += MS // 2
        wall.look()
    assert wall.place(clocks.unix_ns(), begun_ns) == clocks.monotonic.now_ns


def test_wall_clock_time_is_placed_again_when_the_step_was_before_the_call() -> None:
    """Calls that begin later have nothing to do with it."""
    clocks = Clocks()
    wall = WallClock(clock_ns=clocks.monotonic, unix_clock_ns=clocks.unix_ns)
    before_ns = clocks.monotonic.now_ns
    clocks.monotonic.advance(1)
    clocks.step_ns -= 3600 * NS_PER_SECOND
    wall.look()
    clocks.monotonic.advance(1)
    assert wall.place(clocks.unix_ns(), before_ns) is None
    assert wall.place(clocks.unix_ns(), clocks.monotonic.now_ns) == clocks.monotonic.now_ns


# Sleep


class Sleeper:
    """A meter of 50 W, and a machine that can be put to sleep: then its monotonic clock stands still."""

    name = "sleeper"

    def __init__(self, *, at_edges: bool) -> None:
        self.pace = Pace(1.0, 0.05, at_edges=at_edges)
        self.clock = ManualClock()
        self.asleep_ns = 0
        self.energy_uj = 0

    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.energy_uj += round(WATTS * seconds * 10**6)

    def sleep(self, seconds: float) -> None:
        self.asleep_ns += round(seconds * NS_PER_SECOND)
        self.energy_uj += round(5 * seconds * 10**6)

    def open(self) -> Sequence[Channel]:
        return [Channel("package-0", "cpu", self.name)]

    def read(self) -> Sequence[Reading]:
        return [Reading("package-0", self.energy_uj, self.clock.now_ns, self.clock.now_ns)]

    def close(self) -> None: ...


@pytest.mark.parametrize("at_edges", [False, True], ids=["at a poll", "at a call's edge"])
def test_energy_of_a_sleep_is_a_gap_when_the_machine_wakes(at_edges: bool) -> None:
    """The counter went on for an hour, the clock did not: 18 kJ in no time are nobody's, whoever reads first."""
    meter = Sleeper(at_edges=at_edges)
    books = Books(Ledger(meter.clock.now_ns), clock_ns=meter.clock)
    books.add_channels(list(meter.open()))
    watch = SleepWatch(lambda: meter.asleep_ns)
    reader = MeterReader(OpenMeter(meter, tuple(meter.open())), books, lambda _: None, meter.clock, watch)
    take = reader.read_edge if at_edges else reader._poll
    take()
    meter.pass_time(1)
    take()
    meter.pass_time(0.5)
    meter.sleep(3600)
    meter.pass_time(0.5)
    take()
    meter.pass_time(1)
    take()
    books.settle()
    _, balance = books.balance()["package-0"]
    assert balance.metered_nj == 2 * WATTS * NJ_PER_JOULE


def test_sleep_is_told_once_when_several_threads_notice_it() -> None:
    """Each meter has a thread, and callers take readings too; nobody reads on before it is told."""
    asleep_ns = 0
    watch = SleepWatch(lambda: asleep_ns)
    told: list[int] = []
    asleep_ns = 60 * NS_PER_SECOND
    threads = [threading.Thread(target=watch.look, args=(lambda: told.append(1),)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert told == [1]
    watch.look(lambda: told.append(2))
    assert told == [1]


def test_this_machines_sleep_is_known() -> None:
    """By the kernel's own clocks: it has not slept between two looks."""
    told: list[int] = []
    SleepWatch().look(lambda: told.append(1))
    assert told == []


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="only Linux says how long it has slept")
def test_sleep_is_what_the_clock_that_goes_on_is_ahead_by(monkeypatch: pytest.MonkeyPatch) -> None:
    watch, told = SleepWatch(), list[int]()
    real_ns = time.clock_gettime_ns
    monkeypatch.setattr(time, "clock_gettime_ns", lambda clock: real_ns(clock) + 60 * NS_PER_SECOND)
    watch.look(lambda: told.append(1))
    assert told == [1]


# A start in the past


class Foreign:
    """A desk for LLM spans of another library, over a station without threads, on real clocks."""

    def __init__(self) -> None:
        self.books = Books(Ledger(0))
        self.books.add_channels([Channel("package-0", "cpu", "rapl", idle_watts=20)])
        station = Station(self.books, MachineAccess(lambda: Discovery((), ()), NoActivity(), _nobody), lambda: None)
        self.calls = UnobservedCalls(SettlingDesk(Directory(station), list))
        self.tracer = TracerProvider(shutdown_on_exit=False).get_tracer("another library")

    def begin(self, past_seconds: float | None) -> Claim:
        """A span starts now, and says that it started so many seconds ago."""
        start = None if past_seconds is None else time.time_ns() - round(past_seconds * NS_PER_SECOND)
        span = self.tracer.start_span(
            "chat",
            kind=SpanKind.CLIENT,
            start_time=start,
            attributes={"gen_ai.operation.name": "chat", "server.address": "127.0.0.1", "server.port": 8080},
        )
        gate: Any = SimpleNamespace(bind=lambda *_, **__: None)
        self.calls.started(gate, span, None)  # type: ignore[arg-type]
        claim = self.calls.adopt(span.get_span_context().span_id)
        assert claim is not None
        return claim


def test_call_begins_when_its_span_says_so_if_that_is_past() -> None:
    """Its work before the span was made is not forgotten."""
    now_ns = time.monotonic_ns()
    claim = Foreign().begin(past_seconds=5)
    assert now_ns - 5.5 * NS_PER_SECOND < claim.opened_ns < time.monotonic_ns() - 4.5 * NS_PER_SECOND


@pytest.mark.parametrize("past_seconds", [None, -60, 1e9])
def test_call_begins_now_when_its_span_says_nothing_or_nonsense(past_seconds: float | None) -> None:
    """A start in the future, or before this machine was started."""
    now_ns = time.monotonic_ns()
    assert now_ns <= Foreign().begin(past_seconds).opened_ns <= time.monotonic_ns()


def test_bill_is_degraded_when_the_start_lies_before_what_is_swept() -> None:
    """What was shared out before the span was made cannot be shared out again: the call gets the rest and says so."""
    clocks = Clocks()
    books = books_on(clocks)
    earlier = Claim()  # the server has an account, and its time is swept
    books.open(earlier, "llm", "chat", reports=False)
    pass_time(clocks, books, 1)
    books.close(earlier, None)
    pass_time(clocks, books, 9)
    claim = Claim()
    books.open(claim, "llm", "chat", reports=False, since_ns=clocks.monotonic.now_ns - 100 * MS)
    pass_time(clocks, books, 1)
    books.close(claim, None)
    pass_time(clocks, books, 2)
    assert claim.bill is not None
    assert claim.bill.energy_nj == pytest.approx(1.0 * WATTS * NJ_PER_JOULE, rel=0.01)
    assert (claim.bill.quality, claim.bill.reason) == (Quality.DEGRADED, "late")
    _, balance = books.balance()["package-0"]
    parts = (balance.billed_nj, balance.pending_nj, *balance.unattributed_nj.values())
    assert sum(parts) == balance.metered_nj


def test_no_joules_are_made_up_when_nearly_all_of_a_call_lies_before_what_is_swept() -> None:
    """A span that is made when the call is over."""
    clocks = Clocks()
    books = books_on(clocks)
    earlier = Claim()
    books.open(earlier, "llm", "chat", reports=False)
    pass_time(clocks, books, 1)
    books.close(earlier, None)
    pass_time(clocks, books, 9)
    claim = Claim()
    books.open(claim, "llm", "chat", reports=False, since_ns=clocks.monotonic.now_ns - 5 * NS_PER_SECOND)
    clocks.monotonic.advance(0.001)
    books.close(claim, None)
    pass_time(clocks, books, 2)
    assert claim.bill is not None
    assert claim.bill.energy_nj is None
    assert claim.bill.reason == "late"

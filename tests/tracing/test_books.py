"""What callers do for the thread that settles, and what it does with what they noted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from otel_llm_energy.host.remote import RemoteLedger
from otel_llm_energy.ledger.bill import Quality
from otel_llm_energy.ledger.entry import Entry
from otel_llm_energy.ledger.ledger import Ledger
from otel_llm_energy.quantities import NJ_PER_JOULE, ActivitySample, Channel, Reading
from otel_llm_energy.tracing.accounts import Accounts
from otel_llm_energy.tracing.books import Books
from otel_llm_energy.tracing.claims import Claim
from otel_llm_energy.tracing.right_of_way import RIGHT_OF_WAY
from otel_llm_instrumentation import ServerTimings
from tests.tracing.fakes import ManualClock


def test_settling_that_gives_way_is_seen_by_callers_to_want_the_interpreter_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Or an app that lets go of it for moments only would keep it from it for a second and more."""
    stopwatch = ManualClock()

    class Slow:
        busy_elsewhere = False

        def settle(self, until_ns: int, breathe: Callable[[], None]) -> list[Entry]:
            stopwatch.advance(0.002)
            breathe()
            return []

    def is_wanted() -> bool:
        return any(thread.since_ns <= RIGHT_OF_WAY.clock_ns() for thread in RIGHT_OF_WAY._threads)

    wanted = list[bool]()
    monkeypatch.setattr("otel_llm_energy.tracing.right_of_way._has_lock", lambda: True)
    monkeypatch.setattr(RIGHT_OF_WAY, "_threads", [])
    monkeypatch.setattr(time, "perf_counter_ns", stopwatch)
    monkeypatch.setattr(time, "sleep", lambda _: wanted.append(is_wanted()))
    slow: Any = Slow()
    Books(slow).settle()
    assert wanted == [True]
    assert not is_wanted()


class Machine:
    """One CPU package of 50 W, 20 W of them idle, all of whose busy time is one server's."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.books = Books(Ledger(self.clock.now_ns), clock_ns=self.clock, unix_clock_ns=self.clock)
        self.books.add_channels([Channel("package-0", "cpu", "rapl", idle_watts=20)])
        self.energy_uj = 0
        self.pass_time(5)

    def pass_time(self, seconds: float, steps: int = 1) -> list[Claim]:
        """So many steps, with a reading and a sample after each; what is settled meanwhile."""
        settled = []
        for _ in range(steps):
            self.clock.advance(seconds)
            now_ns = self.clock.now_ns
            self.energy_uj += int(50 * seconds * 1e6)
            self.books.read([Reading("package-0", self.energy_uj, now_ns, now_ns)])
            self.books.sample(ActivitySample("cpu", now_ns, now_ns // 2, {"server": now_ns // 2}, 2, 0, 0))
            settled += self.books.settle()
        return settled

    def begin(self) -> Claim:
        claim = Claim()
        self.books.open(claim, "server", "chat")
        return claim

    def call(self) -> Claim:
        """One of a second, and its bill."""
        claim = self.begin()
        self.pass_time(1)
        self.books.close(claim, None)
        self.pass_time(1, steps=3)
        return claim

    def assert_all_is_accounted_for(self) -> None:
        assert not self.books.busy
        for _, balance in self.books.balance().values():
            assert balance.pending_nj == 0
            assert balance.metered_nj == balance.billed_nj + sum(balance.unattributed_nj.values())


def test_others_have_their_energy_when_a_call_is_open_for_more_than_an_hour() -> None:
    """It is given up, with a reason, and its late end changes nothing."""
    machine = Machine()
    machine.call()  # its answer carried no timings, so the next ones are taken to be at work from their start
    paused = machine.begin()
    machine.pass_time(10, steps=370)
    machine.books.close(paused, None)
    assert machine.pass_time(1, steps=3) == [paused]
    assert paused.bill is not None
    assert (paused.bill.energy_nj, paused.bill.reason) == (None, "too-long")
    bill = machine.call().bill
    assert bill is not None
    assert (bill.energy_nj, bill.quality) == (50 * NJ_PER_JOULE, Quality.MEASURED)
    machine.assert_all_is_accounted_for()


def test_call_has_its_bill_after_its_end_when_that_could_not_be_waited_for() -> None:
    """Its span, which ended before it, is gone by then; the metrics count it."""
    machine = Machine()
    machine.call()
    claim = machine.begin()
    machine.pass_time(1)
    assert machine.books.force([claim], "max-hold") == []
    assert claim.bill is None
    machine.books.close(claim, None)
    assert machine.pass_time(1, steps=3) == [claim]
    assert claim.bill is not None
    assert (claim.bill.energy_nj, claim.bill.quality) == (50 * NJ_PER_JOULE, Quality.MEASURED)
    machine.assert_all_is_accounted_for()
    assert machine.books.balance()["package-0"][1].billed_nj == 100 * NJ_PER_JOULE


def test_one_event_that_cannot_be_entered_costs_no_other(caplog: pytest.LogCaptureFixture) -> None:
    """What was noted after it is entered all the same."""
    machine = Machine()
    odd, claim = machine.begin(), machine.begin()
    machine.pass_time(1)
    machine.books.close(odd, ServerTimings(None, float("inf")))
    machine.books.close(claim, None)
    machine.pass_time(1, steps=3)
    assert claim.bill is not None
    assert claim.bill.energy_nj is not None
    later = machine.call().bill
    assert later is not None
    assert (later.energy_nj, later.quality) == (50 * NJ_PER_JOULE, Quality.MEASURED)  # nobody is at work beside it
    assert [record.getMessage() for record in caplog.records] == ["An event of LLM calls cannot be entered."]


def test_call_whose_beginning_cannot_be_entered_is_waited_for_by_nobody() -> None:
    """Else meters would be read at the pace of open calls, and every flush take its time, from then on."""

    class Refusing:
        def __init__(self, ledger: Accounts) -> None:
            self._ledger = ledger

        def open(self, *_: object) -> Entry:
            raise ValueError("no server")

        def __getattr__(self, name: str) -> Any:
            return getattr(self._ledger, name)

    books = Books(Refusing(Ledger(0)))
    claim = Claim()
    books.open(claim, "server", "chat")
    books.close(claim, None)
    assert books.settle() == []
    assert books.settled == books.closed == 1
    assert not books.busy


@pytest.mark.parametrize("reason", ["not-held", "max-hold"])
def test_member_has_no_call_any_more_when_its_holder_does_not_bill_at_once(reason: str) -> None:
    """It gives the call up; kept, each would stay in the memory, and every flush wait for a bill that nobody makes."""
    clock = ManualClock()
    books = Books(RemoteLedger(clock_ns=clock), clock_ns=clock, unix_clock_ns=clock)
    claim = Claim()
    books.open(claim, "server", "chat")
    books.close(claim, None)
    assert books.force([claim], reason) == [claim]
    assert books.settled == books.closed == 1
    assert not books.busy
    assert not books.unsettled(clock.now_ns + 1)


def test_nothing_is_metered_twice_when_the_ledger_could_not_be_changed() -> None:
    """The seat tries again, and other balances are asked for meanwhile."""

    def fail(ledger: Accounts) -> Accounts:
        raise OSError("no descriptor is left")

    machine = Machine()
    machine.call()
    metered_nj = machine.books.balance()["package-0"][1].metered_nj
    for _ in range(2):
        with pytest.raises(OSError, match="descriptor"):
            machine.books.change_ledger(fail)
    assert machine.books.balance()["package-0"][1].metered_nj == metered_nj


def test_call_is_noted_while_another_thread_settles_and_a_collection_amid_that_forces_one() -> None:
    """The one has the queue, the other the ledger, and each would wait for ever for what the other has."""
    clock = ManualClock()
    settling: list[threading.Thread] = []
    to_collect: list[Claim] = []

    def clock_of_the_queue() -> int:
        if to_collect and threading.current_thread() is calling:
            collected = [to_collect.pop()]
            settling.append(threading.Thread(target=books.settle, daemon=True))
            settling[0].start()
            while books._ledger_lock.acquire(blocking=False):  # until the other one has it
                books._ledger_lock.release()
            books.force(collected, "not-held")
        return clock.now_ns

    def call() -> None:
        claims.append(Claim())
        books.open(claims[0], "server", "")
        books.close(claims[0], None)
        to_collect.append(claims[0])
        books.open(Claim(), "server", "")

    claims: list[Claim] = []
    books = Books(Ledger(0), clock_ns=clock_of_the_queue, unix_clock_ns=clock)
    calling = threading.Thread(target=call, daemon=True)
    calling.start()
    calling.join(20)
    assert not calling.is_alive()
    settling[0].join(20)
    assert not settling[0].is_alive()
    assert claims[0].bill is not None
    assert (books.opened, books.settled) == (2, 1)


@pytest.mark.parametrize("name", ["balance", "baselines", "learned_idle", "settle"])
def test_nothing_is_changed_in_the_ledger_when_a_collection_amid_a_look_into_it_forces_a_call(name: str) -> None:
    """The call has to do without joules: what is being looked at may not change."""
    machine = Machine()
    claim = machine.begin()
    machine.books.close(claim, None)
    machine.books.change_ledger(lambda ledger: Collecting(ledger, name, lambda: machine.books.force([claim], "flush")))
    getattr(machine.books, name)()
    assert claim.bill is not None
    assert claim.bill.reason == "flush"
    machine.pass_time(1, steps=3)
    machine.assert_all_is_accounted_for()


class Collecting:
    """A ledger amid one of whose methods there is a garbage collection."""

    def __init__(self, ledger: Accounts, name: str, collect: Callable[[], object]) -> None:
        self._ledger = ledger
        self._name = name
        self._collect = collect
        self._at_work = False

    def __getattr__(self, name: str) -> Any:
        assert not self._at_work
        if name != self._name:
            return getattr(self._ledger, name)

        def with_a_collection(*arguments: Any) -> Any:
            self._at_work = True
            self._collect()
            self._at_work = False
            return getattr(self._ledger, name)(*arguments)

        return with_a_collection

"""Calls that queue at a server when the ledger cannot wait for all their windows."""

from __future__ import annotations

import pytest

from otel_llm_energy.ledger.bill import Quality, Window
from otel_llm_energy.ledger.entry import Entry
from otel_llm_energy.ledger.ledger import Ledger
from otel_llm_energy.ledger.slots import admit
from otel_llm_energy.ledger.timeline import Timeline
from otel_llm_energy.quantities import NS_PER_SECOND, ActivitySample, Channel, Reading

MS = 1_000_000
IDLE_WATTS, BUSY_WATTS = 20.0, 80.0


class Queue:
    """Equal calls that are all opened at once; a server with so many slots works on them in turn.

    Args:
        calls: how many.
        slots: how many it works on at a time.
        work_ms: of each call.
        max_wait_ms: how long the ledger waits for a window.
        slots_known: the ledger was told of the slots; else it learns them from the windows.
        told: what it was told, if that is wrong.
    """

    def __init__(
        self,
        calls: int,
        slots: int,
        work_ms: int,
        max_wait_ms: int,
        *,
        slots_known: bool = True,
        told: int | None = None,
    ) -> None:
        self.ledger = Ledger(0, max_wait_ns=max_wait_ms * MS)
        self.ledger.add_channel(Channel("package-0", "cpu", "rapl", idle_watts=IDLE_WATTS))
        self.ledger.add_server("llm", slots=(told or slots) if slots_known else None, reports=True)
        self._slots, self._work_ms = slots, work_ms
        self._energy_uj = 0
        self._now_ms = 0
        if not slots_known:
            self.run(slots)
        self.entries = self.run(calls)

    def run(self, calls: int) -> list[Entry]:
        """Ask so many at once, and wait until all are billed."""
        first_ms = self._now_ms
        opened = [self.ledger.open("llm", (first_ms + index) * MS) for index in range(calls)]
        windows = [self._window(first_ms + calls, index) for index in range(calls)]
        end_ms = windows[-1].end_ns // MS + 100
        self._step(first_ms, busy=0.0)
        for now_ms in range(first_ms + 50, end_ms + 300, 50):
            at_work = sum(window.start_ns < now_ms * MS <= window.end_ns for window in windows)
            self._step(now_ms, busy=float(at_work))
            for entry, window in zip(opened, windows, strict=True):
                if now_ms - 50 < window.end_ns / MS <= now_ms:
                    self.ledger.close(entry, (window,), reported=True)
            self.ledger.settle(now_ms * MS)
        self._now_ms = end_ms + 300
        return opened

    def _window(self, start_ms: int, index: int) -> Window:
        start_ms = -(-start_ms // 50) * 50 + index // self._slots * self._work_ms
        return Window(start_ms * MS, (start_ms + self._work_ms) * MS, "decode")

    def _step(self, now_ms: int, busy: float) -> None:
        self._energy_uj += round((IDLE_WATTS + (BUSY_WATTS - IDLE_WATTS) * busy) * 50_000)
        self.ledger.read(Reading("package-0", self._energy_uj, now_ms * MS, now_ms * MS))
        busy_ns = round(now_ms * MS * 0.5)
        self.ledger.sample(ActivitySample("cpu", now_ms * MS, busy_ns, {"llm": busy_ns}, 2, 0, 0))

    def most_over_least(self) -> float:
        """Of the energy that the calls were billed."""
        joules = [entry.bill.energy_nj for entry in self.entries if entry.bill is not None and entry.bill.energy_nj]
        assert len(joules) == len(self.entries)
        return max(joules) / min(joules)


@pytest.mark.parametrize("slots_known", [True, False])
@pytest.mark.parametrize("slots", [1, 2])
def test_equal_calls_are_billed_equally_when_waiting_is_bounded(slots: int, slots_known: bool) -> None:
    """Eight calls of 2 s that wait up to 14 s, and a ledger that waits 5 s for a window.

    Without the rule of slots it was 16 : 1. With two slots a call that is taken for the wrong one of a pair costs
    nothing; what its window then shows to be wrong is ``late``.
    """
    queue = Queue(8, slots, 2000, 5000, slots_known=slots_known)
    assert queue.most_over_least() <= 1.3


def test_bills_are_exact_when_the_ledger_can_wait() -> None:
    """Within 30 s all windows are known before anything is swept."""
    queue = Queue(8, 1, 2000, 30_000)
    assert queue.most_over_least() == pytest.approx(1.0, abs=1e-6)
    assert all(entry.bill is not None and entry.bill.quality is Quality.MEASURED for entry in queue.entries)


def test_every_joule_is_accounted_for_when_calls_queue_too_long() -> None:
    """What was guessed wrong is ``late``, not lost and not billed twice."""
    balance = Queue(8, 1, 2000, 3000).ledger.balance()["package-0"]
    assert balance.billed_nj + balance.pending_nj + sum(balance.unattributed_nj.values()) == balance.metered_nj
    assert balance.pending_nj == 0


def test_reason_is_late_when_others_were_charged_for_all_of_a_calls_time() -> None:
    """There are readings of it: what helps is to wait for longer, not to look after the meter."""
    first, *others = Queue(4, 4, 8000, 5000, told=1).entries
    assert first.bill is not None and first.bill.energy_nj is not None
    said = [entry.bill and (entry.bill.energy_nj, entry.bill.quality, entry.bill.reason) for entry in others]
    assert said == [(None, Quality.UNAVAILABLE, "late")] * 3


class Call:
    """An open call."""

    def __init__(self, opened_ns: int) -> None:
        self.opened_ns = opened_ns
        self.counted_from_ns: int | None = None


def test_open_calls_take_free_slots_first_come_first_served() -> None:
    """One slot: the second call counts from the instant at which the call before it is known to have ended."""
    timeline = Timeline(0)
    timeline.add(0, 400)
    first, second, third = Call(100), Call(100), Call(900)
    admit(timeline, [first, second, third], 1, 1000)
    assert [call.counted_from_ns for call in (first, second, third)] == [400, None, None]
    assert (timeline.frozen_ns, timeline.count) == (1000, 1)


def test_all_open_calls_count_when_the_slots_are_unknown() -> None:
    """As many as there are."""
    timeline = Timeline(0)
    calls = [Call(100), Call(200), Call(2000)]
    admit(timeline, calls, None, 1000)
    assert [call.counted_from_ns for call in calls] == [100, 200, None]


def test_call_that_was_open_before_counts_from_where_the_timeline_is_open() -> None:
    """What is final stays."""
    timeline = Timeline(0)
    timeline.freeze(500)
    call = Call(100)
    admit(timeline, [call], 2, 1000)
    assert call.counted_from_ns == 500
    assert timeline.busy.between(0, 1000) == 500


def test_two_slots_are_filled_when_two_calls_wait() -> None:
    """And a third waits."""
    timeline = Timeline(0)
    calls = [Call(0), Call(0), Call(0)]
    admit(timeline, calls, 2, NS_PER_SECOND)
    assert [call.counted_from_ns for call in calls] == [0, 0, None]
    assert timeline.load.between(0, NS_PER_SECOND) == 2 * NS_PER_SECOND


def test_gap_between_neighbours_in_a_queue_is_no_free_slot() -> None:
    """Some milliseconds pass between two calls; a third that waits is not at work in them, nor beside them later."""
    timeline = Timeline(0)
    timeline.add(20 * MS, 500 * MS)
    timeline.add(530 * MS, 1000 * MS)
    call = Call(5 * MS)
    admit(timeline, [call], 1, 900 * MS)
    assert call.counted_from_ns is None
    admit(timeline, [call], 1, 1500 * MS)
    assert call.counted_from_ns == 1000 * MS


def test_call_that_is_only_taken_to_be_at_work_teaches_no_slots() -> None:
    """Else one wrong guess would make the next ones wrong."""
    timeline = Timeline(0)
    timeline.add(0)
    timeline.add(0, 900 * MS)
    timeline.freeze(1000 * MS)
    assert (timeline.peak, timeline.count) == (1, 1)


def test_oldest_call_is_waited_for_when_a_later_one_was_entered_before_it() -> None:
    """Calls of several processes come process by process; each is still charged for its windows and nothing else."""
    ledger = Ledger(0)
    ledger.add_channel(Channel("package-0", "cpu", "rapl", idle_watts=IDLE_WATTS))
    ledger.add_server("llm", reports=True)
    later, oldest = ledger.open("llm", 200 * MS), ledger.open("llm", 100 * MS)
    for now_ms in (0, 250, 500):
        ledger.read(Reading("package-0", now_ms * 100_000, now_ms * MS, now_ms * MS))
    ledger.settle(300 * MS)
    ledger.close(oldest, (Window(110 * MS, 290 * MS, "decode"),), reported=True)
    ledger.close(later, (Window(290 * MS, 400 * MS, "decode"),), reported=True)
    ledger.settle(500 * MS)
    assert oldest.charged_exactly
    assert later.charged_exactly

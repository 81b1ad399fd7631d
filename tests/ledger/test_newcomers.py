"""Calls of which the ledger hears some time after they began, as those of a process that has just started."""

from __future__ import annotations

import pytest

from otel_llm_energy.ledger.bill import Bill, Quality, Window
from otel_llm_energy.ledger.ledger import Ledger
from otel_llm_energy.quantities import NJ_PER_JOULE, Channel, Reading

MS = 1_000_000
IDLE_WATTS, BUSY_WATTS = 20, 80


def bill_of_call_heard_of_late(*, earlier_calls: bool, newcomers_ms: int = 500) -> Bill:
    """Of one from 2.0 to 2.6 s that is heard of at 2.3 s; read and settled every 100 ms."""
    ledger = Ledger(0, newcomers_ns=newcomers_ms * MS)
    ledger.add_channel(Channel("package-0", "cpu", "rapl", idle_watts=IDLE_WATTS))
    if earlier_calls:
        ledger.add_server("llm")
        ledger.close(ledger.open("llm", 0), (Window(0, 100 * MS),), reported=True)
    entry = None
    for now_ms in range(0, 3001, 100):
        energy_uj = 1000 * (IDLE_WATTS * now_ms + (BUSY_WATTS - IDLE_WATTS) * min(max(now_ms - 2000, 0), 600))
        ledger.read(Reading("package-0", energy_uj, now_ms * MS, now_ms * MS))
        if now_ms == 2300:
            ledger.add_server("llm", reports=True)
            entry = ledger.open("llm", 2000 * MS)
        if entry is not None and now_ms == 2600:
            ledger.close(entry, (Window(2000 * MS, 2600 * MS),), reported=True)
        ledger.settle(now_ms * MS)
    assert entry is not None
    assert entry.bill is not None
    return entry.bill


@pytest.mark.parametrize("earlier_calls", [False, True])
def test_call_that_began_before_the_ledger_heard_of_it_is_measured_after_a_time_without_calls(
    earlier_calls: bool,
) -> None:
    bill = bill_of_call_heard_of_late(earlier_calls=earlier_calls)
    assert (bill.quality, bill.reason) == (Quality.MEASURED, None)
    assert bill.energy_nj == pytest.approx(0.6 * BUSY_WATTS * NJ_PER_JOULE)


@pytest.mark.parametrize("earlier_calls", [False, True])
def test_bill_says_so_when_half_of_its_time_was_shared_out_before_the_ledger_heard_of_it(earlier_calls: bool) -> None:
    bill = bill_of_call_heard_of_late(earlier_calls=earlier_calls, newcomers_ms=0)
    assert (bill.quality, bill.reason) == (Quality.UNAVAILABLE, "late")


def test_what_is_left_for_newcomers_does_not_keep_a_bill_waiting() -> None:
    ledger = Ledger(0, newcomers_ns=500 * MS)
    ledger.add_channel(Channel("package-0", "cpu", "rapl", idle_watts=IDLE_WATTS))
    ledger.add_server("llm", reports=True)
    entry = ledger.open("llm", 100 * MS)
    ledger.close(entry, (Window(100 * MS, 200 * MS),), reported=True)
    for now_ms in (0, 100, 200):
        ledger.read(Reading("package-0", now_ms * 100_000, now_ms * MS, now_ms * MS))
    assert ledger.settle(200 * MS) == [entry]

"""The example of docs/how-the-joules-are-shared.md, by the ledger itself."""

from __future__ import annotations

import pytest

from otel_llm_energy.ledger.bill import Bill, Window
from otel_llm_energy.ledger.ledger import Ledger
from otel_llm_energy.quantities import NJ_PER_JOULE, NS_PER_SECOND, ActivitySample, Channel, Reading


def test_bills_are_as_documented_when_two_calls_overlap() -> None:
    """A socket of 20 W idle and 130 J in 2 s; the server used 1.5 of 2.0 CPU seconds."""
    ledger = Ledger(0)
    ledger.add_channel(Channel("package-0", "cpu", "rapl", idle_watts=20.0))
    ledger.add_server("server")
    ledger.read(Reading("package-0", 0, 0, 0))
    ledger.sample(ActivitySample("cpu", 0, 0, {"server": 0}, 2, 0, 0))
    entries = [ledger.open("server", start_ns) for start_ns in (NS_PER_SECOND // 2, NS_PER_SECOND)]
    for entry in entries:
        ledger.close(entry, (Window(entry.opened_ns, 3 * NS_PER_SECOND // 2),), reported=True)
    end_ns = 2 * NS_PER_SECOND
    ledger.read(Reading("package-0", 130_000_000, end_ns, end_ns))
    ledger.sample(ActivitySample("cpu", end_ns, 2_000_000_000, {"server": 1_500_000_000}, 2, 0, 0))
    assert ledger.settle(end_ns) == entries
    bills = [entry.bill for entry in entries if entry.bill is not None]
    assert [_joules(bill) for bill in bills] == [
        pytest.approx((50.625, 15.0)),
        pytest.approx((16.875, 5.0)),
    ]
    unattributed = ledger.balance()["package-0"].unattributed_nj
    assert unattributed["other"] == 22_500_000_000
    assert unattributed["idle"] == 20_000_000_000


def _joules(bill: Bill) -> tuple[float, float]:
    """Above idle, and idle."""
    assert bill.energy_nj is not None
    assert bill.above_idle_nj is not None
    return bill.above_idle_nj / NJ_PER_JOULE, (bill.energy_nj - bill.above_idle_nj) / NJ_PER_JOULE

"""Bills that rest on the idle power of an earlier run, or on one that was learned under load: what they say of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_llm_energy.ledger.bill import Bill, Quality, Window
from otel_llm_energy.ledger.ledger import Ledger
from otel_llm_energy.quantities import NS_PER_SECOND, ActivitySample, Channel, IdlePower, Reading

SERVER_CPUS, OTHER_CPUS = 1.0, 1.0
WATTS_PER_CPU = 60.0


def bill_of_first_call(
    true_idle_watts: float,
    remembered: IdlePower | None,
    *,
    start_s: float = 4,
    bucket_s: float = 2,
    server_cpus: float = SERVER_CPUS,
) -> Bill:
    """A first call of 5 s; the machine is busy with other programs all the time, with its server's work besides."""
    ledger = Ledger(0)
    ledger.add_channel(Channel("package-0", "cpu", "rapl"), [remembered] if remembered else [])
    ledger.add_server("llm", reports=False)
    start_ns, end_ns = round(start_s * NS_PER_SECOND), round((start_s + 5) * NS_PER_SECOND)
    entry = ledger.open("llm", start_ns)
    for index in range(round(24 / bucket_s)):
        at_ns = round(index * bucket_s * NS_PER_SECOND)
        worked_ns = min(max(at_ns - start_ns, 0), end_ns - start_ns)
        mine_ns = round(server_cpus * worked_ns)
        total_ns = mine_ns + round(OTHER_CPUS * at_ns)
        energy_nj = true_idle_watts * at_ns + WATTS_PER_CPU * total_ns
        ledger.read(Reading("package-0", round(energy_nj / 1000), at_ns, at_ns))
        ledger.sample(ActivitySample("cpu", at_ns, total_ns, {"llm": mine_ns}, 2, 0, 0))
    ledger.close(entry, (Window(start_ns, end_ns),), reported=False)
    ledger.settle(40 * NS_PER_SECOND)
    assert entry.bill is not None
    return entry.bill


def true_joules(true_idle_watts: float, server_cpus: float = SERVER_CPUS) -> float:
    """Idle of the call's time, and what its server's CPU time added."""
    return 5 * (true_idle_watts + WATTS_PER_CPU * server_cpus)


def test_first_call_is_right_when_an_earlier_run_knew_the_idle_power() -> None:
    """Though other programs never pause; and the method says where the idle power comes from."""
    bill = bill_of_first_call(20.0, IdlePower(20.0, 19.5, 30.0))
    assert bill.energy_nj is not None
    assert abs(bill.energy_nj / 1e9 - true_joules(20.0)) < 0.01 * true_joules(20.0)
    assert (bill.quality, bill.reason) == (Quality.MEASURED, None)
    assert bill.method == "above-idle/equal-time/cached-idle"
    assert bill.above_idle_nj is not None


def test_first_call_is_degraded_when_nothing_but_load_was_seen_before_it() -> None:
    """What other programs draw cannot be told from idle power yet; the bill says so, and its bounds hold the truth."""
    bill = bill_of_first_call(20.0, None)
    assert bill.energy_nj is not None and bill.lower_nj is not None and bill.upper_nj is not None
    assert bill.energy_nj / 1e9 == pytest.approx(true_joules(20.0), rel=0.15)
    assert (bill.quality, bill.reason) == (Quality.DEGRADED, "idle-under-load")
    assert bill.lower_nj / 1e9 <= true_joules(20.0) <= bill.upper_nj / 1e9


@given(st.floats(0.91, 1.09), st.floats(4, 8), st.sampled_from([0.5, 1.0, 2.0]), st.floats(0.2, 1.0))
def test_bounds_hold_the_truth_when_idle_power_has_drifted_since(
    drift: float, start_s: float, bucket_s: float, server_cpus: float
) -> None:
    """By up to ten per cent, with buckets of any kind at the call's edges."""
    bill = bill_of_first_call(
        20.0 * drift, IdlePower(20.0, 20.0, 30.0), start_s=start_s, bucket_s=bucket_s, server_cpus=server_cpus
    )
    assert bill.lower_nj is not None and bill.upper_nj is not None
    truth_nj = true_joules(20.0 * drift, server_cpus) * 1e9
    assert bill.lower_nj <= truth_nj * 1.001
    assert bill.upper_nj >= truth_nj * 0.999


def test_bounds_hold_the_truth_when_idle_power_is_not_known_at_all() -> None:
    """A call right at the start, beside a busy program: energy is shared by time, and the lower bound knows better."""
    bill = bill_of_first_call(20.0, None, start_s=0.2, bucket_s=0.2)
    assert bill.energy_nj is not None and bill.lower_nj is not None and bill.upper_nj is not None
    assert (bill.quality, bill.reason) == (Quality.DEGRADED, "no-idle-baseline")
    assert bill.lower_nj / 1e9 <= true_joules(20.0) <= bill.upper_nj / 1e9
    assert bill.energy_nj / 1e9 > 1.1 * true_joules(20.0)

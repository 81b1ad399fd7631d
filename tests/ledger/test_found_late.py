"""A server whose part of the activity gets known only while it is at work, or is not known for some of it."""

from __future__ import annotations

import pytest

from otel_llm_energy.ledger.bill import Bill, Quality, Window
from otel_llm_energy.ledger.ledger import Ledger
from otel_llm_energy.quantities import NJ_PER_JOULE, ActivitySample, Channel, Reading

MS = 1_000_000
IDLE_WATTS, WATTS_PER_CPU = 20, 60


def bill_of_first_call(found_ms: int, work_ms: int = 1000, others_cpus: float = 1) -> Bill:
    """Of a call from 0.1 s on that keeps one CPU busy, beside a program that always does; read every 50 ms."""
    last_ms = work_ms + 1000
    ledger = Ledger(0)
    ledger.add_channel(Channel("package-0", "cpu", "rapl", idle_watts=IDLE_WATTS))
    ledger.add_server("llm")
    entry = ledger.open("llm", 100 * MS)
    for now_ms in range(0, last_ms + 1, 50):
        server_ms = min(max(now_ms - 100, 0), work_ms)
        busy_ms = others_cpus * now_ms + server_ms
        energy_uj = int(IDLE_WATTS * now_ms + WATTS_PER_CPU * busy_ms) * 1000
        ledger.read(Reading("package-0", energy_uj, now_ms * MS, now_ms * MS))
        if now_ms % 250 == 0:
            known = {"llm": server_ms * MS} if now_ms >= found_ms else {}
            ledger.sample(ActivitySample("cpu", now_ms * MS, int(busy_ms * MS), known, 2, 0, 0))
    ledger.close(entry, (Window(100 * MS, (100 + work_ms) * MS),), reported=True)
    ledger.settle(last_ms * MS + 1)
    assert entry.bill is not None
    return entry.bill


@pytest.mark.parametrize("others_cpus", [0, 0.2, 1])
@pytest.mark.parametrize("found_ms", [0, 250, 500])
def test_other_programs_work_is_not_billed_when_the_server_is_found_in_mid_work(
    found_ms: int, others_cpus: float
) -> None:
    """What it did as soon as it was known it is taken to have done before: in short buckets nothing else tells."""
    bill = bill_of_first_call(found_ms, others_cpus=others_cpus)
    assert bill.energy_nj is not None
    assert bill.energy_nj / NJ_PER_JOULE == pytest.approx(IDLE_WATTS + WATTS_PER_CPU, rel=0.005)
    assert bill.scope == "process"


def test_part_is_unknown_when_the_server_is_found_too_late() -> None:
    """More than a second after: then all that is not idle is taken for the call's, and nothing calls that measured."""
    bill = bill_of_first_call(found_ms=3000)
    assert bill.energy_nj is not None
    assert bill.energy_nj / NJ_PER_JOULE == pytest.approx(IDLE_WATTS + 2 * WATTS_PER_CPU, rel=0.01)
    assert bill.lower_nj is not None
    assert bill.lower_nj / NJ_PER_JOULE == pytest.approx(IDLE_WATTS, rel=0.01)  # the rest may all be others'
    assert (bill.scope, bill.quality, bill.reason) == ("host", Quality.DEGRADED, "part-unknown")


def test_bill_is_measured_when_little_of_the_work_was_before_the_server_was_found() -> None:
    """Of twenty seconds less than one; the lower bound allows for what others may have drawn in that."""
    bill = bill_of_first_call(found_ms=1500, work_ms=20_000)
    assert bill.quality is Quality.MEASURED
    assert bill.energy_nj is not None
    assert bill.lower_nj is not None
    truth_joules = 20 * (IDLE_WATTS + WATTS_PER_CPU)
    assert bill.lower_nj / NJ_PER_JOULE < truth_joules < bill.energy_nj / NJ_PER_JOULE < 1.05 * truth_joules


def bill_when_samplers_change(last_sample_ms: int, first_ms: int, read_each_ms: int = 50, work_ms: int = 1000) -> Bill:
    """Of a call from 1 s on that keeps one CPU busy, beside a program that always does.

    One sampler ends at ``last_sample_ms``, and the next begins at ``first_ms``.
    """
    ledger = Ledger(0)
    ledger.add_channel(Channel("package-0", "cpu", "rapl", idle_watts=IDLE_WATTS))
    ledger.add_server("llm")
    entry = ledger.open("llm", 1000 * MS)
    for now_ms in range(0, 5001 + work_ms, 50):
        server_ms = min(max(now_ms - 1000, 0), work_ms)
        energy_uj = (IDLE_WATTS * now_ms + WATTS_PER_CPU * (now_ms + server_ms)) * 1000
        if now_ms % read_each_ms == 0:
            ledger.read(Reading("package-0", energy_uj, now_ms * MS, now_ms * MS))
        if now_ms == first_ms:
            ledger.interrupt_activity()
        if now_ms % 250 == 0 and not last_sample_ms < now_ms < first_ms:
            sample = ActivitySample("cpu", now_ms * MS, (now_ms + server_ms) * MS, {"llm": server_ms * MS}, 2, 0, 0)
            ledger.sample(sample)
    ledger.close(entry, (Window(1000 * MS, (1000 + work_ms) * MS),), reported=True)
    ledger.settle((5000 + work_ms) * MS + 1)
    assert entry.bill is not None
    return entry.bill


def test_part_is_unknown_when_nobody_sampled_activity_during_the_call() -> None:
    """Who read the meters has ended amid the call, and the next one's samples begin after it."""
    bill = bill_when_samplers_change(last_sample_ms=750, first_ms=2500)
    assert (bill.scope, bill.quality, bill.reason) == ("host", Quality.DEGRADED, "part-unknown")
    assert bill.lower_nj is not None
    assert bill.energy_nj is not None
    truth_joules = IDLE_WATTS + WATTS_PER_CPU
    assert bill.lower_nj / NJ_PER_JOULE <= truth_joules <= bill.energy_nj / NJ_PER_JOULE


@pytest.mark.parametrize("work_ms", [3000, 20_000])
def test_lower_bound_allows_for_others_when_nobody_sampled_activity_amid_the_call(work_ms: int) -> None:
    """For three quarters of a second: what others drew in that is in the bill, which lies in doubt by as much."""
    bill = bill_when_samplers_change(last_sample_ms=1500, first_ms=2250, work_ms=work_ms)
    assert bill.scope == "host"
    assert bill.quality is (Quality.DEGRADED if work_ms == 3000 else Quality.MEASURED)
    assert bill.lower_nj is not None
    assert bill.energy_nj is not None
    truth_joules = work_ms / 1000 * (IDLE_WATTS + WATTS_PER_CPU)
    assert bill.lower_nj / NJ_PER_JOULE < truth_joules < bill.energy_nj / NJ_PER_JOULE


def test_bill_is_measured_when_samplers_change_before_the_call() -> None:
    """What was known of others does not matter to it."""
    assert bill_when_samplers_change(last_sample_ms=250, first_ms=750).quality is Quality.MEASURED


@pytest.mark.parametrize(("last_sample_ms", "first_ms"), [(1000, 1500), (1250, 2500), (1250, 1750)])
def test_part_is_unknown_when_nobody_sampled_activity_during_much_of_the_work_in_a_bucket(
    last_sample_ms: int, first_ms: int
) -> None:
    """What was sampled of the rest says nothing of it, and is not taken for the whole."""
    bill = bill_when_samplers_change(last_sample_ms, first_ms, read_each_ms=2000)
    assert (bill.scope, bill.quality) == ("host", Quality.DEGRADED)
    assert bill.lower_nj is not None
    assert bill.upper_nj is not None
    truth_joules = IDLE_WATTS + WATTS_PER_CPU
    assert bill.lower_nj / NJ_PER_JOULE <= truth_joules <= bill.upper_nj / NJ_PER_JOULE


@pytest.mark.parametrize(("last_sample_ms", "first_ms"), [(1500, 1750), (750, 1250), (250, 1000)])
def test_bill_is_measured_when_nobody_sampled_activity_during_little_of_the_work_in_a_bucket(
    last_sample_ms: int, first_ms: int
) -> None:
    """The rest of the bucket went on as what was sampled of it."""
    bill = bill_when_samplers_change(last_sample_ms, first_ms, read_each_ms=2000)
    assert (bill.scope, bill.quality) == ("process", Quality.MEASURED)
    assert bill.energy_nj is not None
    assert bill.energy_nj / NJ_PER_JOULE == pytest.approx(IDLE_WATTS + WATTS_PER_CPU, rel=0.001)


@pytest.mark.parametrize("samplers_change", [False, True])
def test_the_whole_cell_is_waited_for_when_samplers_change_at_its_end(samplers_change: bool) -> None:
    """A call of its second half is still open: how busy the server was at work in the first is not known before."""
    ledger = Ledger(0)
    ledger.add_channel(Channel("package-0", "cpu", "rapl", idle_watts=IDLE_WATTS))
    ledger.add_server("llm")
    first, second = ledger.open("llm", 0), ledger.open("llm", 600 * MS)
    ledger.close(first, (Window(0, 400 * MS),), reported=True)
    for now_ms, joules in ((0, 0), (500, 34), (1000, 68)):
        ledger.read(Reading("package-0", joules * 1_000_000, now_ms * MS, now_ms * MS))
    for now_ms, total_ms, server_ms in ((0, 0, 0), (1000, 1200, 800)):
        ledger.sample(ActivitySample("cpu", now_ms * MS, total_ms * MS, {"llm": server_ms * MS}, 2, 0, 0))
    if samplers_change:
        ledger.interrupt_activity()
    ledger.settle(1000 * MS + 1)
    ledger.close(second, (Window(600 * MS, 1000 * MS),), reported=True)
    ledger.settle(1000 * MS + 1)
    assert [entry.bill.energy_nj for entry in (first, second) if entry.bill] == [24 * NJ_PER_JOULE] * 2


def test_what_was_sampled_is_not_scaled_by_what_was_not_when_samplers_change() -> None:
    """A bucket at the end of the call reaches into the time that nobody sampled, and 3 s of it follow."""
    bill = bill_when_samplers_change(last_sample_ms=2000, first_ms=5000, read_each_ms=450, work_ms=1000)
    assert (bill.scope, bill.quality) == ("process", Quality.MEASURED)
    assert bill.energy_nj is not None
    assert bill.energy_nj / NJ_PER_JOULE == pytest.approx(IDLE_WATTS + WATTS_PER_CPU, rel=0.001)


def test_no_part_is_known_when_nobody_sampled_activity_while_one_of_two_servers_worked() -> None:
    """What the other one was seen to do is all that was sampled of the bucket, but not all that was done in it."""
    ledger = Ledger(0)
    ledger.add_channel(Channel("package-0", "cpu", "rapl", idle_watts=IDLE_WATTS))
    entries = []
    for server, work_ms in (("one", 200), ("other", 1000)):
        ledger.add_server(server)
        entries.append(ledger.open(server, 0))
        ledger.close(entries[-1], (Window(0, work_ms * MS),), reported=True)
    for now_ms in (0, 1000):
        energy_uj = (IDLE_WATTS * now_ms + WATTS_PER_CPU * (now_ms + min(now_ms, 200))) * 1000
        ledger.read(Reading("package-0", energy_uj, now_ms * MS, now_ms * MS))
    for now_ms in (200, 1000):
        by_server_ns = {"one": 200 * MS, "other": now_ms * MS}
        ledger.sample(ActivitySample("cpu", now_ms * MS, (200 + now_ms) * MS, by_server_ns, 2, 0, 0))
    ledger.settle(1000 * MS + 1)
    for entry in entries:
        assert entry.bill is not None
        assert (entry.bill.scope, entry.bill.quality) == ("host", Quality.DEGRADED)

"""Several bills as one: the sums, and that nothing of the bills is kept for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_llm_energy.ledger.bill import Bill, Quality, unavailable
from otel_llm_energy.quantities import NJ_PER_JOULE
from otel_llm_energy.tracing.claims import Claim, Whole
from otel_llm_energy.tracing.combining import combined
from otel_llm_energy.tracing.enrich import energy_class
from tests.support.interleaving import interleaved
from tests.tracing.fakes import bill_of

SCOPES = ("process", "device", "host")


def test_bills_add_up_when_a_span_displays_several() -> None:
    """Sums are sums, the quality is the worst one, and what one call does not know the sum does not."""
    one = dataclasses.replace(
        bill_of(12.0, Quality.SHARED),
        above_idle_nj=10_000_000_000,
        lower_nj=11_000_000_000,
        phases_nj={"prefill": 2_000_000_000, "decode": 10_000_000_000},
        concurrency=1.5,
        work_ns=500_000_000,
    )
    other = dataclasses.replace(
        bill_of(1.0, Quality.DEGRADED, "coarse-meter"),
        lower_nj=1,
        phases_nj={"decode": 1},
        meter="nvml",
        scope="device",
        work_ns=500_000_000,
    )
    total = combined([one, other])
    assert total.energy_nj == 13_000_000_000
    assert (total.quality, total.reason) == (Quality.DEGRADED, "coarse-meter")
    assert (total.lower_nj, total.above_idle_nj) == (11_000_000_001, None)
    assert total.phases_nj == {"decode": 10_000_000_001}
    assert (total.meter, total.scope) == ("rapl+nvml", "device")
    assert total.concurrency == 1.25


def test_sum_is_degraded_when_one_of_several_bills_is_unavailable() -> None:
    """A part that is missing is said to be missing."""
    total = combined([bill_of(2.0), unavailable("no-reading")])
    assert (total.energy_nj, total.quality, total.reason) == (2_000_000_000, Quality.DEGRADED, "no-reading")


def nanojoules() -> st.SearchStrategy[int]:
    return st.integers(0, 10**15)


def by_name(*names: str) -> st.SearchStrategy[dict[str, int]]:
    return st.dictionaries(st.sampled_from(names), nanojoules())


def known_bills() -> st.SearchStrategy[Bill]:
    """Bills of any energy, of each quality that such ones have."""
    return st.builds(
        Bill,
        energy_nj=nanojoules(),
        quality=st.sampled_from([quality for quality in Quality if quality is not Quality.UNAVAILABLE]),
        reason=st.sampled_from([None, "late", "coarse-meter"]),
        above_idle_nj=st.none() | nanojoules(),
        lower_nj=st.none() | nanojoules(),
        upper_nj=st.none() | nanojoules(),
        phases_nj=by_name("prefill", "decode", "load"),
        components_nj=by_name("cpu", "memory", "gpu"),
        meter=st.sampled_from(["rapl", "nvml", "rapl+nvml"]),
        scope=st.sampled_from(SCOPES),
        method=st.sampled_from(["none/equal-time", "above-idle/equal-time"]),
        coverage=st.floats(0, 1),
        concurrency=st.floats(1, 100),
        work_ns=st.integers(0, 10**12),
        queue_ns=st.integers(0, 10**12),
    )


def bills() -> st.SearchStrategy[list[Bill]]:
    unknown = st.sampled_from(["no-reading", "max-hold"]).map(unavailable)
    return st.lists(known_bills() | unknown, min_size=1, max_size=8)


def sum_of(parts: Sequence[int | None]) -> int | None:
    return None if None in parts else sum(part for part in parts if part is not None)


def sums_of(parts: Sequence[Mapping[Any, int]]) -> dict[Any, int]:
    common = set.intersection(*[set(part) for part in parts])
    return {key: sum(part[key] for part in parts) for key in common}


@given(bills())
def test_figures_are_those_of_all_bills_when_they_are_added_one_by_one(bills: list[Bill]) -> None:
    """As they are where all of them are looked at together, to the last nanojoule."""
    total = combined(bills)
    known = [bill for bill in bills if bill.energy_nj is not None]
    if not known:
        assert total == bills[0]
        return
    worst = sorted(bills, key=lambda bill: list(Quality).index(bill.quality))[0]
    missing = worst.quality is Quality.UNAVAILABLE
    energy_nj = sum(bill.energy_nj or 0 for bill in known)
    assert total.energy_nj == energy_nj
    assert total.quality is (Quality.DEGRADED if missing and len(bills) > 1 else worst.quality)
    assert total.reason == worst.reason
    assert total.above_idle_nj == sum_of([bill.above_idle_nj for bill in known])
    assert total.lower_nj == sum_of([bill.lower_nj for bill in known])
    assert total.upper_nj == (None if missing else sum_of([bill.upper_nj for bill in known]))
    assert total.phases_nj == sums_of([bill.phases_nj for bill in known])
    assert total.components_nj == sums_of([bill.components_nj for bill in known])
    assert set(total.meter.split("+")) == {name for bill in known for name in bill.meter.split("+")}
    assert total.scope == SCOPES[max(SCOPES.index(bill.scope) for bill in known)]
    assert total.method == known[0].method
    assert (total.work_ns, total.queue_ns) == (sum(b.work_ns for b in known), sum(b.queue_ns for b in known))
    weights = [bill.work_ns or int(not total.work_ns) for bill in known]
    for name in ("coverage", "concurrency"):
        weighed = sum(getattr(bill, name) * weight for bill, weight in zip(known, weights, strict=True))
        assert getattr(total, name) == pytest.approx(weighed / sum(weights))
    whole = Whole()
    for bill in bills:
        whole.take(settled(bill))
    assert whole.bill == total
    assert energy_class((total.energy_nj or 0) / NJ_PER_JOULE) == energy_class(energy_nj / NJ_PER_JOULE)


def settled(bill: Bill) -> Claim:
    """A claim that has this bill."""
    claim = Claim()
    claim.bill = bill
    return claim


@pytest.mark.parametrize("ends", ["before", "meanwhile", "after"])
def test_operation_is_complete_once_when_another_thread_has_a_bill_at_any_instruction(ends: str) -> None:
    """Nobody waits for the other one, and neither leaves a bill to nobody."""

    def end() -> None:
        told.append(whole.end(3, 10, 20))

    def take(joules: float) -> None:
        told.append(whole.take(settled(bill_of(joules))))
        if ends == "meanwhile" and joules == 4.0:
            end()

    step, going_on = 0, True
    while going_on:
        whole, told = Whole(), list[bool]()
        take(1.0)
        if ends == "before":
            end()
        going_on = interleaved([Whole.take, Whole._add, Whole._add_one], step, lambda: take(2.0), lambda: take(4.0))
        if not going_on:
            take(4.0)
        if ends == "after":
            end()
        assert sum(told) == 1
        assert whole.bill is not None
        assert whole.bill.energy_nj == 7 * NJ_PER_JOULE
        assert (whole.input_tokens, whole.output_tokens) == (10, 20)
        step += 1
    assert step > 10

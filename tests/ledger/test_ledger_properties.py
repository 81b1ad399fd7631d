"""The ledger against the slow reference, and against its own promises, on random machines."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from otel_llm_energy.ledger.ledger import Ledger
from otel_llm_energy.ledger.sweep import BATCH_SHARINGS, BatchSharing
from tests.ledger.reference import share
from tests.ledger.scenarios import IDLE_WATTS, MOST_WEIGHT, Machine, close, machines, new_ledger, reading, sample

sharings = st.sampled_from(BATCH_SHARINGS)


def events(machine: Machine) -> list[tuple[int, int, str, object]]:
    """All that happened as (time, kind order, kind, what), in one order of many that are right."""
    happened: list[tuple[int, int, str, object]] = []
    happened += [(t, 0, "reading", (t, e)) for t, e in machine.readings_uj]
    happened += [(t, 1, "sample", (t, total, parts)) for t, total, parts in machine.samples]
    happened += [(call.start_ns, 2, "open", call) for call in machine.calls]
    happened += [(call.end_ns, 3, "close", call) for call in machine.calls]
    return sorted(happened, key=lambda event: event[:2])


def run(machine: Machine, ledger: Ledger, *, settle_at: frozenset[int] = frozenset(), reported: bool = True) -> dict:
    entries = {}
    for index, (time_ns, _, kind, what) in enumerate(events(machine)):
        if kind == "reading":
            ledger.read(reading(*what))
        elif kind == "sample":
            ledger.sample(sample(*what))
        elif kind == "open":
            entries[what.name] = ledger.open(what.server, time_ns)
        else:
            close(ledger, entries[what.name], what, reported=reported)
        if index in settle_at:
            ledger.settle(time_ns)
    ledger.settle(machine.samples[-1][0] + 1)
    return entries


def assert_conserved(ledger: Ledger) -> None:
    """Metered energy is billed, pending or unattributed, to the last nanojoule, and nothing is negative."""
    for balance in ledger.balance().values():
        parts = [balance.billed_nj, balance.pending_nj, *balance.unattributed_nj.values()]
        assert sum(parts) == balance.metered_nj
        assert all(part >= 0 for part in parts), parts


@settings(max_examples=300)
@given(machines(), sharings)
def test_bills_agree_with_the_reference_when_windows_are_known(machine: Machine, sharing: BatchSharing) -> None:
    """Each call gets what exact fractions give it, but for integers' rounding: of energy to nJ, of busy time to ns."""
    ledger = new_ledger(share=sharing)
    entries = run(machine, ledger)
    by_weight = sharing == "phase-tokens"
    expected = share(machine.buckets, machine.cells, machine.calls, IDLE_WATTS, by_weight=by_weight)
    metered_nj = sum(bucket.energy_nj for bucket in machine.buckets)
    tolerance_nj = 100 * (len(machine.buckets) + 1) + metered_nj // 1_000_000
    if by_weight:  # a remainder is less than what is at work weighs together; it is carried to the next step
        tolerance_nj *= MOST_WEIGHT
    for call in machine.calls:
        bill = entries[call.name].bill
        covered = machine.buckets and call.end_ns <= machine.buckets[-1].end_ns
        if bill is None or bill.energy_nj is None:
            assert not covered
            continue
        assert abs(bill.energy_nj - expected.calls_nj[call.name]) <= tolerance_nj
    assert_conserved(ledger)
    (balance,) = ledger.balance().values()
    if balance.metered_nj == metered_nj:
        for reason in ("idle", "other", "outside"):
            unattributed_nj = balance.unattributed_nj.get(reason, 0)
            assert abs(unattributed_nj - expected.unattributed_nj[reason]) <= tolerance_nj, reason


@settings(max_examples=300)
@given(machines(), st.frozensets(st.integers(0, 60)), st.booleans(), sharings)
def test_bills_do_not_depend_on_when_the_ledger_settles(
    machine: Machine, settle_at: frozenset[int], reported: bool, sharing: BatchSharing
) -> None:
    """Settling early or often changes no bill: nothing is swept before it is complete."""
    once, often = new_ledger(share=sharing), new_ledger(share=sharing)
    first = run(machine, once, reported=reported)
    second = run(machine, often, settle_at=settle_at, reported=reported)
    assert {name: entry.bill for name, entry in first.items()} == {name: e.bill for name, e in second.items()}
    assert_conserved(often)


@settings(max_examples=200)
@given(machines(), st.randoms(use_true_random=False), sharings)
def test_bills_do_not_depend_on_the_order_of_equal_events(
    machine: Machine, random: object, sharing: BatchSharing
) -> None:
    """Calls that begin or end at the same instant may be told in any order."""
    shuffled = list(machine.calls)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    first = run(machine, new_ledger(share=sharing))
    second = run(Machine(machine.readings_uj, machine.samples, shuffled), new_ledger(share=sharing))
    assert {name: entry.bill for name, entry in first.items()} == {name: e.bill for name, e in second.items()}


@settings(max_examples=300)
@given(machines(), st.data())
def test_every_joule_is_accounted_for_when_calls_are_late_forced_or_never_end(
    machine: Machine, data: st.DataObject
) -> None:
    """Short waits, windows told too late, bills ahead of the sweep: the sum stays exact and no part is negative."""
    max_wait_ns = data.draw(st.integers(0, 10)) * 50_000_000
    ledger = new_ledger(max_wait_ns=max_wait_ns, share=data.draw(sharings))
    entries, closed, random = {}, [], data.draw(st.randoms(use_true_random=False))
    for time_ns, _, kind, what in events(machine):
        if kind == "reading":
            ledger.read(reading(*what))
        elif kind == "sample":
            ledger.sample(sample(*what))
        elif kind == "open":
            entries[what.name] = ledger.open(what.server, time_ns, random.choice(("chat", "embeddings")))
        elif random.random() < 0.9:
            close(ledger, entries[what.name], what, reported=random.random() < 0.7)
            closed.append(entries[what.name])
        if random.random() < 0.5:
            ledger.settle(time_ns)
            assert_conserved(ledger)
        if closed and random.random() < 0.2:
            ledger.force([random.choice(closed)], "timeout")
            assert_conserved(ledger)
    end_ns = machine.samples[-1][0]
    for entry in entries.values():
        if entry not in closed:
            ledger.close(entry, (), reported=False)
    ledger.read(reading(end_ns + 1, 10**9))
    ledger.sample(sample(end_ns + 3_000_000_000, machine.samples[-1][1] + 10**9, {}))
    ledger.settle(end_ns + 3_000_000_001)
    assert_conserved(ledger)
    assert all(balance.pending_nj == 0 for balance in ledger.balance().values())


@settings(max_examples=200)
@given(machines(), st.integers(0, 250_000_000))
def test_bills_are_the_same_when_the_counter_wraps(machine: Machine, before_wrap_uj: int) -> None:
    """A counter that goes back to zero at a known range gives the same bills as one that never does."""
    range_uj = 10_000_000_000
    readings = [(time_ns, (energy_uj - before_wrap_uj) % range_uj) for time_ns, energy_uj in machine.readings_uj]
    first = run(machine, new_ledger())
    wrapping = new_ledger(range_uj=range_uj)
    second = run(Machine(readings, machine.samples, machine.calls), wrapping)
    assert {name: entry.bill for name, entry in first.items()} == {name: e.bill for name, e in second.items()}
    assert_conserved(wrapping)


@settings(max_examples=200)
@given(machines(), sharings)
def test_bounds_hold_the_share_when_it_is_known(machine: Machine, sharing: BatchSharing) -> None:
    """lower <= energy <= upper, and the components add up to the energy."""
    for entry in run(machine, new_ledger(share=sharing)).values():
        if entry.bill is not None and entry.bill.energy_nj is not None:
            assert entry.bill.lower_nj <= entry.bill.energy_nj <= entry.bill.upper_nj
            assert sum(entry.bill.components_nj.values()) == entry.bill.energy_nj

"""GPUs: each has its own activity, and serves only those who hold a context on it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from otel_llm_energy.ledger.bill import Quality, Window
from otel_llm_energy.ledger.entry import Entry
from otel_llm_energy.ledger.ledger import Ledger
from otel_llm_energy.quantities import NS_PER_SECOND, ActivitySample, Channel, Reading
from tests.ledger.reference import RefCell, share
from tests.ledger.scenarios import IDLE_WATTS, SERVERS, Machine, machines, windows_of
from tests.ledger.test_ledger_properties import assert_conserved

CPU = Channel("package-0", "cpu", "rapl", idle_watts=10)
GPU = Channel("gpu-0", "gpu", "nvml", resource="gpu:a", idle_watts=IDLE_WATTS)


@dataclass(frozen=True)
class GpuMachine:
    """A machine whose activity is a GPU's; at some samples some servers hold no context on it."""

    machine: Machine
    absent: list[frozenset[str]]

    @property
    def cells(self) -> list[RefCell]:
        absent = [before & after for before, after in itertools.pairwise(self.absent)]
        return [replace(cell, absent=gone) for cell, gone in zip(self.machine.cells, absent, strict=True)]


@st.composite
def gpu_machines(draw: st.DrawFn) -> GpuMachine:
    machine = draw(machines())
    absent = [draw(st.frozensets(st.sampled_from(SERVERS))) for _ in machine.samples]
    # Who is absent all through a cell does no work in it.
    samples, gone = [machine.samples[0]], dict.fromkeys(SERVERS, 0)
    for ends, (last, sample) in zip(itertools.pairwise(absent), itertools.pairwise(machine.samples), strict=True):
        for name in frozenset.intersection(*ends):
            now, then = sample[2][name], last[2][name]
            gone[name] += now - then if now is not None and then is not None else 0
        samples.append((sample[0], sample[1], {n: v if v is None else v - gone[n] for n, v in sample[2].items()}))
    return GpuMachine(Machine(machine.readings_uj, samples, machine.calls), absent)


def run(gpu: GpuMachine, *, sharing: str = "time") -> tuple[Ledger, dict[str, Entry]]:
    """The ledger, told everything in order of time and settled at the end."""
    ledger = Ledger(0, idle=sharing)  # type: ignore[arg-type]
    ledger.add_channel(GPU)
    for server in SERVERS:
        ledger.add_server(server)
    machine, entries = gpu.machine, {}
    events = [(t, 0, ("reading", e)) for t, e in machine.readings_uj]
    events += [(s[0], 1, ("sample", (s, absent))) for s, absent in zip(machine.samples, gpu.absent, strict=True)]
    events += [(call.start_ns, 2, ("open", call)) for call in machine.calls]
    events += [(call.end_ns, 3, ("close", call)) for call in machine.calls]
    for time_ns, _, (kind, what) in sorted(events, key=lambda event: event[:2]):
        if kind == "reading":
            ledger.read(Reading("gpu-0", what, time_ns, time_ns))
        elif kind == "sample":
            (_, total_ns, by_server_ns), absent = what
            ledger.sample(ActivitySample("gpu:a", time_ns, total_ns, by_server_ns, 2, 0, 0, absent))
        elif kind == "open":
            entries[what.name] = ledger.open(what.server, time_ns)
        else:
            ledger.close(entries[what.name], windows_of(what), reported=True)
    ledger.settle(machine.samples[-1][0] + 1)
    return ledger, entries


@settings(max_examples=200)
@given(gpu_machines())
def test_bills_agree_with_the_reference_when_servers_come_to_a_gpu_and_leave_it(gpu: GpuMachine) -> None:
    """Idle energy, too, goes to those alone who hold a context."""
    ledger, entries = run(gpu)
    machine = gpu.machine
    expected = share(machine.buckets, gpu.cells, machine.calls, IDLE_WATTS)
    metered_nj = sum(bucket.energy_nj for bucket in machine.buckets)
    tolerance_nj = 100 * (len(machine.buckets) + 1) + metered_nj // 1_000_000
    for call in machine.calls:
        bill = entries[call.name].bill
        if bill is not None and bill.energy_nj is not None:
            assert abs(bill.energy_nj - expected.calls_nj[call.name]) <= tolerance_nj
        elif bill is not None and bill.reason == "not-on-gpu":
            assert expected.calls_nj[call.name] == 0
    assert_conserved(ledger)


@settings(max_examples=100)
@given(gpu_machines(), st.sampled_from(["time", "activity", "none"]))
def test_every_joule_of_a_gpu_is_accounted_for_however_idle_is_shared(gpu: GpuMachine, sharing: str) -> None:
    """To the last nanojoule, and bounds hold the share."""
    ledger, entries = run(gpu, sharing=sharing)
    assert_conserved(ledger)
    for entry in entries.values():
        if entry.bill is not None and entry.bill.energy_nj is not None:
            assert entry.bill.lower_nj is not None and entry.bill.upper_nj is not None
            assert entry.bill.lower_nj <= entry.bill.energy_nj <= entry.bill.upper_nj


def two_channels(absent: frozenset[str], by_server_ns: dict[str, int | None]) -> Entry:
    """A lone call of 2 s in 4 s: 30 W of a CPU at 10 W idle, 105 W of a GPU at 5 W idle."""
    ledger = Ledger(0)
    ledger.add_channel(CPU)
    ledger.add_channel(GPU)
    ledger.add_server("alpha", reports=False)
    entry = ledger.open("alpha", NS_PER_SECOND)
    for second in range(5):
        at_ns, worked_s = second * NS_PER_SECOND, min(max(second - 1, 0), 2)
        ledger.read(Reading("package-0", (10 * second + 20 * worked_s) * 10**6, at_ns, at_ns))
        ledger.read(Reading("gpu-0", (5 * second + 100 * worked_s) * 10**6, at_ns, at_ns))
        ledger.sample(ActivitySample("cpu", at_ns, at_ns, {"alpha": at_ns}, 2, 0, 0))
        work = {name: None if share is None else share * at_ns for name, share in by_server_ns.items()}
        ledger.sample(ActivitySample("gpu:a", at_ns, at_ns, work, 1, 0, 0, absent))
    ledger.close(entry, (Window(NS_PER_SECOND, 3 * NS_PER_SECOND),), reported=False)
    ledger.settle(5 * NS_PER_SECOND)
    assert_conserved(ledger)
    return entry


def test_call_is_billed_for_cpu_and_gpu_when_its_server_works_on_both() -> None:
    """Each part with its own activity; they sum to the whole."""
    bill = two_channels(frozenset(), {"alpha": 1}).bill
    assert bill is not None
    assert bill.components_nj == {"cpu": 60 * 10**9, "gpu": 210 * 10**9}
    assert (bill.energy_nj, bill.meter, bill.scope) == (270 * 10**9, "rapl+nvml", "process")
    assert bill.quality is Quality.MEASURED


def test_call_is_not_billed_for_a_gpu_when_its_server_holds_no_context_there() -> None:
    """Not for its idle power either, nor is the GPU's meter named."""
    bill = two_channels(frozenset({"alpha"}), {"alpha": 0}).bill
    assert bill is not None
    assert bill.components_nj == {"cpu": 60 * 10**9}
    assert (bill.energy_nj, bill.meter) == (60 * 10**9, "rapl")
    assert bill.upper_nj is not None and bill.upper_nj < 61 * 10**9


def test_part_of_a_gpu_is_the_servers_when_others_use_it_too() -> None:
    """A quarter of the work is a quarter of what is above idle."""
    ledger = Ledger(0)
    ledger.add_channel(GPU)
    ledger.add_server("alpha", reports=False)
    entry = ledger.open("alpha", 0)
    for second in range(4):
        at_ns = second * NS_PER_SECOND
        ledger.read(Reading("gpu-0", 105 * second * 10**6, at_ns, at_ns))
        ledger.sample(ActivitySample("gpu:a", at_ns, at_ns, {"alpha": at_ns // 4}, 1, 0, 0))
    ledger.close(entry, (Window(0, 2 * NS_PER_SECOND),), reported=False)
    ledger.settle(4 * NS_PER_SECOND)
    assert entry.bill is not None
    assert entry.bill.energy_nj == (2 * 5 + 2 * 25) * 10**9
    assert ledger.balance()["gpu-0"].unattributed_nj["other"] > 0


def test_call_is_charged_for_the_device_when_its_part_cannot_be_known() -> None:
    """The scope says so."""
    bill = two_channels(frozenset(), {"alpha": None}).bill
    assert bill is not None
    assert bill.components_nj["gpu"] == 210 * 10**9
    assert bill.scope == "host"


def test_call_says_so_when_only_gpus_are_metered_and_its_server_uses_none() -> None:
    """It is not that there is no meter."""
    ledger = Ledger(0)
    ledger.add_channel(GPU)
    ledger.add_server("alpha", reports=False)
    entry = ledger.open("alpha", 0)
    for second in range(4):
        at_ns = second * NS_PER_SECOND
        ledger.read(Reading("gpu-0", 50 * second * 10**6, at_ns, at_ns))
        ledger.sample(ActivitySample("gpu:a", at_ns, at_ns, {"alpha": 0}, 1, 0, 0, frozenset({"alpha"})))
    ledger.close(entry, (Window(0, NS_PER_SECOND),), reported=False)
    ledger.settle(4 * NS_PER_SECOND)
    assert entry.bill is not None
    assert (entry.bill.energy_nj, entry.bill.reason) == (None, "not-on-gpu")
    assert_conserved(ledger)


def test_call_is_not_billed_for_a_gpu_when_its_server_was_found_in_mid_call() -> None:
    """A first call: its server is looked for when it begins, and was no more on the GPU before than then."""
    ledger = Ledger(0)
    ledger.add_channel(CPU)
    ledger.add_channel(GPU)
    ledger.add_server("alpha", reports=False)
    entry = ledger.open("alpha", NS_PER_SECOND)
    for second in range(6):
        at_ns = second * NS_PER_SECOND
        ledger.read(Reading("package-0", 10 * second * 10**6, at_ns, at_ns))
        ledger.read(Reading("gpu-0", 105 * second * 10**6, at_ns, at_ns))
        found = {"alpha": 0} if second > 2 else {}
        absent = frozenset(found)
        ledger.sample(ActivitySample("gpu:a", at_ns, at_ns, found, 1, 0, 0, absent))
    ledger.close(entry, (Window(2 * NS_PER_SECOND, 4 * NS_PER_SECOND),), reported=False)
    ledger.settle(6 * NS_PER_SECOND)
    assert entry.bill is not None
    assert entry.bill.components_nj == {"cpu": 20 * 10**9}

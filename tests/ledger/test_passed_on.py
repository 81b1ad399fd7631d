"""A server that hardly does anything while its calls last: somebody else answers them."""

from __future__ import annotations

from typing import Any

import pytest

from otel_llm_energy.ledger.bill import Bill, Quality, Window
from otel_llm_energy.ledger.ledger import Ledger
from otel_llm_energy.quantities import ActivitySample, Channel, Reading

MS = 1_000_000
IDLE_WATTS, WATTS_PER_CPU = 20, 60


def bill_of_call(
    cpus: float,
    *,
    route: str = "chat",
    begin_ms: int = 0,
    work_ms: int = 1000,
    pauses_ms: int = 0,
    cpus_of_machine: int = 2,
    on_gpu: bool = False,
) -> Bill:
    """Of a call during which its server keeps so many CPUs busy, and another program one.

    It may wait for so long before its work, as for a model's file, and after it, as for a slow reader.
    """
    length_ms = pauses_ms + work_ms + pauses_ms
    last_ms = begin_ms + length_ms + 1000
    ledger = Ledger(0)
    ledger.add_channel(Channel("package-0", "cpu", "rapl", idle_watts=IDLE_WATTS))
    if on_gpu:
        ledger.add_channel(Channel("gpu-0", "gpu", "nvml", resource="gpu:0", idle_watts=10))
    ledger.add_server("llm")
    entry = ledger.open("llm", begin_ms * MS, route)
    for now_ms in sorted({*range(0, last_ms + 1, 50), begin_ms, begin_ms + length_ms}):
        at_ns = now_ms * MS
        server_ms = min(max(now_ms - begin_ms - pauses_ms, 0), work_ms) * cpus
        energy_uj = round((IDLE_WATTS * now_ms + WATTS_PER_CPU * (now_ms + server_ms)) * 1000)
        ledger.read(Reading("package-0", energy_uj, at_ns, at_ns))
        if on_gpu:
            ledger.read(Reading("gpu-0", 300_000 * now_ms, at_ns, at_ns))
        if now_ms % 250 == 0:
            used: dict[str, Any] = {"llm": round(server_ms * MS)}
            total_ns, resolution_ns = round((now_ms + server_ms) * MS), 10 * MS
            ledger.sample(ActivitySample("cpu", at_ns, total_ns, used, cpus_of_machine, resolution_ns, resolution_ns))
            ledger.sample(ActivitySample("gpu:0", at_ns, at_ns, {"llm": at_ns}, 1, 0, 0))
    ledger.close(entry, (Window(begin_ms * MS, (begin_ms + length_ms) * MS),), reported=False)
    ledger.settle(last_ms * MS + 1)
    assert entry.bill is not None
    return entry.bill


@pytest.mark.parametrize("begin_ms", range(0, 250, 30))
@pytest.mark.parametrize("work_ms", [600, 1000])
def test_bill_says_relay_when_the_server_hardly_works(begin_ms: int, work_ms: int) -> None:
    """Wherever in a sample it begins and ends. What the one who works drew is not known: there is no upper bound."""
    bill = bill_of_call(cpus=0.01, begin_ms=begin_ms, work_ms=work_ms)
    assert (bill.quality, bill.reason, bill.upper_nj) == (Quality.DEGRADED, "relay", None)


@pytest.mark.parametrize(
    "given",
    [
        {"cpus": 0.2},
        {"cpus": 0.01, "route": ""},
        {"cpus": 0.01, "cpus_of_machine": 1},
        {"cpus": 0.01, "on_gpu": True},
        {"cpus": 0.01, "work_ms": 100},
        {"cpus": 1, "pauses_ms": 1000},
        {"cpus": 1, "work_ms": 60, "pauses_ms": 1000},
    ],
    ids=["works", "by hand", "one core of many", "on a GPU", "too short to tell", "waits, too", "waits nearly always"],
)
def test_bill_does_not_say_relay_when_the_server_may_well_work(given: dict[str, Any]) -> None:
    """Or where few CPUs say nothing: of work by hand, of a GPU, of a machine whose CPUs are not counted."""
    bill = bill_of_call(**given)
    assert bill.reason != "relay"
    assert bill.upper_nj is not None

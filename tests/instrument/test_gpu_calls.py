"""A call to a real server on a GPU that is played: its energy stands beside the CPU's. NO GPU WAS MEASURED."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from openai import OpenAI
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import otel_llm_energy
from otel_llm_energy import conventions as names
from tests.conftest import LlamaServerFactory
from tests.instrument.asking import ask, calls
from tests.support.fake_nvml import FakeDriver
from tests.support.powercap import PowercapTree
from tests.support.waiting import until

WATTS = 50


@pytest.fixture
def gpus(gpu_driver: FakeDriver, llama_server: LlamaServerFactory) -> Iterator[FakeDriver]:
    """Two GPUs of 50 W, refreshed ten times a second; the model's server holds a context on the first."""
    stop = threading.Event()
    start_ns = time.monotonic_ns()

    def refresh() -> None:
        while not stop.wait(0.1):
            energy_mj = WATTS * (time.monotonic_ns() - start_ns) // 1_000_000
            gpu_driver.say(gpu0_energy_mj=energy_mj, gpu1_energy_mj=energy_mj)

    pid = llama_server().pid
    gpu_driver.say(count=2, gpu0_energy_mj=0, gpu1_energy_mj=0, gpu0_pids=pid, gpu0_busy=90, gpu1_busy=0)
    refreshing = threading.Thread(target=refresh)
    refreshing.start()
    yield gpu_driver
    stop.set()
    refreshing.join()


def all_are_read(energy: otel_llm_energy.Instrumentation) -> bool:
    """Each counter has given a reading: a call that began before that would lack a part."""
    channels = energy.status().channels
    return len(channels) == 4 and all(channel.age_seconds is not None for channel in channels)


def test_call_has_a_gpu_part_when_its_server_works_on_one(
    client: OpenAI,
    provider: TracerProvider,
    exporter: InMemorySpanExporter,
    powercap: PowercapTree,
    gpus: FakeDriver,
) -> None:
    """The parts sum to the whole; of the GPU that it does not use it gets nothing."""
    energy = otel_llm_energy.instrument(
        tracer_provider=provider,
        meters=["rapl", "nvml"],
        powercap_root=powercap.root,
        detail="full",
        idle_watts={"package-0": 20, "package-0/dram": 2, "gpu-0": 10, "gpu-1": 10},
    )
    try:
        until(lambda: all_are_read(energy))
        ask(client)
        ask(client, max_tokens=40)
        until(lambda: len(calls(exporter)) == 2)
        billed_nj = {each.channel.id: each.balance.billed_nj for each in energy.status().channels}
    finally:
        energy.uninstrument()
    attributes = calls(exporter)[-1].attributes or {}
    parts = [attributes[key] for key in (names.CPU_JOULES, names.MEMORY_JOULES, names.GPU_JOULES)]
    assert all(part > 0 for part in parts)
    assert sum(parts) == pytest.approx(attributes[names.JOULES], rel=1e-4)
    assert attributes[names.METER] == "rapl+nvml"
    assert billed_nj["gpu-0"] > 0
    assert billed_nj["gpu-1"] == 0


def test_call_says_why_when_a_gpu_is_lost(
    client: OpenAI,
    provider: TracerProvider,
    exporter: InMemorySpanExporter,
    powercap: PowercapTree,
    gpus: FakeDriver,
) -> None:
    """The app gets its answer; the span leaves in time, without joules of which a part would be missing."""
    expected = ask(client)
    energy = otel_llm_energy.instrument(
        tracer_provider=provider, meters=["rapl", "nvml"], powercap_root=powercap.root, max_hold=10
    )
    try:
        until(lambda: all_are_read(energy))
        gpus.say(gpu0_error=15)
        assert ask(client) == expected
        until(lambda: len(calls(exporter)) == 1)
    finally:
        energy.uninstrument()
    attributes = calls(exporter)[-1].attributes or {}
    assert names.JOULES not in attributes
    assert (attributes[names.QUALITY], attributes[names.REASON]) == ("unavailable", "counter-silent")


def test_call_is_billed_when_a_gpu_is_lost_that_its_server_does_not_use(
    client: OpenAI,
    provider: TracerProvider,
    exporter: InMemorySpanExporter,
    powercap: PowercapTree,
    gpus: FakeDriver,
) -> None:
    """One of eight that falls off its bus takes the energy of no other server's calls."""
    energy = otel_llm_energy.instrument(
        tracer_provider=provider, meters=["rapl", "nvml"], powercap_root=powercap.root, detail="full"
    )
    try:
        until(lambda: all_are_read(energy))
        ask(client)
        until(lambda: len(calls(exporter)) == 1)
        gpus.say(gpu1_error=15)
        for _ in range(2):
            ask(client)
        until(lambda: len(calls(exporter)) == 3)
    finally:
        energy.uninstrument()
    for span in calls(exporter):
        assert (span.attributes or {})[names.GPU_JOULES] > 0

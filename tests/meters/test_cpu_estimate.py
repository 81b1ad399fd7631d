"""The estimate from CPU time, over a /proc/stat of our own making and over the real one."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_llm_energy.machine import TICK_NS, busy_time
from otel_llm_energy.meters.base import MeterError
from otel_llm_energy.meters.cpu_estimate import CpuEstimate
from tests.meters.exporters import ManualClock
from tests.support.descriptors import of_file


class Machine:
    """A machine whose CPUs do as they are told: its /proc and its clock."""

    def __init__(self, proc: Path, cpus: int = 4) -> None:
        self.proc = proc
        self.cpus = cpus
        self.clock = ManualClock()
        self.idle_ns = 50_000_000_000
        self.work(0, 0)

    def work(self, seconds: float, busy_cpus: float) -> None:
        """Let time pass with so many CPUs busy."""
        self.clock.advance(seconds)
        self.idle_ns += round(seconds * (self.cpus - busy_cpus) * 1e9)
        row = f"7 7 7 {self.idle_ns // TICK_NS} 0 0 0 0 0 0\n"
        self.proc.joinpath("stat").write_text(
            f"cpu  {row}" + "".join(f"cpu{cpu} {row}" for cpu in range(self.cpus)) + "intr 1 2 3\nctxt 4\n"
        )

    def estimate(self, **options: float) -> CpuEstimate:
        """An open estimate of this machine."""
        meter = CpuEstimate(proc=self.proc, cgroup=self.proc, clock_ns=self.clock, **options)
        meter.open()
        return meter


def joules(meter: CpuEstimate) -> float:
    """What it estimates up to now."""
    (reading,) = meter.read()
    return reading.energy_uj / 1e6


def test_the_channel_says_that_it_is_an_estimate_when_opened(tmp_path: Path) -> None:
    """Estimated, with the model's own idle power and a wide error."""
    machine = Machine(tmp_path, cpus=4)
    meter = CpuEstimate(
        min_watts_per_cpu=1, max_watts_per_cpu=3, proc=tmp_path, cgroup=tmp_path, clock_ns=machine.clock
    )
    (channel,) = meter.open()
    assert channel.estimated
    assert (channel.meter, channel.component, channel.resource) == ("cpu-estimate", "cpu", "cpu")
    assert (channel.idle_watts, channel.limit_watts) == (4, 12)
    assert channel.scale_error >= 0.5
    assert not meter.pace.at_edges


def test_joules_follow_the_model_when_cpus_work(tmp_path: Path) -> None:
    """Ten seconds of four CPUs, one and a half of them busy: 4 x 1 W + 1.5 x 2 W."""
    machine = Machine(tmp_path, cpus=4)
    meter = machine.estimate(min_watts_per_cpu=1, max_watts_per_cpu=3)
    before = joules(meter)
    machine.work(10, busy_cpus=1.5)
    assert joules(meter) - before == pytest.approx(70.0)


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(-1, 5)), max_size=30))
def test_the_counter_never_falls_when_the_kernel_rounds(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[float, int]]
) -> None:
    """Idle time in ticks, and iowait that steps back, must not make negative energy."""
    machine = Machine(tmp_path_factory.mktemp("proc"), cpus=4)
    meter = machine.estimate()
    last = 0.0
    for seconds, busy_cpus in steps:
        machine.work(seconds, busy_cpus)
        now = joules(meter)
        assert now >= last
        last = now


def test_busy_time_goes_on_when_a_cpu_is_taken_away(tmp_path: Path) -> None:
    """Hot-plugging changes the capacity, not what was used so far."""
    machine = Machine(tmp_path, cpus=4)
    busy = busy_time(tmp_path, tmp_path, machine.clock)
    start_ns = busy.read().busy_ns
    machine.work(5, busy_cpus=1)
    assert busy.read().busy_ns - start_ns == 5_000_000_000
    machine.cpus = 2
    machine.work(0, 0)
    assert busy.read().cpus == 2
    machine.work(5, busy_cpus=2)
    assert busy.read().busy_ns - start_ns == 15_000_000_000
    busy.close()
    busy.close()


def test_busy_time_is_read_on_when_a_daemon_closed_all_and_opened_files_of_its_own(tmp_path: Path) -> None:
    """Activity was unknown from then on, and so all bills; and at the end the daemon's file was closed."""
    machine = Machine(tmp_path, cpus=4)
    busy = busy_time(tmp_path, tmp_path, machine.clock)
    start_ns = busy.read().busy_ns
    number = of_file(tmp_path / "stat")
    os.close(number)
    with socket.socket() as other:
        assert other.fileno() == number
        machine.work(5, busy_cpus=1)
        assert busy.read().busy_ns - start_ns == 5_000_000_000
        busy.close()
        assert os.fstat(number)


def test_the_root_cgroup_is_read_when_there_is_one(tmp_path: Path) -> None:
    """It counts in nanoseconds; a container's group, which has no release_agent, does not count the machine."""
    machine = Machine(tmp_path)
    group = tmp_path / "cpuacct"
    group.mkdir()
    (group / "cpuacct.usage").write_text("12345678901\n")
    assert busy_time(tmp_path, tmp_path, machine.clock).read().busy_ns != 12_345_678_901
    (group / "release_agent").touch()
    assert busy_time(tmp_path, tmp_path, machine.clock).read().busy_ns == 12_345_678_901


def test_joules_are_estimated_when_the_machine_is_this_one() -> None:
    """The real kernel gives what the model needs."""
    meter = CpuEstimate()
    (channel,) = meter.open()
    (first,) = meter.read()
    sum(range(3_000_000))
    (second,) = meter.read()
    seconds = (second.latest_ns - first.earliest_ns) / 1e9
    assert channel.limit_watts is not None
    assert second.energy_uj - first.energy_uj > 0
    assert (second.energy_uj - first.energy_uj) / 1e6 < channel.limit_watts * (seconds + 0.1)
    meter.close()


@pytest.mark.parametrize("content", [None, "", "cpu\n", "cpu a b c d e\n"])
def test_an_error_says_so_when_there_is_no_cpu_time(tmp_path: Path, content: str | None) -> None:
    """Not Linux, or not a /proc."""
    if content is not None:
        (tmp_path / "stat").write_text(content)
    with pytest.raises(MeterError) as caught:
        CpuEstimate(proc=tmp_path, cgroup=tmp_path).open()
    assert caught.value.reason == "meter-not-found"


def test_an_error_is_raised_when_the_meter_is_closed() -> None:
    """No reading of zero from a closed meter."""
    with pytest.raises(MeterError) as caught:
        CpuEstimate().read()
    assert caught.value.reason == "meter-closed"


@pytest.mark.parametrize(("low", "high"), [(-1, 1), (2, 1), (float("nan"), 1)])
def test_nonsense_watts_are_refused_when_the_meter_is_made(low: float, high: float) -> None:
    """The message names both values and what is allowed."""
    with pytest.raises(ValueError, match="0 <= min <= max"):
        CpuEstimate(min_watts_per_cpu=low, max_watts_per_cpu=high)

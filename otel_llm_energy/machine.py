"""Busy time of this machine's CPUs, from the best counter that the kernel offers.

Below meters and servers because both need it: an estimate turns it into joules, a server's part is a share of it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

from otel_llm_energy.quantities import NS_PER_SECOND
from otel_llm_energy.syscalls import HeldFile

PROC = Path("/proc")
CGROUP = Path("/sys/fs/cgroup")
TICK_NS = NS_PER_SECOND // os.sysconf("SC_CLK_TCK")

# Room for the lines of some 800 CPUs, which come first in /proc/stat.
_STAT_BYTES = 1 << 16
_COUNTER_BYTES = 64


def cpu_model() -> str:
    """The CPU's name as the kernel has it; empty where it says none."""
    try:
        lines = (PROC / "cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


class BusySample(NamedTuple):
    """What all CPUs did so far: cumulative busy time, ns, and how many CPUs there are."""

    at_ns: int
    busy_ns: int
    cpus: int


class BusyTime(Protocol):
    """A cumulative counter of the machine's busy CPU time; it never falls. Not thread-safe.

    Attributes:
        resolution_ns: error of one difference of ``busy_ns``.
    """

    resolution_ns: int

    def read(self) -> BusySample:
        """Read it now. Raises `OSError` or `ValueError`."""

    def close(self) -> None:
        """Give back the descriptor. Never raises."""


def busy_time(proc: Path = PROC, cgroup: Path = CGROUP, clock_ns: Callable[[], int] = time.monotonic_ns) -> BusyTime:
    """Open the best source: the root cgroup's CPU time in ns (cgroup v1), else what was not idle in /proc/stat.

    The root of cgroup v2 is no better than /proc/stat: its ``cpu.stat`` sums the same sampled ticks.
    """
    for controller in ("cpuacct", "cpu,cpuacct"):
        folder = cgroup / controller
        if (folder / "release_agent").exists():  # only a hierarchy's root has one; in a container it is not the root
            return _CpuAccounting(folder / "cpuacct.usage", clock_ns)
    return _NotIdle(proc / "stat", clock_ns)


class _CpuAccounting:
    """Time that the scheduler charged to all tasks, ns; a running task is charged at its CPU's next tick."""

    resolution_ns = TICK_NS

    def __init__(self, path: Path, clock_ns: Callable[[], int]) -> None:
        self._file = HeldFile(path, _COUNTER_BYTES)
        self._clock_ns = clock_ns
        self._cpus = os.cpu_count() or 1

    def read(self) -> BusySample:
        busy_ns = self._file.read(int)
        return BusySample(self._clock_ns(), busy_ns, self._cpus)

    def close(self) -> None:
        self._file.close()


class _NotIdle:
    """CPUs x elapsed time - (idle + iowait + steal) of /proc/stat.

    The kernel keeps idle time exactly, but busy time by sampling it at ticks: against the scheduler's own sum, in
    steps of 250 ms, the complement was off by 5 ms rms without bias, user + system + irq by 10 ms with a bias of -2 ms.
    """

    resolution_ns = 2 * TICK_NS  # idle and iowait are each cut off at a tick

    def __init__(self, path: Path, clock_ns: Callable[[], int]) -> None:
        self._file = HeldFile(path, _STAT_BYTES)
        self._clock_ns = clock_ns
        self._cpus = 0
        self._base_ns = 0  # busy time before the number of CPUs last changed
        self._start_ns = 0  # complement of idle time at that change
        self._highest_ns = 0

    def read(self) -> BusySample:
        idle_ns, cpus = self._file.read(_idle)
        at_ns = self._clock_ns()
        complement_ns = cpus * at_ns - idle_ns
        if cpus != self._cpus:
            self._cpus, self._base_ns, self._start_ns = cpus, self._highest_ns, complement_ns
        # Cut-off ticks and a falling iowait make it step back a little: hold the highest value.
        self._highest_ns = max(self._highest_ns, self._base_ns + complement_ns - self._start_ns)
        return BusySample(at_ns, self._highest_ns, cpus)

    def close(self) -> None:
        self._file.close()


def _idle(text: bytes) -> tuple[int, int]:
    """From /proc/stat the time in which CPUs were not busy with anything of ours, ns, and how many there are."""
    _, _, _, _, idle, iowait, _, _, steal, *_ = text[: text.index(b"\n")].split()
    return (int(idle) + int(iowait) + int(steal)) * TICK_NS, text.count(b"\ncpu")

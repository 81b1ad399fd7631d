"""CPU time in nanoseconds: of the whole machine, of a process, of a process tree (Linux).

The 10 ms ticks of ``/proc/stat`` are too coarse here: at 60 W a tick is 0.6 J.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol

import psutil

_ROOT_CGROUP_V1 = Path("/sys/fs/cgroup/cpuacct/cpuacct.usage")
_LOOK_SECONDS = 0.02


class BusyClock(Protocol):
    """Cumulative busy time of the machine's CPUs since some fixed instant."""

    def read_ns(self) -> int:
        """Busy time, ns; two busy CPUs count double. Never goes back."""


def busy_clock() -> BusyClock:
    """The most precise clock that this machine has."""
    if _ROOT_CGROUP_V1.is_file() and _in_root_of("cpuacct"):
        return CgroupClock(_ROOT_CGROUP_V1)
    return ProcessSumClock()


class CgroupClock:
    """The root control group's own account (cgroup v1): exact to a scheduler tick, and never forgets a process."""

    def __init__(self, usage: Path) -> None:
        self._descriptor = os.open(usage, os.O_RDONLY | os.O_CLOEXEC)

    def read_ns(self) -> int:
        return int(os.pread(self._descriptor, 32, 0))


class ProcessSumClock:
    """The sum over some processes: exact, but for what one did between our last look at it and its end.

    Args:
        pids: which ones.
        look_seconds: how often that is asked again; what a new one did before is counted then.
    """

    def __init__(self, pids: Callable[[], Iterable[int]] = psutil.pids, *, look_seconds: float = _LOOK_SECONDS) -> None:
        self._pids = pids
        self._look_ns = int(look_seconds * 1e9)
        self._known_ns: dict[int, int] = {}
        self._ended_ns = 0
        self._looked_ns = 0
        self._look_for_new_processes()

    def read_ns(self) -> int:
        now_ns = time.monotonic_ns()
        if now_ns - self._looked_ns >= self._look_ns:
            self._look_for_new_processes()
        for pid, before_ns in list(self._known_ns.items()):
            after_ns = process_cpu_ns(pid)
            if after_ns is None:
                self._ended_ns += self._known_ns.pop(pid)
            elif after_ns < before_ns:  # the number went to a new process
                self._ended_ns += before_ns
                self._known_ns[pid] = after_ns
            else:
                self._known_ns[pid] = after_ns
        return self._ended_ns + sum(self._known_ns.values())

    def _look_for_new_processes(self) -> None:
        self._looked_ns = time.monotonic_ns()
        for pid in self._pids():
            self._known_ns.setdefault(pid, 0)


def process_cpu_ns(pid: int) -> int | None:
    """CPU time of all threads of ``pid``, ended ones too, ns; ``None`` if there is no such process.

    Source: the kernel's clock of another process, whose number is ``(~pid << 3) | CPUCLOCK_SCHED`` (what
    ``clock_getcpuclockid(3)`` returns); it needs no permission.
    """
    try:
        return time.clock_gettime_ns((~pid << 3) | 2)
    except OSError:
        return None


def tree_cpu_ns(pid: int) -> int:
    """CPU time of ``pid`` and its living descendants, ns."""
    return sum(process_cpu_ns(member) or 0 for member in process_tree(pid))


def process_tree(pid: int) -> Iterator[int]:
    """``pid`` and its living descendants."""
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found = children.read_text().split()
        except OSError:  # the thread has ended since
            continue
        for child in found:
            yield from process_tree(int(child))


def _in_root_of(controller: str) -> bool:
    """Whether this process sees the machine's root group, not a container's, under the controller's mount."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            return path == "/"
    return False

"""Which part of the CPUs' busy time is whose: samples of the machine and of the watched servers' process trees."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path

from otel_llm_energy.machine import CGROUP, PROC, TICK_NS, BusyTime, busy_time
from otel_llm_energy.quantities import ActivitySample
from otel_llm_energy.servers.procfs import Procfs, parse_stat
from otel_llm_energy.servers.server import Server
from otel_llm_energy.syscalls import Held, pread

_STAT_BYTES = 1024
_CPUCLOCK_SCHED = 2

_logger = logging.getLogger(__name__)

CpuClock = Callable[[int], int | None]


def process_cpu_ns(pid: int) -> int | None:
    """CPU time of all threads of a process, ended ones too, ns; ``None`` if there is no such process.

    Source: the process's own clock, whose number clock_getcpuclockid(3) computes like this. No permission is needed. A
    thread that runs right now is charged at its CPU's next tick (1 to 10 ms). /proc/PID/schedstat knows only living
    threads, /proc/PID/stat only whole ticks.
    """
    try:
        return time.clock_gettime_ns((~pid << 3) | _CPUCLOCK_SCHED)
    except OSError:
        return None


class CpuActivity:
    """Samples the CPU time of the machine and of watched servers. Thread-safe; made for one sample every 250 ms.

    Args:
        proc, cgroup: roots of the kernel's file systems.
        clock_ns: the monotonic clock.
        cpu_clock: CPU time of a process by its number; ``None`` for the ticks of /proc/PID/stat.
    """

    def __init__(
        self,
        *,
        proc: Path = PROC,
        cgroup: Path = CGROUP,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        cpu_clock: CpuClock | None = process_cpu_ns,
    ) -> None:
        self._procfs = Procfs(proc)
        self._cgroup = cgroup
        self._clock_ns = clock_ns
        self._busy: BusyTime | None = None
        if cpu_clock is not None and cpu_clock(os.getpid()) is None:
            cpu_clock = None  # a kernel without process clocks
        self._cpu_clock = cpu_clock
        self._resolution_ns = TICK_NS if cpu_clock is not None else 2 * TICK_NS
        self._lock = threading.Lock()
        self._trees: dict[str, ProcessTree | None] = {}
        self._roots: set[int] = set()
        self._newest_pid: bytes | None = None
        self._warned = False

    def watch(self, server: Server) -> None:
        """From now on sample this server too; one without a process tree counts as unknown.

        One that seemed to have ended is tried again: there may have been no descriptor left for it.
        """
        with self._lock:
            tree = self._trees.get(server.id)
            if server.id in self._trees and (tree is None or tree.is_there):
                return
            if server.pid is not None:
                self._roots.add(server.pid)
                for other in self._trees.values():
                    if other is not None:
                        other.disown(server.pid)
                tree = ProcessTree(server.pid, server.start_ticks, self._procfs, self._cpu_clock, self._roots)
            self._trees[server.id] = tree

    def forget(self, server_id: str) -> None:
        """Sample this server no more."""
        with self._lock:
            tree = self._trees.pop(server_id, None)
            if tree is not None:
                self._roots.discard(tree.root)
                tree.close()

    def sample(self) -> ActivitySample | None:
        """Sample now; ``None`` where the kernel shows no CPU time (not Linux)."""
        with self._lock:
            newest_pid = self._procfs.newest_pid()
            forked = newest_pid is None or newest_pid != self._newest_pid
            self._newest_pid = newest_pid
            try:
                self._busy = self._busy or busy_time(self._procfs.root, self._cgroup, self._clock_ns)
                busy = self._busy.read()
            except (OSError, ValueError) as error:
                self._warn(error)
                return None
            by_server_ns = {
                server_id: None if tree is None else tree.read_ns(forked) for server_id, tree in self._trees.items()
            }
            return ActivitySample(
                resource="cpu",
                at_ns=busy.at_ns,
                total_ns=busy.busy_ns,
                by_server_ns=by_server_ns,
                capacity=busy.cpus,
                resolution_ns=self._resolution_ns,
                total_resolution_ns=self._busy.resolution_ns,
            )

    def snapshot(self) -> Callable[[], ActivitySample | None]:
        """Note the CPU time of every process, since it takes some 10 ms to find out which of them is a server.

        Returns:
            what gives a sample of this instant, with the servers that are watched by the time it is called.
        """
        sample = self.sample()
        if sample is None:
            return lambda: None
        cpu_ns = {pid: used_ns for pid in self._procfs.pids() if (used_ns := self._process_ns(pid)) is not None}

        def of_then() -> ActivitySample:
            with self._lock:
                found = {name: tree for name, tree in self._trees.items() if name not in sample.by_server_ns}
                then_ns = {name: None if tree is None else tree.then_ns(cpu_ns) for name, tree in found.items()}
            return replace(sample, by_server_ns={**sample.by_server_ns, **then_ns})

        return of_then

    def _process_ns(self, pid: int) -> int | None:
        if self._cpu_clock is not None:
            return self._cpu_clock(pid)
        stat = self._procfs.stat(pid)
        return None if stat is None else stat.cpu_ns

    def close(self) -> None:
        """Give back all descriptors and forget all servers."""
        with self._lock:
            for tree in self._trees.values():
                if tree is not None:
                    tree.close()
            self._trees.clear()
            self._roots.clear()
            busy, self._busy = self._busy, None
            if busy is not None:
                busy.close()

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            _logger.warning("The machine's CPU time cannot be read (%s): no server's part of it can be known.", error)


class ProcessTree:
    """The CPU time of a process and its descendants; what ended ones used stays in the sum. Not thread-safe.

    A child may end after its last reading, or start and end between two readings. What it used and no reading showed
    is found in its parent's ``cutime`` and ``cstime``, in ticks, once the parent has waited for it.

    The descriptor of /proc/PID/stat is kept open: reading it fails once the process is gone, even if its number is
    used again.

    Args:
        pid: the root.
        start_ticks: when it started; another process of that number is none of ours.
        procfs, cpu_clock: see `CpuActivity`.
        others: roots of trees that are counted by themselves: an app may have started its LLM server.
    """

    def __init__(
        self,
        pid: int,
        start_ticks: int | None,
        procfs: Procfs,
        cpu_clock: CpuClock | None,
        others: Collection[int] = (),
    ) -> None:
        self.root = pid
        self._others = others
        self._disowned: set[int] = set()  # for good: what they used until they came back could not be told apart
        self._procfs = procfs
        self._cpu_clock = cpu_clock
        self._descriptors: dict[int, Held] = {}
        self._cpu_ns: dict[int, int] = {}
        self._ended_ns = 0
        self._waited_ns: dict[int, int] = {}  # by process: what the children used for which it has waited
        self._newly_waited_ns = self._newly_ended_ns = 0  # since the last look; of the latter, what was known of them
        self._unwaited_ns = 0  # known of those that had ended by the last look, but that no parent had waited for yet
        self._apart: set[int] = set()  # trees of their own below this one, until they end
        self._admit(pid)
        if start_ticks is not None and self._start_ticks() != start_ticks:
            self.close()
        self._look_for_children()
        self._waited_ns.clear()  # what they have waited for by now was used before; of those that come it was not

    @property
    def is_there(self) -> bool:
        """The root is known to live."""
        return self.root in self._descriptors

    def read_ns(self, forked: bool = True) -> int | None:
        """The sum, ns; ``None`` once the root has ended.

        Args:
            forked: a process was started on this machine since the last time, so there may be new children.
        """
        if forked:
            self._look_for_children()
        for pid in list(self._descriptors):
            self._read(pid)
        if not self.is_there:
            self.close()
            return None
        self._add_unseen()
        return self._ended_ns + sum(self._cpu_ns.values())

    def then_ns(self, cpu_ns: Mapping[int, int]) -> int | None:
        """What `read_ns` would have been when the processes had used so much; ``None`` if the root was not there."""
        return sum(cpu_ns.get(pid, 0) for pid in self._descriptors) if self.root in cpu_ns else None

    def _add_unseen(self) -> None:
        """Add what ended children used beyond what was known of them."""
        waited_ns, ended_ns = self._newly_waited_ns, self._newly_ended_ns
        self._newly_waited_ns = self._newly_ended_ns = 0
        if waited_ns and self._one_apart_has_ended():
            waited_ns = 0  # among it is all that the other tree ever used
        more_ns = max(waited_ns - self._unwaited_ns, 0)
        self._ended_ns += max(more_ns - ended_ns, 0)
        # A parent that was looked at just before it waited for its child will tell at the next look.
        self._unwaited_ns = max(ended_ns - more_ns, 0)

    def _one_apart_has_ended(self) -> bool:
        ended = {pid for pid in self._apart if self._procfs.stat(pid) is None}
        self._apart -= ended
        return bool(ended)

    def disown(self, pid: int) -> None:
        """From now on a process below and its descendants are another tree; what they used so far stays in the sum."""
        pending = [pid] if pid != self.root and pid in self._descriptors else []
        self._apart.update(pending)
        while pending:
            child = pending.pop()
            self._disowned.add(child)
            pending += [each for each in self._procfs.children(child) if each in self._descriptors]
            self._read(child)
            if child in self._descriptors:
                self._dismiss(child)

    def close(self) -> None:
        """Give back the descriptors."""
        while self._descriptors:
            self._descriptors.popitem()[1].close()

    def _read(self, pid: int) -> None:
        # The clock first: if the process still lives after it, the clock was its own and not a successor's.
        cpu_ns = self._cpu_clock(pid) if self._cpu_clock is not None else None
        try:
            stat = parse_stat(pread(self._descriptors[pid].number, _STAT_BYTES))
        except (OSError, ValueError):
            self._newly_ended_ns += self._cpu_ns[pid] + self._waited_ns.get(pid, 0)
            self._dismiss(pid)
            return
        self._newly_waited_ns += stat.waited_ns - self._waited_ns.get(pid, stat.waited_ns)
        self._waited_ns[pid] = stat.waited_ns
        if self._cpu_clock is None:
            cpu_ns = stat.cpu_ns
        if cpu_ns is not None:
            self._cpu_ns[pid] = max(self._cpu_ns[pid], cpu_ns)
        # A child that has ended is kept until its parent has taken note: until then it is still listed as a child.
        if stat.ended and pid == self.root:
            self._dismiss(pid)

    def _look_for_children(self) -> None:
        pending = list(self._descriptors)
        while pending:
            for child in self._procfs.children(pending.pop()):
                if child in self._others:
                    self._disowned.add(child)
                    self._apart.add(child)
                if child not in self._descriptors and child not in self._disowned and self._admit(child):
                    pending.append(child)

    def _admit(self, pid: int) -> bool:
        try:
            self._descriptors[pid] = Held.of(os.open(f"{self._procfs.root}/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC))
        except OSError:
            return False
        self._cpu_ns[pid] = self._waited_ns[pid] = 0
        return True

    def _dismiss(self, pid: int) -> None:
        self._descriptors.pop(pid).close()
        self._ended_ns += self._cpu_ns.pop(pid)
        self._waited_ns.pop(pid, None)

    def _start_ticks(self) -> int | None:
        stat = self._procfs.stat(self.root)
        return None if stat is None else stat.start_ticks

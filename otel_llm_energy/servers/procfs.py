"""The parts of /proc that say which processes there are. Source: proc(5).

What cannot be read (the process has ended, or is another user's) is ``None`` or left out, never an error.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from otel_llm_energy.machine import PROC, TICK_NS
from otel_llm_energy.syscalls import names_in, read_file, read_link


class ProcessStat(NamedTuple):
    """/proc/PID/stat: parent, start (clock ticks since boot), CPU time of all threads (ns, in whole ticks).

    ``waited_ns`` is the CPU time of those children, and of theirs, that have ended and that it has waited for.
    """

    parent: int
    start_ticks: int
    cpu_ns: int
    ended: bool
    waited_ns: int


def parse_stat(text: bytes) -> ProcessStat:
    """Parse a line of /proc/PID/stat; the name in it may hold spaces and brackets. Raises `ValueError`."""
    try:
        fields = text[text.rindex(b")") + 2 :].split()
        state, threads = fields[0], int(fields[17])
        # A main thread that has left the others behind is a zombie too, but its process lives.
        ended = state in b"ZX" and threads <= 1
        user, system, waited_user, waited_system = map(int, fields[11:15])
        cpu_ns, waited_ns = (user + system) * TICK_NS, (waited_user + waited_system) * TICK_NS
        return ProcessStat(int(fields[1]), int(fields[19]), cpu_ns, ended, waited_ns)
    except IndexError:
        raise ValueError("a line of /proc/PID/stat is cut short") from None


class Procfs:
    """A view of /proc, or of a copy of it in tests."""

    def __init__(self, root: Path = PROC) -> None:
        self.root = root
        # Absent in kernels without CONFIG_PROC_CHILDREN.
        self._lists_children = (root / "thread-self" / "children").exists()

    def pids(self) -> list[int]:
        """All processes that are to be seen."""
        return [int(name) for name in _names(str(self.root)) if name.isdecimal()]

    def stat(self, pid: int) -> ProcessStat | None:
        """Parent, start and CPU time."""
        text = self._glance(f"{pid}/stat")
        try:
            return None if text is None else parse_stat(text)
        except ValueError:
            return None

    def arguments(self, pid: int) -> list[str]:
        """The command line; empty for a kernel thread."""
        text = self._read(f"{pid}/cmdline") or b""
        return [word.decode(errors="replace") for word in text.rstrip(b"\0").split(b"\0")] if text else []

    def short_name(self, pid: int) -> str:
        """The name that the kernel keeps, at most 15 characters."""
        return (self._glance(f"{pid}/comm") or b"").decode(errors="replace").strip()

    def environment(self, pid: int) -> dict[str, str]:
        """The environment that it was started with; empty if it is another user's."""
        text = (self._read(f"{pid}/environ") or b"").decode(errors="replace")
        return dict(word.split("=", 1) for word in text.split("\0") if "=" in word)

    def user_id(self, pid: int) -> int | None:
        """The effective user."""
        for line in (self._glance(f"{pid}/status") or b"").splitlines():
            if line.startswith(b"Uid:"):
                return int(line.split()[2])
        return None

    def sockets(self, pid: int) -> Iterator[int]:
        """Inodes of the sockets that it holds; nothing if it is another user's."""
        folder = f"{self.root}/{pid}/fd"
        for descriptor in _names(folder):
            try:
                target = read_link(f"{folder}/{descriptor}")
            except OSError:  # closed since
                continue
            if target.startswith("socket:["):
                yield int(target[8:-1])

    def children(self, pid: int) -> list[int]:
        """Its living children."""
        if not self._lists_children:
            return [child for child in self.pids() if (stat := self.stat(child)) and stat.parent == pid]
        lists = (self._glance(f"{pid}/task/{thread}/children") for thread in _names(f"{self.root}/{pid}/task"))
        return [int(child) for text in lists if text for child in text.split()]

    def tree(self, pid: int) -> list[int]:
        """The process and all its living descendants."""
        found = [pid]
        for member in found:
            found.extend(child for child in self.children(member) if child not in found)
        return found

    def addresses(self, pid: int) -> set[str]:
        """The IPv4 addresses of the network namespace that it lives in."""
        lines = (self._read(f"{pid}/net/fib_trie") or b"").decode(errors="replace").split("\n")
        return {
            line.strip().removeprefix("|-- ") for line, following in pairwise(lines) if "/32 host LOCAL" in following
        }

    def roots(self, pids: Iterable[int]) -> list[int]:
        """Those of the processes that descend from no other of them."""
        given = set(pids)
        return sorted(pid for pid in given if not given.intersection(self.ancestors(pid)))

    def newest_pid(self) -> bytes | None:
        """The number that was given last to a process or thread; while it stays the same, none is new."""
        text = self._glance("loadavg")
        return text.split()[-1] if text else None

    def table(self, name: str, most_columns: int | None = None) -> list[list[str]]:
        """The rows of a table such as ``net/tcp``, without its head; the last of ``most_columns`` may hold spaces."""
        text = os.fsdecode(self._read(name) or b"")
        return [line.split(None, -1 if most_columns is None else most_columns - 1) for line in text.split("\n")[1:]]

    def ancestors(self, pid: int) -> Iterator[int]:
        """Its parent, that one's parent, and so on."""
        seen = {pid}
        while (stat := self.stat(pid)) and stat.parent not in seen:
            pid = stat.parent
            seen.add(pid)
            yield pid

    def _read(self, name: str) -> bytes | None:
        """What may take a while: long tables, and what lies in the process's own memory."""
        try:
            return (self.root / name).read_bytes()
        except OSError:
            return None

    def _glance(self, name: str) -> bytes | None:
        """What the kernel has at hand."""
        try:
            return read_file(f"{self.root}/{name}")
        except OSError:  # the process has ended since
            return None


def _names(folder: str) -> list[str]:
    try:
        return names_in(folder)
    except OSError:
        return []

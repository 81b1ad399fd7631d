"""Who listens at a Unix socket. Source: unix(7); proc_pid_net(5), /proc/net/unix.

The kernel shows of a socket the path that its server wrote: from another folder, through another link, or in a
container's file system, the client's path to the same file may be another one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from otel_llm_energy.servers.containers import runs_models
from otel_llm_energy.servers.procfs import Procfs

_COLUMNS = 8
_ACCEPTS_CONNECTIONS = 0x10000  # __SO_ACCEPTCON, include/linux/net.h
_OF_THE_PROCESS = ("/proc/self/", "/proc/thread-self/")

_File = tuple[int, int]  # device and inode


class UnixListener(NamedTuple):
    """A listening Unix socket: the path as its server gave it (``@`` and an abstract name), and its inode."""

    path: str
    inode: int


def is_unix_socket(address: str) -> bool:
    """Whether an address is a Unix socket's: an absolute path, or ``@`` and an abstract name."""
    return address.startswith(("/", "@"))


def owner_of_file(path: str) -> int | None:
    """The user who made the socket's file; ``None`` for an abstract name, or if there is none to be seen."""
    try:
        return os.stat(path).st_uid if path.startswith("/") else None  # noqa: PTH116 - may hold any bytes
    except OSError:
        return None


def unix_listeners(procfs: Procfs, pid: int | None = None) -> Iterator[UnixListener]:
    """The listening Unix sockets of this network namespace, or of the one that a process lives in."""
    for row in procfs.table("net/unix" if pid is None else f"{pid}/net/unix", most_columns=_COLUMNS):
        try:
            if len(row) == _COLUMNS and int(row[3], 16) & _ACCEPTS_CONNECTIONS:
                yield UnixListener(row[7], int(row[6]))
        except ValueError:  # a row that is none
            continue


def listeners_at(path: str, procfs: Procfs) -> list[UnixListener]:
    """The sockets of this network namespace that a client reaches at a path."""
    if path.startswith("@"):  # an abstract one: a name, and no file
        return [one for one in unix_listeners(procfs) if one.path == path]
    if "\0" in path:  # no path at all
        return []
    target = _file(path)
    named_alike = [one for one in unix_listeners(procfs) if _is_named_like(one, path)]
    found = [one for one in named_alike if one.path == path or (_is_plain(one.path) and _is(one.path, target))]
    if found or target is None or not named_alike:
        return found
    return _listening_elsewhere(named_alike, target, procfs)


def _listening_elsewhere(named_alike: Sequence[UnixListener], target: _File, procfs: Procfs) -> list[UnixListener]:
    """Those whose path leads to the file as a process sees it that holds the socket: in its own folder or container."""
    holders = [(pid, inode) for pid in procfs.pids() for inode in procfs.sockets(pid)]
    return [
        one
        for one in named_alike
        if any(inode == one.inode and _is(_seen_by(pid, one.path, procfs), target) for pid, inode in holders)
    ]


def roots_elsewhere(path: str, procfs: Procfs) -> list[int]:
    """The programs that run models and listen at a path in another network namespace: in containers that share it."""
    target = _file(path)
    ours = {one.inode for one in unix_listeners(procfs)}
    return procfs.roots(
        pid
        for pid in (procfs.pids() if target is not None else ())
        if runs_models(pid, procfs)
        and any(
            one.inode not in ours and _is(_seen_by(pid, one.path, procfs), target)
            for one in unix_listeners(procfs, pid)
            if not one.path.startswith("@")
        )
    )


def _is_plain(path: str) -> bool:
    """Whether a path that a server gave leads every process of its file system to the same file."""
    return path.startswith("/") and not path.startswith(_OF_THE_PROCESS)


def _seen_by(pid: int, path: str, procfs: Procfs) -> str:
    """A path of a process's, for everybody who may look into that process."""
    for prefix in _OF_THE_PROCESS:
        if path.startswith(prefix):
            return f"{procfs.root}/{pid}/{path.removeprefix(prefix)}"
    return f"{procfs.root}/{pid}/{'root' if path.startswith('/') else 'cwd/'}{path}"


def _is_named_like(one: UnixListener, path: str) -> bool:
    names = {os.path.basename(path), os.path.basename(os.path.realpath(path))}  # noqa: PTH119 - may hold any bytes
    return not one.path.startswith("@") and os.path.basename(one.path) in names  # noqa: PTH119


def _is(path: str, file: _File | None) -> bool:
    return file is not None and _file(path) == file


def _file(path: str) -> _File | None:
    try:
        found = os.stat(path)  # noqa: PTH116
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino

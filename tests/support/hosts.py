"""Two hosts on one machine: network and process namespaces where they are permitted (root), else loopback addresses."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.alone import alone_with

_WAIT_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Host:
    """A host to run servers on.

    Attributes:
        address: where its servers are reached.
        enter: a command to put before one that is to run there.
        namespaces: it sees only its own processes and network, as a host of its own does.
    """

    address: str = "127.0.0.1"
    enter: tuple[str, ...] = ()
    namespaces: bool = False


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Two hosts for the length of the block."""
    if not may_make_namespaces():
        yield Host("127.0.0.2"), Host("127.0.0.3")
        return
    with alone_with("hosts"), ExitStack() as stack:
        yield stack.enter_context(_namespaced(1)), stack.enter_context(_namespaced(2))


CONTAINER_ADDRESS = "10.203.3.2"


@contextmanager
def container(*command: str) -> Iterator[Host]:
    """A command in a network and a process namespace of its own on this host, as a container has them; needs root."""
    with alone_with("container"), _namespaced(3, command) as host:
        yield host


def may_make_namespaces() -> bool:
    """Whether this process may make networks and processes of their own: root may, on most machines."""
    try:
        command = ["unshare", "--net", "--pid", "--fork", "ip", "link"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


@contextmanager
def _namespaced(number: int, first_command: Sequence[str] = ("sleep", "infinity")) -> Iterator[Host]:
    """A network of its own, joined to ours by a cable, and a process of its own that is its first."""
    name = f"host{number}-{os.getpid()}"
    ours, theirs = f"10.203.{number}.1", f"10.203.{number}.2"
    cable = f"v{number}-{os.getpid()}"[:15]
    _ip("netns", "add", name)
    try:
        _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("addr", "add", f"{ours}/24", "dev", cable)
        _ip("link", "set", cable, "up")
        for words in (["addr", "add", f"{theirs}/24", "dev", "eth0"], ["link", "set", "eth0", "up"]):
            _ip("-n", name, *words)
        _ip("-n", name, "link", "set", "lo", "up")
        own = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", *first_command]
        with subprocess.Popen(["ip", "netns", "exec", name, *own]) as process:
            try:
                first = _only_child(process.pid)
                yield Host(theirs, ("nsenter", "--target", str(first), "--net", "--pid", "--mount"), namespaces=True)
            finally:
                process.kill()
    finally:
        _ip("netns", "delete", name)


def _only_child(pid: int) -> int:
    """The first process of the namespace, once it is there."""
    deadline = time.monotonic() + _WAIT_SECONDS
    children = Path(f"/proc/{pid}/task/{pid}/children")
    while not (found := children.read_text().split()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return int(found[0])


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)

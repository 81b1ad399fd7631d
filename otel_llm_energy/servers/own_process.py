"""The app's own process as a server, under a name that holds for all processes that share one metering."""

from __future__ import annotations

import os
from pathlib import Path

from otel_llm_energy.servers.resolve import resolve_named
from otel_llm_energy.servers.server import Server

_MARK = "process@"


def this_process() -> tuple[str, int]:
    """What stands for host and port in its address: its PID namespace, and its number there.

    Containers that share a metering have numbers of their own: each may have a process 1.
    """
    return f"{_MARK}{_pid_namespace()}", os.getpid()


def is_process(host: str) -> bool:
    """Whether this is such a host; none that a client connects to has an @ in its name."""
    return host.startswith(_MARK)


def resolve_process(host: str, pid: int) -> Server:
    """The tree of that process; hidden, if it is of another PID namespace: what it does cannot be seen from here."""
    if host == this_process()[0]:
        return resolve_named(f"pid:{pid}")
    address = f"{host}:{pid}"
    message = f"Process {pid} of another PID namespace shares this metering; its part of the activity is not known."
    return Server(f"local:{address}", address, "local", reason="hidden", message=message)


def _pid_namespace() -> int:
    """0 if the kernel does not say."""
    try:
        return Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return 0

"""Behind what only passes calls on: where it says so itself, where its connections lead, what a container publishes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from otel_llm_energy.servers.containers import roots_at, runs_models
from otel_llm_energy.servers.procfs import Procfs
from otel_llm_energy.servers.sockets import IPAddress, connections, is_local_address, listeners, those_reached

# socat(1): the address types that connect, each with host and port; options follow after a comma.
_SOCAT_TARGET = re.compile(r"(?:TCP[46]?|OPENSSL)(?:-CONNECT)?:(\[[^\]]+\]|[^:,]+):(\d+)(?:,.*)?", re.IGNORECASE)


def forwarded_to(program: str, arguments: Sequence[str]) -> tuple[str, int] | None:
    """The one address to which a relay's command line says that it passes everything on; ``None`` if it says none."""
    if program != "socat":
        return None
    targets = [match for word in arguments if (match := _SOCAT_TARGET.fullmatch(word))]
    return (targets[0][1].strip("[]"), int(targets[0][2])) if len(targets) == 1 else None


def publishing_roots(port: int, procfs: Procfs) -> list[int]:
    """The programs that run models and listen on this port in another network namespace: containers, whose ports
    iptables or a rootless proxy may publish here."""
    ours = {listener.inode for listener in listeners(procfs)}
    return procfs.roots(
        pid
        for pid in procfs.pids()
        if runs_models(pid, procfs)
        and any(one.port == port and one.inode not in ours for one in listeners(procfs, pid))
    )


def connected_roots(relay: int, procfs: Procfs) -> list[int]:
    """The programs that run models to which a relay, or a process below it, is connected just now."""
    held = {inode for member in procfs.tree(relay) for inode in procfs.sockets(member)}
    ends = {(one.address, one.port) for one in connections(procfs) if one.inode in held}
    found = {pid for address, port in ends for pid in _holders(address, port, procfs)}
    return procfs.roots(pid for pid in found if runs_models(pid, procfs))


def _holders(address: IPAddress, port: int, procfs: Procfs) -> Iterable[int]:
    """The processes that answer at an address of this machine, or may do so in a container of this host."""
    if is_local_address(address):
        inodes = {listener.inode for listener in those_reached(listeners(procfs), address, port)}
        return [pid for pid in procfs.pids() if not inodes.isdisjoint(procfs.sockets(pid))]
    return [member for root in roots_at(str(address), procfs) for member in procfs.tree(root)]

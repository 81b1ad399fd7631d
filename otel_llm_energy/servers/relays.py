"""Behind what only passes calls on: where it says so itself, where its connections lead, what a container publishes."""

from __future__ import annotations

import re
from collections.abc import Sequence

from otel_llm_energy.servers.containers import runs_models
from otel_llm_energy.servers.procfs import Procfs
from otel_llm_energy.servers.sockets import connections, is_local_address, listeners, those_reached

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
    """The programs that run models to which a relay, or a process below it, is connected just now.

    Here, or in a container of this host. A relay may hold thousands of connections, most of them its clients'.
    """
    held = {inode for member in procfs.tree(relay) for inode in procfs.sockets(member)}
    ends = {(one.address, one.port) for one in connections(procfs) if one.inode in held}
    local = {address for address in {address for address, _ in ends} if is_local_address(address)}
    elsewhere = {str(address) for address, _ in ends if address not in local}
    ours = list(listeners(procfs))
    reached = {one.inode for address, port in ends if address in local for one in those_reached(ours, address, port)}
    models = [pid for pid in procfs.pids() if runs_models(pid, procfs)]
    return procfs.roots(
        pid
        for pid in models
        if not reached.isdisjoint(procfs.sockets(pid)) or not elsewhere.isdisjoint(procfs.addresses(pid))
    )

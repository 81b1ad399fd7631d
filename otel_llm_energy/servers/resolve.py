"""From an address to the process tree that answers there.

Costs some 10 ms (all sockets, all processes' descriptors): once per address, off the call's path.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence, Set
from dataclasses import replace

from otel_llm_energy.servers.containers import container_roots, roots_at
from otel_llm_energy.servers.procfs import Procfs
from otel_llm_energy.servers.programs import (
    is_container_relay,
    is_llm_server,
    is_relay,
    program_name,
    slots_hint,
)
from otel_llm_energy.servers.relays import connected_roots, forwarded_to, publishing_roots
from otel_llm_energy.servers.server import Place, Server, written_address
from otel_llm_energy.servers.sockets import IPAddress, is_local_address, listeners, those_reached
from otel_llm_energy.servers.unix_sockets import is_unix_socket, listeners_at, owner_of_file, roots_elsewhere

_ACTIVATORS = ("systemd", "init")  # keep the socket of a service that they start on demand
_NAME_IT = "Name it: servers={{'{address}': 'pid:...'}} or 'name:...'"

_MOST_RELAYS = 4  # one behind the other


def resolve(host: str, port: int, procfs: Procfs | None = None) -> Server:
    """Find the process tree that answers at an address of this machine.

    Args:
        host: name or address, as the client was given it; or the absolute path of a Unix socket, or ``@`` and its
            abstract name.
        port: TCP port; of no meaning for a Unix socket.
        procfs: the processes to look among; the kernel's if ``None``.

    Returns:
        the server; its ``pid`` is ``None``, with a ``reason``, where its part of the activity cannot be known.
    """
    return _resolve(host, port, procfs or Procfs(), _MOST_RELAYS)


def _resolve(host: str, port: int, procfs: Procfs, most_relays: int) -> Server:
    if is_unix_socket(host):
        return _resolve_unix(host, procfs, most_relays)
    address = written_address(host, port)
    try:
        candidates = _addresses(host)
    except (OSError, ValueError):
        return _without_tree("unresolved", address, f"{host} has no address that is known here.")
    local = [candidate for candidate in candidates if is_local_address(candidate)]
    if not local:
        inside = [root for candidate in candidates for root in roots_at(str(candidate), procfs)]
        if container := _only_tree(inside, procfs):
            return container
        return Server(f"remote:{address}", address, "remote", reason="remote", message=f"{address} is elsewhere.")
    ours = list(listeners(procfs))
    for candidate in local:
        found = those_reached(ours, candidate, port)
        if found:
            server = _owner({one.inode for one in found}, found[0].user_id, address, procfs)
            return _behind(server, address, port, procfs, most_relays) if server.reason == "relay" else server
    published = _only_tree(publishing_roots(port, procfs), procfs)
    return published or _without_tree(
        "not-listening",
        address,
        f"Nothing listens at {address} in this network namespace. " + _NAME_IT.format(address=address),
    )


def _resolve_unix(path: str, procfs: Procfs, most_relays: int) -> Server:
    found = listeners_at(path, procfs)
    if not found:
        shared = _only_tree(roots_elsewhere(path, procfs), procfs)
        return shared or _without_tree(
            "not-listening", path, f"Nobody is seen to listen at {path}. " + _NAME_IT.format(address=path)
        )
    server = _owner({one.inode for one in found}, owner_of_file(path), path, procfs)
    return _behind(server, path, None, procfs, most_relays) if server.reason == "relay" else server


def resolve_named(spec: str) -> Server:
    """Find the server that a user names: ``"pid:4711"`` or ``"name:ollama"``.

    Raises:
        ValueError: ``spec`` is neither.
    """
    procfs = Procfs()
    kind, _, value = spec.partition(":")
    if kind == "pid" and value.isdecimal():
        return _tree(int(value), procfs) or _without_tree("not-listening", spec, f"There is no process {value}.")
    if kind != "name" or not value:
        raise ValueError(f"server {spec!r}: write 'pid:' and a number, or 'name:' and a program's name.")
    roots = procfs.roots(pid for pid in procfs.pids() if _program(pid, procfs) == value.lower())
    if not roots:
        message = f"No program that can be seen is called {value}. Give another name, or 'pid:...'."
        return _without_tree("not-listening", spec, message)
    if len(roots) > 1:
        pids = ", ".join(f"pid {pid}" for pid in roots)
        message = f"Several programs are called {value} ({pids}). Give one of them: 'pid:...'."
        return _without_tree("ambiguous", spec, message)
    if is_relay(value.lower()):
        message = f"{value} (pid {roots[0]}) passes calls on to another server. Name that one."
        return _without_tree("relay", spec, message)
    return _tree(roots[0], procfs) or _without_tree("not-listening", spec, f"{value} has just ended.")


def _addresses(host: str) -> list[IPAddress]:
    """The addresses of a host in the order in which a client tries them."""
    found = socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM)
    return [ipaddress.ip_address(str(sockaddr[0])) for *_, sockaddr in found]


def _owner(inodes: Set[int], user_id: int | None, address: str, procfs: Procfs) -> Server:
    """The root of the processes that hold listening sockets of a user, or the likely one where they hide it."""
    holders = {pid for pid in procfs.pids() if not inodes.isdisjoint(procfs.sockets(pid))}
    if 1 in holders and _program(1, procfs) in _ACTIVATORS:
        holders.discard(1)
        if not holders:
            return _without_tree("not-listening", address, f"The service for {address} has not been started yet.")
    if holders:
        return _only(procfs.roots(holders), address, procfs, "ambiguous")
    models = [pid for pid in procfs.pids() if is_llm_server(_program(pid, procfs))]
    likely = [pid for pid in models if user_id is not None and procfs.user_id(pid) == user_id]
    return _only(procfs.roots(likely), address, procfs, "hidden")


def _only(roots: list[int], address: str, procfs: Procfs, otherwise: str) -> Server:
    """The server if there is one root, and it does the work itself."""
    if len(roots) != 1:
        names = ", ".join(f"{_program(pid, procfs)} (pid {pid})" for pid in roots) or "no process that can be seen"
        reason = "ambiguous" if roots else otherwise
        return _without_tree(reason, address, f"Who answers at {address}: {names}? " + _NAME_IT.format(address=address))
    name = _program(roots[0], procfs)
    found = _tree(roots[0], procfs) or _without_tree("not-listening", address, f"{name} has just ended.")
    if not is_relay(name):
        return found
    message = f"{name} (pid {roots[0]}) at {address} passes calls on to another server. "
    return replace(found, reason="relay", message=message + _NAME_IT.format(address=address))


def _behind(relay: Server, address: str, port: int | None, procfs: Procfs, most_relays: int) -> Server:
    """The server to which a relay passes calls on.

    Where the relay or its kind says so that is certain; what its connections show may be one server of several, so
    then the reason is still ``"relay"``.
    """
    assert relay.pid is not None
    arguments = procfs.arguments(relay.pid)
    inside = container_roots(arguments, procfs)
    if not inside and port is not None and is_container_relay(relay.name):
        inside = publishing_roots(port, procfs)
    certain = _only_tree(inside, procfs)
    target = forwarded_to(relay.name, arguments)
    if certain is None and target is not None and most_relays:
        certain = _resolve(*target, procfs, most_relays - 1)
    if certain is not None and certain.pid is not None:
        return certain
    seen = _only_tree(connected_roots(relay.pid, procfs), procfs)
    if seen is None:
        return _without_tree("relay", address, relay.message)
    message = f" Just now it is connected to {seen.name} (pid {seen.pid}), which is taken to be the server."
    return replace(seen, reason="relay", message=relay.message + message)


def _only_tree(roots: Sequence[int], procfs: Procfs) -> Server | None:
    return _tree(roots[0], procfs) if len(roots) == 1 else None


def _tree(pid: int, procfs: Procfs) -> Server | None:
    stat = procfs.stat(pid)
    if stat is None:
        return None
    return Server(
        id=f"pid:{pid}:{stat.start_ticks}",
        name=_program(pid, procfs),
        place="local",
        pid=pid,
        start_ticks=stat.start_ticks,
        slots=_slots(pid, procfs),
    )


def _slots(pid: int, procfs: Procfs) -> int | None:
    hints = (slots_hint(procfs.arguments(member), procfs.environment(member)) for member in procfs.tree(pid))
    return next((hint for hint in hints if hint is not None), None)


def _without_tree(reason: str, address: str, message: str) -> Server:
    place: Place = "unknown" if reason in ("unresolved", "not-listening") else "local"
    return Server(f"{place}:{address}", address, place, reason=reason, message=message)


def _program(pid: int, procfs: Procfs) -> str:
    return program_name(procfs.arguments(pid), procfs.short_name(pid))

"""From an address to the process tree that answers there.

Costs some 10 ms (all sockets, all processes' descriptors): once per address, off the call's path.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import sys
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from otel_llm_energy.servers.containers import container_roots
from otel_llm_energy.servers.procfs import Procfs
from otel_llm_energy.servers.programs import is_llm_server, is_relay, program_name, slots_hint
from otel_llm_energy.servers.server import Place, Server

_LISTEN = "0A"
_ANY = (ipaddress.ip_address("0.0.0.0"), ipaddress.ip_address("::"))
_ACTIVATORS = ("systemd", "init")  # keep the socket of a service that they start on demand
_NAME_IT = "Name it: servers={{'{address}': 'pid:...'}} or 'name:...'"

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_log = logging.getLogger(__name__)


class _Listener(NamedTuple):
    """A listening socket: which address it is bound to, whose it is, and its inode."""

    address: IPAddress
    port: int
    user_id: int
    inode: int


def resolve(host: str, port: int, procfs: Procfs | None = None) -> Server:
    """Find the process tree that answers at an address of this machine.

    Args:
        host: name or address, as the client was given it.
        port: TCP port.
        procfs: the processes to look among; the kernel's if ``None``.

    Returns:
        the server; its ``pid`` is ``None``, with a ``reason``, where its part of the activity cannot be known.
    """
    procfs = procfs or Procfs()
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        candidates = _addresses(host)
    except (OSError, ValueError):
        return _without_tree("unresolved", address, f"{host} has no address that is known here.")
    local = [candidate for candidate in candidates if is_local_address(candidate)]
    if not local:
        return Server(f"remote:{address}", address, "remote", reason="remote", message=f"{address} is elsewhere.")
    listeners = list(_listeners(procfs))
    for candidate in local:
        found = _best(listeners, candidate, port)
        if found:
            return _owner(found, address, procfs)
    return _without_tree("not-listening", address, f"Nothing listens at {address} in this network namespace.")


def resolve_named(spec: str, procfs: Procfs | None = None) -> Server:
    """Find the server that a user names: ``"pid:4711"`` or ``"name:ollama"``.

    Raises:
        ValueError: ``spec`` is neither.
    """
    procfs = procfs or Procfs()
    kind, _, value = spec.partition(":")
    if kind == "pid" and value.isdecimal():
        return _tree(int(value), procfs) or _without_tree("not-listening", spec, f"There is no process {value}.")
    if kind != "name" or not value:
        raise ValueError(f"server {spec!r}: write 'pid:' and a number, or 'name:' and a program's name.")
    roots = procfs.roots(pid for pid in procfs.pids() if _program(pid, procfs) == value.lower())
    return _only(roots, spec, procfs, "not-listening")


def _addresses(host: str) -> list[IPAddress]:
    """The addresses of a host in the order in which a client tries them."""
    found = socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM)
    return [ipaddress.ip_address(str(sockaddr[0])) for *_, sockaddr in found]


def is_local_address(address: IPAddress) -> bool:
    """Whether the address is this host's: only then can a socket be bound to it."""
    if address.is_loopback or address.is_unspecified:
        return True
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((str(address), 0))
    except OSError:
        return False
    return True


def _listeners(procfs: Procfs) -> Iterator[_Listener]:
    """The listening TCP sockets of this network namespace."""
    for table in ("net/tcp", "net/tcp6"):
        for fields in procfs.table(table):
            if len(fields) < 10 or fields[3] != _LISTEN:
                continue
            try:
                hex_address, hex_port = fields[1].split(":")
                yield _Listener(_decode(hex_address), int(hex_port, 16), int(fields[7]), int(fields[9]))
            except ValueError:
                _log.debug("%s: a row that is none: %s", table, fields)


def _decode(hex_address: str) -> IPAddress:
    """An address of /proc/net/tcp: words of 32 bits in the machine's byte order."""
    words = [int(hex_address[at : at + 8], 16) for at in range(0, len(hex_address), 8)]
    address = ipaddress.ip_address(b"".join(word.to_bytes(4, sys.byteorder) for word in words))
    mapped = address.ipv4_mapped if address.version == 6 else None
    return mapped or address


def _best(listeners: Iterable[_Listener], target: IPAddress, port: int) -> list[_Listener]:
    """The sockets that get a connection to the target: bound to it, else to every address of its family, else to ::."""
    here = [listener for listener in listeners if listener.port == port]
    wildcards = [_ANY[0], _ANY[1]] if target.version == 4 else [_ANY[1]]
    # To the unspecified address a client connects as to loopback.
    exact = [ipaddress.ip_address("127.0.0.1" if target.version == 4 else "::1")] if target.is_unspecified else [target]
    for bound in (*exact, *wildcards):
        found = [listener for listener in here if listener.address == bound]
        if found:
            return found
    return []


def _owner(listeners: list[_Listener], address: str, procfs: Procfs) -> Server:
    """The root of the processes that hold a listening socket, or the likely one where they hide it."""
    inodes = {listener.inode for listener in listeners}
    holders = {pid for pid in procfs.pids() if not inodes.isdisjoint(procfs.sockets(pid))}
    if len(holders) > 1 and _program(1, procfs) in _ACTIVATORS:
        holders.discard(1)
    if holders:
        return _only(procfs.roots(holders), address, procfs, "ambiguous")
    user_id = listeners[0].user_id
    likely = [pid for pid in procfs.pids() if is_llm_server(_program(pid, procfs)) and procfs.user_id(pid) == user_id]
    return _only(procfs.roots(likely), address, procfs, "hidden")


def _only(roots: list[int], address: str, procfs: Procfs, otherwise: str) -> Server:
    """The server if there is one root, and it does the work itself."""
    if len(roots) != 1:
        names = ", ".join(f"{_program(pid, procfs)} (pid {pid})" for pid in roots) or "no process that can be seen"
        reason = "ambiguous" if roots else otherwise
        return _without_tree(reason, address, f"Who answers at {address}: {names}? " + _NAME_IT.format(address=address))
    name = _program(roots[0], procfs)
    inside = container_roots(procfs.arguments(roots[0]), procfs) if is_relay(name) else []
    if len(inside) == 1:
        return _tree(inside[0], procfs) or _without_tree(
            "not-listening", address, f"{name}'s container has just ended."
        )
    if is_relay(name):
        message = f"{name} (pid {roots[0]}) at {address} passes calls on to another server. "
        return _without_tree("relay", address, message + _NAME_IT.format(address=address))
    return _tree(roots[0], procfs) or _without_tree("not-listening", address, f"{name} has just ended.")


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

"""The TCP sockets of a network namespace, as the kernel's tables show them. Source: proc(5), /proc/net/tcp."""

from __future__ import annotations

import ipaddress
import socket
import sys
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from otel_llm_energy.servers.procfs import Procfs

_ESTABLISHED, _LISTEN = "01", "0A"
_DISCARD_PORT = 9
_ANY = (ipaddress.ip_address("0.0.0.0"), ipaddress.ip_address("::"))

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


class Listener(NamedTuple):
    """A listening socket: which address it is bound to, whose it is, and its inode."""

    address: IPAddress
    port: int
    user_id: int
    inode: int


class Connection(NamedTuple):
    """A connected socket: whom it is connected to, and its inode."""

    address: IPAddress
    port: int
    inode: int


def listeners(procfs: Procfs, pid: int | None = None) -> Iterator[Listener]:
    """The listening sockets of this network namespace, or of the one that a process lives in."""
    for local, _, user_id, inode in _rows(procfs, pid, _LISTEN):
        yield Listener(*local, user_id, inode)


def connections(procfs: Procfs) -> Iterator[Connection]:
    """The connected sockets of this network namespace."""
    for _, remote, _, inode in _rows(procfs, None, _ESTABLISHED):
        yield Connection(*remote, inode)


def those_reached(found: Iterable[Listener], target: IPAddress, port: int) -> list[Listener]:
    """The sockets that get a connection to the target: bound to it, else to every address of its family, else to ::."""
    here = [listener for listener in found if listener.port == port]
    wildcards = [_ANY[0], _ANY[1]] if target.version == 4 else [_ANY[1]]
    # To the unspecified address a client connects as to loopback.
    exact = [ipaddress.ip_address("127.0.0.1" if target.version == 4 else "::1")] if target.is_unspecified else [target]
    for bound in (*exact, *wildcards):
        reached = [listener for listener in here if listener.address == bound]
        if reached:
            return reached
    return []


def is_local_address(address: IPAddress) -> bool:
    """Whether the address is this host's: only then can a socket be bound to it, and be connected to it from there.

    The first is not enough where ``net.ipv4.ip_nonlocal_bind`` is set; then IPv4 connects from no foreign address, and
    IPv6 to one of its own from that one alone. Nothing is sent. Source: ip(7), RFC 6724 (rule 1).
    """
    if address.is_loopback or address.is_unspecified:
        return True
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((str(address), 0))
            if address.version == 4:
                probe.connect((str(address), _DISCARD_PORT))
                return True
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((str(address), _DISCARD_PORT))
            own = ipaddress.ip_address(probe.getsockname()[0])
            return int(own) == int(address)  # whatever the scope
    except OSError:
        return False


_End = tuple[IPAddress, int]


def _rows(procfs: Procfs, pid: int | None, state: str) -> Iterator[tuple[_End, _End, int, int]]:
    """Of the sockets in a state: both ends, user and inode."""
    folder = "net" if pid is None else f"{pid}/net"
    for table in ("tcp", "tcp6"):
        for fields in procfs.table(f"{folder}/{table}"):
            if len(fields) >= 10 and fields[3] == state:
                try:
                    yield _end(fields[1]), _end(fields[2]), int(fields[7]), int(fields[9])
                except ValueError:  # a row that is none
                    continue


def _end(text: str) -> _End:
    hex_address, hex_port = text.split(":")
    return _decode(hex_address), int(hex_port, 16)


def _decode(hex_address: str) -> IPAddress:
    """An address of /proc/net/tcp: words of 32 bits in the machine's byte order."""
    words = [int(hex_address[at : at + 8], 16) for at in range(0, len(hex_address), 8)]
    address = ipaddress.ip_address(b"".join(word.to_bytes(4, sys.byteorder) for word in words))
    mapped = address.ipv4_mapped if address.version == 6 else None
    return mapped or address

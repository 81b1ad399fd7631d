"""From the address of a call to the station that meters its server."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from otel_llm_energy.servers.announced import OLLAMA_PORT
from otel_llm_energy.servers.server import Server, written_address
from otel_llm_energy.servers.sockets import is_local_address
from otel_llm_energy.servers.unix_sockets import is_unix_socket
from otel_llm_energy.tracing.station import Station

_HOSTS_FILE: Final = Path("/etc/hosts")
_DEFAULT_PORTS = {"ollama": OLLAMA_PORT}


class Metered(NamedTuple):
    """A server at ``host:port``, or at the Unix socket ``host`` and port 0, is metered by ``station``."""

    station: Station
    host: str
    port: int


class Unmetered(NamedTuple):
    """Nothing meters the server, for ``reason``."""

    reason: str


@dataclass(frozen=True, slots=True)
class Address:
    """A host and a port as a client names them; the port is ``None`` where any will do."""

    host: str
    port: int | None

    @classmethod
    def parse(cls, text: str) -> Address:
        """``"ollama:11434"``, ``"ollama"``, ``"[::1]:8080"``, ``":8080"``, ``"/run/llm.sock"``; raises `ValueError`."""
        if is_unix_socket(text):
            return cls(text, None)
        if "/" in text:
            raise ValueError(f"{text!r}: an address is a host and a port, without http:// and path.")
        host, colon, port = text.rpartition(":")
        if not colon or (text.count(":") > 1 and not text.startswith("[")):
            return cls(text.strip("[]").lower(), None)
        if not port.isdecimal() or not 0 < int(port) < 65536:
            raise ValueError(f"{text!r}: the port after the colon must be a number from 1 to 65535.")
        return cls(host.strip("[]").lower(), int(port))

    def __str__(self) -> str:
        return self.host if self.port is None else f"{self.host}:{self.port}"

    def matches(self, host: str, port: int) -> bool:
        return (not self.host or self.host == host) and self.port in (None, port)


class Directory:
    """Knows the stations: the one of this machine, and those that the user names for other addresses.

    Args:
        local: the station of this machine.
        named: stations of servers elsewhere, by address.

    Attributes:
        local: as given.
        stations: all of them, each once.
    """

    def __init__(self, local: Station, named: Mapping[Address, Station] | None = None) -> None:
        self.local = local
        self._named = dict(named or {})
        self._known: dict[tuple[str, int], Metered | Unmetered] = {}
        self.stations = list(dict.fromkeys([local, *self._named.values()]))

    def find(self, host: str | None, port: int | None, provider: str) -> Metered | Unmetered:
        """The station of a call's server. Costs a dictionary look-up after the first time."""
        if not host:
            return Unmetered("server_unknown")
        key = (host, port if port is not None else _DEFAULT_PORTS.get(provider, 443))
        found = self._known.get(key)
        if found is None:
            found = self._look_up(host, 0) if is_unix_socket(host) else self._look_up(host.lower(), key[1])
            self._known[key] = found
        return found

    def elsewhere(self) -> Mapping[str, Server]:
        """The servers that were asked for so far and that nothing meters, by address."""
        found = [key for key, station in list(self._known.items()) if isinstance(station, Unmetered)]
        return {address: _unmetered(address) for address in (written_address(host, port) for host, port in found)}

    def _look_up(self, host: str, port: int) -> Metered | Unmetered:
        for address, station in self._named.items():
            if address.matches(host, port):
                return Metered(station, host, port)
        if is_unix_socket(host) or is_this_machine(host):
            return Metered(self.local, host, port)
        return Unmetered("remote")


def _unmetered(address: str) -> Server:
    message = (
        "is on another machine, and no meter is named for it: its calls have no joules (remote). If it is yours, name"
        f" that machine's Scaphandre: servers={{'{address}': 'http://HOST:8080/metrics#PROCESS'}}"
    )
    return Server(f"remote:{address}", address, "remote", reason="remote", message=message)


def is_this_machine(host: str, hosts_file: Path = _HOSTS_FILE) -> bool:
    """Whether a client that connects to ``host`` reaches this machine. Looks no name up that may need a network."""
    name = host.strip("[]").lower()
    if name == "localhost" or name.endswith(".localhost") or name == socket.gethostname().lower():
        return True
    try:
        return is_local_address(ipaddress.ip_address(name))
    except ValueError:
        return any(is_local_address(address) for address in _addresses_in(hosts_file, name))


def _addresses_in(hosts_file: Path, name: str) -> Iterator[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """The addresses that a file gives a name. Source: hosts(5)."""
    try:
        lines = hosts_file.read_text(errors="replace").lower().splitlines()
    except OSError:
        return
    for line in lines:
        address, *names = line.partition("#")[0].split() or [""]
        if name in names:
            with suppress(ValueError):  # a line that is none
                yield ipaddress.ip_address(address)

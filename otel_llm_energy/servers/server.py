"""What is known of the server behind an address."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Place = Literal["local", "remote", "unknown"]


def written_address(host: str, port: int) -> str:
    """``host:port``, an IPv6 host in brackets: as the option ``servers`` of `instrument` takes it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@dataclass(frozen=True, slots=True)
class Server:
    """Who answers at an address: a process tree of this machine, if it can be known.

    Attributes:
        id: names the server as long as it lives: ``"pid:4711:8812345"`` (process and its start, in clock ticks since
            boot) for a tree; else the address, such as ``"remote:api.example.com:443"``.
        name: of the program, or the address, for people.
        place: on this machine, on another, or not to be found.
        pid: root of the process tree that does the work; ``None`` if its part of the activity cannot be known.
        start_ticks: when ``pid`` started, so that another process of the same number is not taken for it.
        reason: why ``pid`` is ``None``: ``"remote"``, ``"unresolved"``, ``"not-listening"``, ``"relay"``, ``"hidden"``,
            ``"ambiguous"``, ``"unsupported"``. ``"relay"`` beside a ``pid``: a relay was seen to be connected to it.
        message: the same in a sentence, with what to do.
        slots: how many calls it works on at once, where it says so; ``None`` if unknown.
        process: which processes of another host it is, for `otel_llm_energy.servers.Selector`; ``None`` if not known.
        is_named: the user said which program or process of this machine it is.
    """

    id: str
    name: str
    place: Place
    pid: int | None = None
    start_ticks: int | None = None
    reason: str | None = None
    message: str = ""
    slots: int | None = None
    process: str | None = None
    is_named: bool = False

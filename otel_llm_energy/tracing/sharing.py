"""What the processes at a board share, and what they must agree on to do so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from otel_llm_energy.host.wire import PROTOCOL, State
from otel_llm_energy.tracing.books import Books


@dataclass(frozen=True, slots=True)
class Rules:
    """What all processes at a board must agree on.

    Attributes:
        folder: where they meet.
        board: name of the board in it; a machine's meters have one.
        version: of the package.
        settings: a hash of the options that decide how energy is shared.
        calls_servers: False if this process only looks.
    """

    folder: Path
    board: str
    version: str
    settings: str
    calls_servers: bool = True

    @property
    def protocol(self) -> str:
        return f"{PROTOCOL} {self.version}"

    def __str__(self) -> str:
        return f"{self.protocol} {self.settings}"


class Metering(Protocol):
    """What is shared: one machine's meters (`otel_llm_energy.tracing.station.Station`)."""

    @property
    def books(self) -> Books: ...

    def lead(self, not_before_ns: int = 0) -> None:
        """Find the meters and servers and read them, from now on or ``not_before_ns``."""

    def rest(self) -> None:
        """Read them no more."""

    def follow(self, state: State) -> None:
        """Another process reads these; read what is cheap at calls' edges."""

    def state(self) -> State:
        """What is read."""

    def server_key(self, address: str) -> str:
        """The books' name for the server at host:port, which is looked up if that is new."""

    def hasten(self) -> None:
        """Read now what may be read now."""

    def wake(self) -> None:
        """A member's call begins: read the meters at the pace of open calls."""


@dataclass(frozen=True, slots=True)
class Participant:
    """This process at the board, whichever place it has there.

    Attributes:
        name: of the process, unlike any other that ever was at the board.
        rules: what all must agree on.
        metering: what is shared.
        settle: have the books settled soon; for any thread.
        records: whether this process's metrics are recorded.
    """

    name: str
    rules: Rules
    metering: Metering
    settle: Callable[[], None]
    records: Callable[[], bool]

    @property
    def books(self) -> Books:
        """Where this process's calls are entered."""
        return self.metering.books

"""What every meter is: cumulative readings of channels, and the pace at which to take them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from otel_llm_energy.quantities import Channel, HostPower, Reading


class MeterError(Exception):
    """A meter cannot be read: what failed, with which value, and what to do.

    Attributes:
        reason: the slug that a span shows, e.g. ``"meter-refused"``.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def as_scale_error(value: float, name: str = "scale_error") -> float:
    """A part of the joules, 0.05 for 5 %. Raises `ValueError` for what bounds cannot allow for, such as 5 or a text."""
    if not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise ValueError(f"{name} cannot be {value!r}. Allowed: from 0 to below 1, 0.05 for 5 %.")
    return value


@dataclass(frozen=True, slots=True)
class Pace:
    """How often a meter is read.

    Attributes:
        idle_seconds: between two background readings while no call is open.
        open_seconds: the same while calls are open.
        at_edges: a reading is so cheap (some 10 us) that it is also taken in the caller's thread at a call's
            start, first chunk and end, at most one per `edge_gap_seconds` and, in the long run, `edges_per_second`.
        edge_gap_seconds: see ``at_edges``.
        edges_per_second: see ``at_edges``. Each reading also costs a bucket to be shared out; where there are more
            edges than this, calls are shorter than activity can tell apart.
        delay_seconds: how old the newest reading may be when the meter gets it, where another program takes them, such
            as a Prometheus; 0 where this meter takes them itself.
    """

    idle_seconds: float
    open_seconds: float
    at_edges: bool = False
    edge_gap_seconds: float = 0.005
    edges_per_second: float = 100.0
    delay_seconds: float = 0.0

    @property
    def longest_seconds(self) -> float:
        """Until there is a reading of this instant, at the longest, while calls are open."""
        return self.open_seconds + self.delay_seconds

    @property
    def longest_idle_seconds(self) -> float:
        """The same while no call is open."""
        return self.idle_seconds + self.delay_seconds


def says_what_it_reads(meter: object) -> bool:
    """Whether its repr is its class's own: the standard one holds its place in memory, another in each process."""
    return type(meter).__repr__ is not object.__repr__


class Meter(Protocol):
    """A source of cumulative energy readings of one machine. It knows nothing of calls.

    The object is a description until `open` is called; `open` after `close` starts afresh. Its repr should say what it
    reads: of a class without a ``__repr__`` no idle power is kept for the next run, and processes that share their
    metering take any two meters for the same.
    """

    name: str
    pace: Pace

    def open(self) -> Sequence[Channel]:
        """Find the channels. Raises `MeterError` if there is nothing to read."""

    def read(self) -> Sequence[Reading]:
        """Read every channel once; raises `MeterError`. Safe from several threads only if ``pace.at_edges``.

        A meter that finds that nothing has moved since its last reading (a frozen exporter) leaves it out.
        """

    def close(self) -> None:
        """Give back descriptors and connections. Never raises."""


@runtime_checkable
class ProcessMeter(Meter, Protocol):
    """A meter that also knows the power of single processes of its host, so that it can say what a server's part is.

    Attributes:
        process: which of them the metered server is, see `otel_llm_energy.servers.Selector`; ``None`` for no such
            figures.
        cpus: how many CPUs the host has; ``None`` if unknown.
    """

    process: str | None
    cpus: int | None

    @property
    def source(self) -> Hashable:
        """Equal for meters that read the same source: one of them is to be read for all."""

    def host_powers(self) -> Sequence[HostPower]:
        """The newest figures, oldest first; they come with the readings, at no request of their own."""

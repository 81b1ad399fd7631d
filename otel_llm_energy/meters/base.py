"""What every meter is: cumulative readings of channels, and the pace at which to take them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from otel_llm_energy.quantities import Channel, Reading


class MeterError(Exception):
    """A meter cannot be read: what failed, with which value, and what to do.

    Attributes:
        reason: the slug that a span shows, e.g. ``"meter-refused"``.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Pace:
    """How often a meter is read.

    Attributes:
        idle_seconds: between two background readings while no call is open.
        open_seconds: the same while calls are open.
        at_edges: a reading is so cheap (some 10 us) that it is also taken in the caller's thread at a call's
            start, first chunk and end, at most one per `edge_gap_seconds`.
        edge_gap_seconds: see ``at_edges``.
    """

    idle_seconds: float
    open_seconds: float
    at_edges: bool = False
    edge_gap_seconds: float = 0.005


class Meter(Protocol):
    """A source of cumulative energy readings of one machine. It knows nothing of calls.

    The object is a description until `open` is called; `open` after `close` starts afresh.
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

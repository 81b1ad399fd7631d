"""What one call is billed: the ledger's answer, before it becomes attributes of a span."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Literal, NamedTuple

Phase = Literal["load", "prefill", "decode", "work"]
Scope = Literal["process", "device", "host"]


class Quality(str, Enum):
    """How far a bill can be trusted; the first that applies, from the worst."""

    UNAVAILABLE = "unavailable"
    ESTIMATED = "estimated"
    DEGRADED = "degraded"
    SHARED = "shared"
    MEASURED = "measured"


class Window(NamedTuple):
    """A stretch of time in which a call was at work on its server (monotonic clock, ns).

    Attributes:
        weight: what it weighs against others at the same instant, in tenths of a token per second; 0 if unknown.
    """

    start_ns: int
    end_ns: int
    phase: Phase = "work"
    weight: int = 0


@dataclass(slots=True, init=False)
class Bill:
    """One call's share of what the meters read, in integer nanojoules; nobody changes it.

    Each call has one. To make it would take Python three times as long if it were frozen, and the compiled ledger
    twenty times as long if dataclasses wrote its ``__init__``.

    Attributes:
        energy_nj: the call's own share; ``None`` exactly when ``quality`` is `Quality.UNAVAILABLE`.
        above_idle_nj: the part above the idle baseline; ``None`` while no baseline is known.
        lower_nj, upper_nj: bounds, given the sharing method; ``None`` if unavailable, and there is no upper one where
            energy is known to be missing.
        phases_nj: energy of the phases that the buckets part well enough.
        components_nj: the same energy by component (cpu, memory, gpu, host); it sums to ``energy_nj``.
        quality, reason: ``reason`` is a short slug, set for `UNAVAILABLE` and `DEGRADED`.
        meter: names of the meters, joined with ``+``.
        scope: what ``energy_nj`` covers.
        method: how idle and overlap were shared, e.g. ``"above-idle/equal-time"`` or ``"above-idle/phase-tokens"``.
        coverage: part of the work windows that lies inside buckets, 0 to 1.
        concurrency: mean number of calls at work on the same server during the work windows, >= 1.
        work_ns: length of the work windows.
        queue_ns: time from the start of the call to its work, less loading.
    """

    energy_nj: int | None
    quality: Quality
    reason: str | None
    above_idle_nj: int | None
    lower_nj: int | None
    upper_nj: int | None
    phases_nj: Mapping[Phase, int]
    components_nj: Mapping[str, int]
    meter: str
    scope: Scope
    method: str
    coverage: float
    concurrency: float
    work_ns: int
    queue_ns: int

    def __init__(
        self,
        energy_nj: int | None,
        quality: Quality,
        reason: str | None = None,
        above_idle_nj: int | None = None,
        lower_nj: int | None = None,
        upper_nj: int | None = None,
        phases_nj: Mapping[Phase, int] | None = None,
        components_nj: Mapping[str, int] | None = None,
        meter: str = "",
        scope: Scope = "host",
        method: str = "",
        coverage: float = 0.0,
        concurrency: float = 1.0,
        work_ns: int = 0,
        queue_ns: int = 0,
    ) -> None:
        self.energy_nj = energy_nj
        self.quality = quality
        self.reason = reason
        self.above_idle_nj = above_idle_nj
        self.lower_nj = lower_nj
        self.upper_nj = upper_nj
        self.phases_nj = phases_nj or {}
        self.components_nj = components_nj or {}
        self.meter = meter
        self.scope = scope
        self.method = method
        self.coverage = coverage
        self.concurrency = concurrency
        self.work_ns = work_ns
        self.queue_ns = queue_ns


def unavailable(reason: str) -> Bill:
    """No reading, no joules: a bill that only says why."""
    return Bill(energy_nj=None, quality=Quality.UNAVAILABLE, reason=reason)

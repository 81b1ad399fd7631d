"""What one call is billed: the ledger's answer, before it becomes attributes of a span."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
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


@dataclass(slots=True)
class Bill:
    """One call's share of what the meters read, in integer nanojoules; nobody changes it.

    Not frozen: Python takes three times as long to make a frozen one, and each call has one.

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
    reason: str | None = None
    above_idle_nj: int | None = None
    lower_nj: int | None = None
    upper_nj: int | None = None
    phases_nj: Mapping[Phase, int] = field(default_factory=dict)
    components_nj: Mapping[str, int] = field(default_factory=dict)
    meter: str = ""
    scope: Scope = "host"
    method: str = ""
    coverage: float = 0.0
    concurrency: float = 1.0
    work_ns: int = 0
    queue_ns: int = 0


def unavailable(reason: str) -> Bill:
    """No reading, no joules: a bill that only says why."""
    return Bill(energy_nj=None, quality=Quality.UNAVAILABLE, reason=reason)

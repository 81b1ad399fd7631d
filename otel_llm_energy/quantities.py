"""The words that meters, servers and the ledger share: channels, readings and samples of activity.

Energy is counted in integers (microjoules where a counter gives them, nanojoules inside the ledger), time in
integer nanoseconds of the monotonic clock. Wall-clock time appears only where a span is met.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Component = Literal["cpu", "memory", "gpu", "host"]

NJ_PER_UJ = 1_000
NJ_PER_JOULE = 1_000_000_000
NS_PER_SECOND = 1_000_000_000
JOULES_PER_KWH = 3_600_000


@dataclass(frozen=True, slots=True)
class Channel:
    """One cumulative energy counter: a socket, a DRAM domain, a GPU, a host.

    Attributes:
        id: unique on its machine, e.g. ``"package-0"``, ``"package-0/dram"``.
        component: what the counter covers.
        meter: name of the meter that reads it, e.g. ``"rapl"``.
        resource: whose activity shares it: ``"cpu"`` or ``"gpu:<uuid>"``.
        range_uj: the counter goes back to zero at this value, in microjoules; ``None`` if unknown.
        limit_watts: the hardware's own power limit; ``None`` if unknown.
        idle_watts: idle power known beforehand (configured, or a power model's); ``None`` to learn it.
        scale_error: relative error of the meter's scale, 0.05 for 5 %.
        estimated: the joules come from a power model, not from a meter.
        host: whose counter it is, where that is not this machine: where its meter is asked, e.g. ``"gpu-1:8080"``.
    """

    id: str
    component: Component
    meter: str
    resource: str = "cpu"
    range_uj: int | None = None
    limit_watts: float | None = None
    idle_watts: float | None = None
    scale_error: float = 0.0
    estimated: bool = False
    host: str = ""


@dataclass(frozen=True, slots=True)
class IdlePower:
    """Idle power of one channel, as it was learned: worth keeping for the next run.

    Attributes:
        watts: the point estimate.
        lowest_watts: the 2 % quantile of what was seen.
        seconds: how much time without calls it was learned from.
        state: in which it was learned, as in `Reading.state`.
    """

    watts: float
    lowest_watts: float
    seconds: float
    state: str = ""


@dataclass(frozen=True, slots=True)
class Reading:
    """The value of one channel's counter, and when the counter had it.

    Attributes:
        channel_id: the channel that was read.
        energy_uj: the raw cumulative counter, microjoules; it may wrap or reset.
        earliest_ns: the counter had this value at some instant from here on (monotonic clock) ...
        latest_ns: ... to here.
        state: of the hardware, where its idle power depends on that: a GPU's performance state.
    """

    channel_id: str
    energy_uj: int
    earliest_ns: int
    latest_ns: int
    state: str = ""


@dataclass(frozen=True, slots=True)
class ActivitySample:
    """Cumulative busy time of a machine's resource, in all and by server, at one instant.

    Attributes:
        resource: ``"cpu"`` or ``"gpu:<uuid>"``, as in `Channel.resource`.
        at_ns: when it was taken (monotonic clock).
        total_ns: busy time of the whole resource since some fixed instant, ns (two busy CPUs count double).
        by_server_ns: the same for each server's process tree; ``None`` where it cannot be known.
        capacity: how many CPUs (or GPU engines) can be busy at once.
        resolution_ns: error of one difference of ``by_server_ns``.
        total_resolution_ns: error of one difference of ``total_ns``.
        absent: servers that draw nothing from the resource: they hold no context on the GPU.
    """

    resource: str
    at_ns: int
    total_ns: int
    by_server_ns: Mapping[str, int | None]
    capacity: int
    resolution_ns: int
    total_resolution_ns: int
    absent: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class ProcessPower:
    """The mean power of one process, all its threads included, as a host's meter gives it.

    Attributes:
        pid: its number on that host.
        exe: path or name of its program.
        cmdline: its arguments run together, without the spaces between them.
        labels: all that the meter says of it; among them the container it runs in, if that is known.
        microwatts: its power.
    """

    pid: int
    exe: str
    cmdline: str
    labels: Mapping[str, str]
    microwatts: float


@dataclass(frozen=True, slots=True)
class HostPower:
    """The mean power of a host and its processes between a meter's last two refreshes.

    Attributes:
        at_ns: the later refresh (monotonic clock).
        microwatts: of the whole host; ``None`` where the meter does not know it (its first answer, a wrapped counter).
        processes: each process once.
    """

    at_ns: int
    microwatts: float | None
    processes: Sequence[ProcessPower]

"""Which meters to read: those that the user names, or the best that works here."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from otel_llm_energy.machine import PROC
from otel_llm_energy.meters.base import Meter, MeterError
from otel_llm_energy.meters.cpu_estimate import CpuEstimate
from otel_llm_energy.meters.powercap import POWERCAP_ROOT, RaplMeter
from otel_llm_energy.meters.scaphandre import SCAPHANDRE_URL, ScaphandreMeter
from otel_llm_energy.quantities import Channel

AUTO = "auto"
BEST_FIRST = ("rapl", "scaphandre", "cpu-estimate")
"""Of these ``auto`` takes the first that works; they all cover the CPU. A meter of GPUs will stand beside them."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class OpenMeter:
    """A meter that has been opened, with those of its channels that count; readings of others are to be ignored."""

    meter: Meter
    channels: tuple[Channel, ...]


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A meter that is not read, and why: the slug that a span may show, and a sentence for people."""

    name: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Discovery:
    """The meters to read, opened, none of which overlap; and those left out, in the order they were tried."""

    meters: tuple[OpenMeter, ...]
    left_out: tuple[LeftOut, ...]

    @property
    def reason(self) -> str:
        """Why there is no meter: the reason of the first one left out."""
        return self.left_out[0].reason if self.left_out else "no-meter"


def discover(
    meters: str | Meter | Sequence[str | Meter] = AUTO,
    *,
    scaphandre_url: str | None = None,
    powercap_root: str | Path | None = None,
    proc: Path = PROC,
    default_powercap_root: Path = POWERCAP_ROOT,
) -> Discovery:
    """Open the wanted meters, best first, each only where it measures what no earlier one does.

    Args:
        meters: names (``rapl``, ``scaphandre``, ``cpu-estimate``, ``auto``) or meters, in the order of preference.
        scaphandre_url: of the exporter's page, for the name ``scaphandre``.
        powercap_root: the folder that holds ``intel-rapl:0``, for the name ``rapl``. One that the user names is trusted
            in a guest too.
        proc, default_powercap_root: roots of the kernel's file systems.

    Raises:
        ValueError: an unknown name. What cannot be opened raises nothing: see `Discovery.left_out`.
    """
    wanted = [meters] if isinstance(meters, str) or not isinstance(meters, Sequence) else meters
    makers: dict[str, Callable[[], Meter]] = {
        "rapl": lambda: RaplMeter(powercap_root, default_root=default_powercap_root),
        "scaphandre": lambda: ScaphandreMeter(scaphandre_url or SCAPHANDRE_URL),
        "cpu-estimate": CpuEstimate,
    }
    opened: list[OpenMeter] = []
    left_out: list[LeftOut] = []
    guest = in_guest(proc)
    for alternatives in [_alternatives(name_or_meter, makers) for name_or_meter in wanted]:
        for meter in alternatives:
            try:
                opened.append(_open(meter, opened, guest))
                break
            except MeterError as error:
                left_out.append(LeftOut(meter.name, error.reason, str(error)))
                _log.debug("meter %s is left out: %s", meter.name, error)
    return Discovery(tuple(opened), tuple(left_out))


def in_guest(proc: Path = PROC) -> bool:
    """Whether this is a virtual machine, or a container that lxcfs shows a part of the host as a whole.

    There a counter of the whole host says nothing about us: /proc/stat shows only our own part of its activity.
    """
    flags = _lines(proc / "cpuinfo", "flags")
    mounts = _lines(proc / "self" / "mounts", "lxcfs")
    return any(line.startswith("flags") and "hypervisor" in line.split() for line in flags) or any(mounts)


def _alternatives(name_or_meter: str | Meter, makers: Mapping[str, Callable[[], Meter]]) -> list[Meter]:
    """The meters of which the first that works is taken."""
    if not isinstance(name_or_meter, str):
        return [name_or_meter]
    names = BEST_FIRST if name_or_meter == AUTO else (name_or_meter,)
    try:
        return [makers[name]() for name in names]
    except KeyError:
        choices = ", ".join((AUTO, *BEST_FIRST))
        raise ValueError(f"meters: {name_or_meter!r} is no meter. Choose from {choices}.") from None


def _open(meter: Meter, opened: Sequence[OpenMeter], guest: bool) -> OpenMeter:
    """Open it and keep the channels that no earlier meter covers."""
    if guest and isinstance(meter, RaplMeter) and not meter.root_is_named:
        raise MeterError(
            "guest-cpu",
            f"{meter.root}: this is a virtual machine, whose counters would be the whole host's. Name the root"
            " (powercap_root) if they are this machine's own.",
        )
    channels = meter.open()
    earlier = [channel for other in opened for channel in other.channels]
    fresh = tuple(channel for channel in channels if not any(_overlap(channel, other) for other in earlier))
    if fresh:
        return OpenMeter(meter, fresh)
    meter.close()
    names = " and ".join(other.meter.name for other in opened)
    raise MeterError("overlap", f"{meter.name} adds nothing that may be added to {names}.")


def _overlap(channel: Channel, other: Channel) -> bool:
    """Whether both count the same joules, or one measures and the other only estimates."""
    if channel.estimated != other.estimated:
        return True
    return channel.component == other.component or "host" in (channel.component, other.component)


def _lines(path: Path, word: str) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            yield from (line for line in file if word in line)
    except OSError:
        _log.debug("%s cannot be read", path)

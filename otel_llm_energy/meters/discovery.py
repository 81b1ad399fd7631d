"""Which meters to read: those that the user names, or the best that works here."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from otel_llm_energy.machine import PROC
from otel_llm_energy.meters.base import Meter, MeterError, ProcessMeter
from otel_llm_energy.meters.cpu_estimate import CpuEstimate
from otel_llm_energy.meters.mending import mending
from otel_llm_energy.meters.nvml import NvmlMeter, nvidia_driver_is_there
from otel_llm_energy.meters.powercap import POWERCAP_ROOT, RaplMeter
from otel_llm_energy.meters.scaphandre import SCAPHANDRE_URL, ScaphandreMeter
from otel_llm_energy.meters.urls import meter_at
from otel_llm_energy.quantities import Channel

AUTO = "auto"
NAMES = ("rapl", "scaphandre", "nvml", "cpu-estimate")
"""The meters that can be named."""

_CPU_BEST_FIRST = ("rapl", "scaphandre")
_GPU = ("nvml",)
_LAST_RESORT = ("cpu-estimate",)

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class OpenMeter:
    """A meter that has been opened, with those of its channels that count; readings of others are to be ignored."""

    meter: Meter
    channels: tuple[Channel, ...]


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A meter that is not read, and why: the slug that a span may show, and a sentence for people.

    The name of one that is read for another machine's servers ends in ``of HOST``. ``by_address`` says that the user
    gave this very meter, or its URL, and no name such as ``scaphandre``.
    """

    name: str
    reason: str
    message: str
    by_address: bool = False

    @property
    def mend(self) -> str:
        """The line of configuration, or the command, that would bring it back; empty where there is none."""
        return mending(self.name, self.reason, self.message, by_address=self.by_address)


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
    dev: Path = Path("/dev"),
    default_powercap_root: Path = POWERCAP_ROOT,
    taken: Collection[Hashable] = (),
) -> Discovery:
    """Open the wanted meters, best first, each only where it measures what no earlier one does.

    Args:
        meters: names (``rapl``, ``scaphandre``, ``nvml``, ``cpu-estimate``, ``auto``), URLs as `meter_at` takes them,
            or meters; the order is the preference. ``auto`` is the first of ``rapl`` and ``scaphandre`` that works, and
            ``nvml`` beside it where there is an NVIDIA driver; ``cpu-estimate`` only where nothing measures.
        scaphandre_url: of the exporter's page, for the name ``scaphandre``.
        powercap_root: the folder that holds ``intel-rapl:0``, for the name ``rapl``. One that the user names is trusted
            in a guest too.
        proc, dev, default_powercap_root: roots of the kernel's file systems.
        taken: sources (`ProcessMeter.source`) that are read already, for servers that the user has named.

    Raises:
        ValueError: an unknown name, a wrong URL. What cannot be opened raises nothing: see `Discovery.left_out`.
    """
    wanted = [meters] if isinstance(meters, str) or not isinstance(meters, Sequence) else meters
    makers: dict[str, Callable[[], Meter]] = {
        "rapl": lambda: RaplMeter(powercap_root, default_root=default_powercap_root),
        "scaphandre": lambda: ScaphandreMeter(scaphandre_url or SCAPHANDRE_URL),
        "nvml": NvmlMeter,
        "cpu-estimate": CpuEstimate,
    }
    opened: list[OpenMeter] = []
    left_out: list[LeftOut] = []
    guest = in_guest(proc)
    steps = [step for name_or_meter in wanted for step in _steps(name_or_meter, makers, nvidia_driver_is_there(dev))]
    for alternatives in steps:
        if alternatives.unless_measured and opened:
            continue
        for meter in alternatives.meters:
            try:
                _refuse(meter, guest, taken)
                opened.append(_open(meter, opened))
                break
            except MeterError as error:
                left_out.append(LeftOut(meter.name, error.reason, str(error), alternatives.by_address))
                _logger.debug("meter %s is left out: %s", meter.name, error)
    return Discovery(tuple(opened), tuple(left_out))


def in_guest(proc: Path = PROC) -> bool:
    """Whether this is a virtual machine, or a container that lxcfs shows a part of the host as a whole.

    There a counter of the whole host says nothing about us: /proc/stat shows only our own part of its activity.
    """
    flags = _lines(proc / "cpuinfo", "flags")
    mounts = _lines(proc / "self" / "mounts", "lxcfs")
    return any(line.startswith("flags") and "hypervisor" in line.split() for line in flags) or any(mounts)


class _Alternatives(NamedTuple):
    """Meters of which the first that works is taken."""

    meters: Sequence[Meter]
    unless_measured: bool = False
    by_address: bool = False


def _steps(name_or_meter: str | Meter, makers: Mapping[str, Callable[[], Meter]], nvidia: bool) -> list[_Alternatives]:
    """What to open, one after another, for one of the user's wishes."""
    if not isinstance(name_or_meter, str):
        return [_Alternatives([name_or_meter], by_address=True)]
    if "://" in name_or_meter:
        return [_Alternatives([meter_at(name_or_meter)], by_address=True)]
    if name_or_meter != AUTO and name_or_meter not in makers:
        choices = ", ".join((AUTO, *NAMES))
        raise ValueError(f"meters: {name_or_meter!r} is no meter. Choose from {choices}.")
    if name_or_meter != AUTO:
        return [_Alternatives([makers[name_or_meter]()])]
    steps = [_CPU_BEST_FIRST, _GPU] if nvidia else [_CPU_BEST_FIRST]
    measuring = [_Alternatives([makers[name]() for name in names]) for names in steps]
    return [*measuring, _Alternatives([makers[name]() for name in _LAST_RESORT], unless_measured=True)]


def _refuse(meter: Meter, guest: bool, taken: Collection[Hashable]) -> None:
    """Raise `MeterError` for a meter that must not be read here, whether it works or not."""
    if guest and isinstance(meter, RaplMeter) and not meter.root_is_named:
        raise MeterError(
            "guest-cpu",
            f"{meter.root}: this is a virtual machine, whose counters would be the whole host's. Name the root"
            " (powercap_root) if they are this machine's own.",
        )
    if isinstance(meter, ProcessMeter) and meter.source in taken:
        raise MeterError(
            "taken",
            f"{meter!r} is read for servers={{...}} already. Two clients would freeze a Scaphandre, and its energy"
            " would be metered twice; name this machine's servers there, too.",
        )


def _open(meter: Meter, opened: Sequence[OpenMeter]) -> OpenMeter:
    """Open it and keep the channels that no earlier meter covers."""
    try:
        channels = meter.open()
    except MeterError:
        raise
    except Exception as error:  # a user's own may raise anything, and so may bindings of another version
        raise MeterError("meter-unreadable", f"{meter.name}: its open() failed: {error!r}.") from error
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
    if "gpu" in (channel.component, other.component):
        # Of the counters of a host only psys, the whole platform's, may hold a GPU; the others are sums of CPU sockets.
        return channel.component == other.component or "psys" in (channel.id, other.id)
    return channel.component == other.component or "host" in (channel.component, other.component)


def _lines(path: Path, word: str) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            yield from (line for line in file if word in line)
    except OSError:
        _logger.debug("%s cannot be read", path)

"""RAPL through Linux's powercap tree: package and DRAM counters of Intel and AMD CPUs.

Source: Documentation/power/powercap/powercap.rst of the kernel. ``energy_uj`` is a 32-bit hardware counter in
microjoules that wraps at ``max_energy_range_uj`` (every 44 minutes at 100 W) and is refreshed about every millisecond.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from otel_llm_energy.meters.base import MeterError, Pace, as_scale_error
from otel_llm_energy.quantities import Channel, Component, Reading
from otel_llm_energy.syscalls import HeldFile

POWERCAP_ROOT = Path("/sys/class/powercap")
RAPL_SCALE_ERROR = 0.0
"""Relative error of RAPL's scale that bounds allow for. It differs by machine and no published figure holds for all, so
none is assumed; give ``scale_error`` where you have measured it against the wall."""

_REFRESH_NS = 1_000_000  # how old a value may be when it is read
_COUNTER_BYTES = 32
_ZONE = re.compile(r"intel-rapl:(\d+)(?::(\d+))?")
_LIMIT_UW = range(1_000_000, 2_000_000_001)  # 1 W to 2 kW; firmware also writes 0 and 2^32

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Zone:
    """One folder of the tree: ``intel-rapl:PACKAGE`` or ``intel-rapl:PACKAGE:PART``."""

    folder: Path
    name: str
    package: int
    part: int | None


class _Counter(NamedTuple):
    """A counter's file, held open."""

    channel_id: str
    file: HeldFile


class RaplMeter:
    """Reads the powercap tree: one channel per CPU package and per DRAM domain.

    ``psys`` stands in only where there is no package (it contains them); ``core`` and ``uncore`` are inside their
    package and ``intel-rapl-mmio`` repeats it, so none of them is read. Thread-safe.

    Args:
        root: the folder that holds ``intel-rapl:0``; ``None`` for ``default_root``.
        default_root: the kernel's own.
        scale_error: relative error of the joules that bounds allow for, 0.05 for 5 %; see `RAPL_SCALE_ERROR`.
        clock_ns: the monotonic clock.
    """

    name = "rapl"
    # Activity is sampled every 250 ms, so more readings between call edges tell no more, and each costs half a
    # millisecond of CPU time in caches that an app has since used for something else.
    pace = Pace(idle_seconds=1.0, open_seconds=0.1, at_edges=True)

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        *,
        default_root: Path = POWERCAP_ROOT,
        scale_error: float = RAPL_SCALE_ERROR,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.root = default_root if root is None else Path(root)
        self.root_is_named = root is not None
        self._scale_error = as_scale_error(scale_error)
        self._clock_ns = clock_ns
        # Reentrant: a stream that the garbage collector ends inside `read` comes to read, too.
        self._lock = threading.RLock()
        self._lock_pid = os.getpid()
        self._is_reading = False
        self._counters: tuple[_Counter, ...] = ()
        self._lost: set[str] = set()

    def __repr__(self) -> str:
        return f"RaplMeter(root={str(self.root)!r})"

    def open(self) -> Sequence[Channel]:
        """Find packages and DRAM domains and hold their counters open.

        Raises:
            MeterError: ``meter-not-found`` (no tree), ``meter-permission`` (counters are root's since Linux 5.10),
                ``meter-unreadable``.
        """
        if self._lock_pid != os.getpid():  # another thread of the parent may hold it for ever
            self._lock, self._lock_pid, self._is_reading = threading.RLock(), os.getpid(), False
        self.close()
        zones = _without_overlap(_zones(self.root))
        if not zones:
            raise MeterError(
                "meter-not-found",
                f"{self.root}: no RAPL package here. Virtual machines rarely have one; name another folder "
                "(powercap_root), or another meter.",
            )
        channels = _unique([self._channel(zone) for zone in zones])
        counters: list[_Counter] = []
        try:
            for zone, channel in zip(zones, channels, strict=True):
                counters.append(_open_counter(self.root, channel.id, zone.folder / "energy_uj"))
        except MeterError:
            _close_all(counters)
            raise
        with self._lock:
            self._counters = tuple(counters)
        return channels

    def read(self) -> Sequence[Reading]:
        """Read every counter, some microseconds each; a counter without a number in it is left out.

        Nothing comes of a reading within a reading, which is as good as the one that goes on.

        Raises:
            MeterError: ``meter-closed``, or ``meter-unreadable`` if no counter gave a number.
        """
        with self._lock:
            if self._is_reading:
                return ()
            self._is_reading = True
            try:
                readings = self._read_all()
            finally:
                self._is_reading = False
            if not readings:
                raise self._nothing_read()
        return readings

    def _read_all(self) -> list[Reading]:
        clock_ns = self._clock_ns
        readings: list[Reading] = []
        before_ns = clock_ns()
        for counter in self._counters:
            try:
                energy_uj = counter.file.read(int)
            except (OSError, ValueError) as error:
                self._note_lost(counter.channel_id, error)
                before_ns = clock_ns()
                continue
            after_ns = clock_ns()
            if energy_uj >= 0:
                readings.append(Reading(counter.channel_id, energy_uj, before_ns - _REFRESH_NS, after_ns))
            before_ns = after_ns
        return readings

    def close(self) -> None:
        """Close the counters."""
        with self._lock:
            counters, self._counters = self._counters, ()
            _close_all(counters)

    def _note_lost(self, channel_id: str, error: Exception) -> None:
        """Say once that a counter gives no number."""
        if channel_id not in self._lost:
            self._lost.add(channel_id)
            _logger.warning(
                "%s: the counter of %s gave no number (%s) and is left out until it does. Was its driver unloaded?",
                self.root,
                channel_id,
                error,
            )

    def _channel(self, zone: _Zone) -> Channel:
        return Channel(
            id=zone.name,
            component=_component(zone),
            meter=self.name,
            range_uj=_number(zone.folder / "max_energy_range_uj") or None,
            limit_watts=_limit_watts(zone.folder),
            scale_error=self._scale_error,
        )

    def _nothing_read(self) -> MeterError:
        if not self._counters:
            return MeterError("meter-closed", f"{self.root}: the meter is not open.")
        return MeterError(
            "meter-unreadable",
            f"{self.root}: none of {len(self._counters)} counters gave a number. Was the driver unloaded?",
        )


def _zones(root: Path) -> list[_Zone]:
    """All RAPL zones, flat as in /sys/class/powercap or with parts inside their package's folder."""
    zones: dict[tuple[int, int], _Zone] = {}
    try:
        folders = [*root.glob("intel-rapl:*"), *root.glob("intel-rapl:*/intel-rapl:*:*")]
    except OSError:
        return []
    for folder in sorted(folders):
        match = _ZONE.fullmatch(folder.name)
        name = _text(folder / "name")
        if match is None or name is None:
            continue
        package, part = int(match[1]), None if match[2] is None else int(match[2])
        zones.setdefault((package, -1 if part is None else part), _Zone(folder, name, package, part))
    return [zones[key] for key in sorted(zones)]


def _without_overlap(zones: Sequence[_Zone]) -> list[_Zone]:
    """The zones that do not overlap: packages and their DRAM, or psys where there is no package."""
    packages = {zone.package: zone for zone in zones if zone.part is None and zone.name.startswith("package")}
    if not packages:
        return [zone for zone in zones if zone.part is None and zone.name == "psys"]
    drams = [
        _Zone(zone.folder, f"{packages[zone.package].name}/dram", zone.package, zone.part)
        for zone in zones
        if zone.part is not None and zone.name == "dram" and zone.package in packages
    ]
    return [*packages.values(), *drams]


def _component(zone: _Zone) -> Component:
    if zone.name == "psys":
        return "host"
    return "cpu" if zone.part is None else "memory"


def _unique(channels: Sequence[Channel]) -> list[Channel]:
    """The same channels; where the tree repeats a name, numbered."""
    seen: dict[str, int] = {}
    unique = []
    for channel in channels:
        seen[channel.id] = seen.get(channel.id, 0) + 1
        repeat = seen[channel.id]
        unique.append(channel if repeat == 1 else replace(channel, id=f"{channel.id}#{repeat}"))
    return unique


def _limit_watts(folder: Path) -> float | None:
    """The highest power that the hardware enforces, W; ``None`` if it says nothing or nonsense.

    The long-term limit alone is no bound: up to half a minute the package may draw what the short-term one allows. Nor
    is a low one that a saver of power has set for a while: the package may draw what it is made for later.
    """
    limits_uw = [_limit_uw(folder / f"constraint_{index}") for index in range(3)]
    names = [_text(folder / f"constraint_{index}_name") for index in range(3)]
    enforced_uw = [limit for name, limit in zip(names, limits_uw, strict=True) if name in ("long_term", "short_term")]
    if not enforced_uw or None in enforced_uw:
        return None
    made_for_uw = [
        _number(folder / f"constraint_{index}_max_power_uw") for index in range(3) if names[index] == "long_term"
    ]
    return max(limit for limit in (*enforced_uw, *made_for_uw) if limit is not None and limit in _LIMIT_UW) / 1e6


def _limit_uw(constraint: Path) -> int | None:
    """What is set, else what can be set at most."""
    candidates = (_number(Path(f"{constraint}_{what}")) for what in ("power_limit_uw", "max_power_uw"))
    return next((limit for limit in candidates if limit is not None and limit in _LIMIT_UW), None)


def _open_counter(root: Path, channel_id: str, path: Path) -> _Counter:
    try:
        return _Counter(channel_id, HeldFile(path, _COUNTER_BYTES))
    except PermissionError:
        raise MeterError(
            "meter-permission",
            f"{root}: only root may read {path.relative_to(root)}. Grant it, e.g. `sudo chmod -R a+r"
            f" {shlex.quote(str(root))}/intel-rapl*/` (mind CVE-2020-8694 on shared machines), or use Scaphandre.",
        ) from None
    except OSError as error:
        raise MeterError("meter-unreadable", f"{path}: {error.strerror}.") from error


def _close_all(counters: Sequence[_Counter]) -> None:
    for counter in counters:
        counter.file.close()


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return None


def _number(path: Path) -> int | None:
    try:
        return int(path.read_bytes())
    except (OSError, ValueError):
        return None

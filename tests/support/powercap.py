"""A synthetic powercap tree: the files of one socket and its memory, as the kernel lays them out.

Layout: Linux ``Documentation/power/powercap/powercap.rst``. Set the counters by hand, or let `tests.support.feeder`
move them as the machine's real CPU use goes.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

PACKAGE: Final = "intel-rapl:0"
MEMORY: Final = "intel-rapl:0:0"
_NAMES: Final = {PACKAGE: "package-0", MEMORY: "dram"}
_DIGITS: Final = 20


@dataclass(frozen=True, slots=True)
class PowerModel:
    """Watts of the synthetic socket; a pure function of how many CPUs are busy.

    Attributes:
        idle_watts: with no CPU busy.
        watts_per_cpu: added by the first busy CPU.
        exponent: 1 for linear; less for a concave shape, in which each further CPU adds less.
        memory_part: what the memory draws, as a part of the socket's watts, on top of them.
        prefill_factor: how much more a CPU second of the model server adds while it reads a prompt.
        idle_swing_watts, idle_swing_seconds: idle power goes up and down by so much, in a sine of this period.
    """

    idle_watts: float = 20.0
    watts_per_cpu: float = 60.0
    exponent: float = 1.0
    memory_part: float = 0.1
    prefill_factor: float = 1.0
    idle_swing_watts: float = 0.0
    idle_swing_seconds: float = 60.0

    def idle_watts_at(self, seconds: float) -> float:
        """Idle power of the socket, so many seconds after the start, W."""
        if not self.idle_swing_watts:
            return self.idle_watts
        return self.idle_watts + self.idle_swing_watts * math.sin(2 * math.pi * seconds / self.idle_swing_seconds)

    def above_idle_watts(self, busy_cpus: float) -> float:
        """What busy CPUs add to the socket's power, W."""
        return self.watts_per_cpu * math.pow(max(0.0, busy_cpus), self.exponent)

    def package_watts(self, busy_cpus: float) -> float:
        """Power of the socket without its memory, W; idle power without its swing."""
        return self.idle_watts + self.above_idle_watts(busy_cpus)

    def total_watts(self, busy_cpus: float) -> float:
        """Power of socket and memory together, W."""
        return self.package_watts(busy_cpus) * (1 + self.memory_part)

    def joules(self, seconds: float, cpu_seconds: float) -> float:
        """The truth about a call: idle of its ``seconds`` of work and what its server's ``cpu_seconds`` added, J.

        Raises:
            ValueError: the shape is not linear, so that what a CPU second adds depends on who else is busy.
        """
        if self.exponent != 1:
            raise ValueError(f"exponent {self.exponent}: only with a linear shape does a server have watts of its own.")
        return (self.idle_watts * seconds + self.watts_per_cpu * cpu_seconds) * (1 + self.memory_part)


class PowercapTree:
    """The files below ``root``, which is to be named as powercap root. Closed by `close` or as a context manager.

    Counters are written in place at a fixed width, so that a reader never sees half of one.
    """

    def __init__(self, root: Path, range_uj: int = 262_143_328_850, limit_watts: float | None = None) -> None:
        self.root = root
        self.range_uj = range_uj
        self._descriptors = {zone: self._make(zone) for zone in _NAMES}
        if limit_watts is not None:
            (root / PACKAGE / "constraint_0_name").write_text("long_term\n")
            (root / PACKAGE / "constraint_0_max_power_uw").write_text(f"{round(limit_watts * 1e6)}\n")

    def _make(self, zone: str) -> int:
        folder = self.root / zone
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "name").write_text(f"{_NAMES[zone]}\n")
        (folder / "max_energy_range_uj").write_text(f"{self.range_uj}\n")
        counter = folder / "energy_uj"
        if not counter.exists():
            counter.write_text(f"{0:0{_DIGITS}d}\n")
        return os.open(counter, os.O_RDWR | os.O_CLOEXEC)

    def set_uj(self, zone: str, energy_uj: int) -> None:
        """Let the counter of ``zone`` read ``energy_uj``, wrapped at the range as the hardware's does."""
        os.pwrite(self._descriptors[zone], f"{energy_uj % self.range_uj:0{_DIGITS}d}\n".encode(), 0)

    def read_uj(self, zone: str) -> int:
        """What the counter of ``zone`` reads now, µJ."""
        return int(os.pread(self._descriptors[zone], _DIGITS, 0))

    def advance_uj(self, zone: str, energy_uj: int) -> None:
        """Add ``energy_uj`` to the counter of ``zone``."""
        self.set_uj(zone, self.read_uj(zone) + energy_uj)

    def close(self) -> None:
        """Give back the descriptors; the files stay."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def __enter__(self) -> PowercapTree:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

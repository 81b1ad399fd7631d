"""An estimate where nothing can be measured: CPU time times a published power model. Always labelled as such."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from otel_llm_energy.machine import CGROUP, PROC, BusyTime, busy_time
from otel_llm_energy.meters.base import MeterError, Pace, as_scale_error
from otel_llm_energy.quantities import NJ_PER_UJ, Channel, Reading

MIN_WATTS_PER_CPU = 0.74
MAX_WATTS_PER_CPU = 3.5
"""Watts of one virtual CPU, idle and fully busy: the average over AWS's processors in SPECpower_ssj2008, as given by
Cloud Carbon Footprint (https://www.cloudcarbonfootprint.org/docs/methodology/, "Compute"; its figures for GCP are
0.71 and 4.26, for Azure 0.78 and 3.76)."""

ESTIMATE_SCALE_ERROR = 0.5
"""Relative error of the estimate. Maximum watts per virtual CPU run from 1.6 (EPYC 2nd generation) to 6.0 (Haswell) in
the same source, about half of the average less or more, and the processor behind a virtual CPU is not known."""

_CHANNEL_ID = "cpu-estimate"


class CpuEstimate:
    """Estimates the CPUs' energy as the integral of idle watts + (maximum - idle) watts x busy CPUs.

    Args:
        min_watts_per_cpu: of one idle CPU, W.
        max_watts_per_cpu: of one busy CPU, W; >= ``min_watts_per_cpu``.
        scale_error: relative error of the joules, 0.5 for 50 %.
        proc, cgroup: roots of the kernel's file systems.
        clock_ns: the monotonic clock.
    """

    name = "cpu-estimate"
    pace = Pace(idle_seconds=1.0, open_seconds=0.25)

    def __init__(
        self,
        *,
        min_watts_per_cpu: float = MIN_WATTS_PER_CPU,
        max_watts_per_cpu: float = MAX_WATTS_PER_CPU,
        scale_error: float = ESTIMATE_SCALE_ERROR,
        proc: Path = PROC,
        cgroup: Path = CGROUP,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        if not 0 <= min_watts_per_cpu <= max_watts_per_cpu:
            raise ValueError(
                f"CpuEstimate(min_watts_per_cpu={min_watts_per_cpu!r}, max_watts_per_cpu={max_watts_per_cpu!r}): "
                "give 0 <= min <= max, in watts of one CPU."
            )
        self._min_watts = min_watts_per_cpu
        self._max_watts = max_watts_per_cpu
        self._scale_error = as_scale_error(scale_error)
        self._proc = proc
        self._cgroup = cgroup
        self._clock_ns = clock_ns
        self._busy: BusyTime | None = None
        self._last_ns = 0
        self._powered_ns = 0  # the sum of all CPUs' powered time, busy or not

    def __repr__(self) -> str:
        return f"CpuEstimate(min_watts_per_cpu={self._min_watts}, max_watts_per_cpu={self._max_watts})"

    def open(self) -> Sequence[Channel]:
        """Start the integral.

        Raises:
            MeterError: ``meter-not-found`` where the kernel shows no CPU time (not Linux).
        """
        self.close()
        try:
            self._busy = busy_time(self._proc, self._cgroup, self._clock_ns)
            first = self._busy.read()
        except (OSError, ValueError) as error:
            self.close()
            raise MeterError("meter-not-found", f"{self._proc}/stat: no CPU time to estimate from.") from error
        self._last_ns, self._powered_ns = first.at_ns, 0
        return [
            Channel(
                id=_CHANNEL_ID,
                component="cpu",
                meter=self.name,
                limit_watts=self._max_watts * first.cpus,
                idle_watts=self._min_watts * first.cpus,
                scale_error=self._scale_error,
                estimated=True,
            )
        ]

    def read(self) -> Sequence[Reading]:
        """Integrate up to now.

        Raises:
            MeterError: ``meter-closed`` or ``meter-unreadable``.
        """
        if self._busy is None:
            raise MeterError("meter-closed", f"{self!r}: the meter is not open.")
        before_ns = self._clock_ns()
        try:
            sample = self._busy.read()
        except (OSError, ValueError) as error:
            raise MeterError("meter-unreadable", f"{self._proc}/stat: {error}.") from error
        self._powered_ns += sample.cpus * (sample.at_ns - self._last_ns)
        self._last_ns = sample.at_ns
        energy_nj = self._min_watts * self._powered_ns + (self._max_watts - self._min_watts) * sample.busy_ns
        return [Reading(_CHANNEL_ID, int(energy_nj) // NJ_PER_UJ, before_ns, self._clock_ns())]

    def close(self) -> None:
        """Give back the descriptor."""
        busy, self._busy = self._busy, None
        if busy is not None:
            busy.close()

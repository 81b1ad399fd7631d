"""NVIDIA GPUs: the energy counter of each card, or its power, integrated, where it has no counter.

``nvmlDeviceGetTotalEnergyConsumption`` counts mJ since the driver was loaded, on Volta and later. The driver refreshes
it about every 100 ms (ML.ENERGY's blog says 100 ms, CodeCarbon's maintainers 20 ms on V100 to 100 ms on A100 and H100),
so a reading says what was drawn up to some instant since the last poll that still saw the old value. Not tried on a GPU
by this project: it was written to the API's reference, and tested on a library that plays the driver.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from otel_llm_energy.meters.base import MeterError, Pace, as_scale_error
from otel_llm_energy.nvml import Gpu, Nvml, NvmlError
from otel_llm_energy.quantities import NS_PER_SECOND, Channel, Reading

REFRESH_NS = NS_PER_SECOND // 10
"""The counter's longest refresh interval, ns; see the module's text for its source."""

POWER_SCALE_ERROR = 0.1
"""Relative error of integrated power. NVIDIA gives +-5 % for the sensor of cards that have no counter (nvidia-smi(1),
"Power Draw", Fermi and Kepler); as much again is assumed for what happens between two samples."""

_LOOK_FOR_PROCESSES_NS = NS_PER_SECOND
_LONGEST_STEP_NS = 5 * NS_PER_SECOND  # powers further apart do not say what was drawn in between
_PJ_PER_UJ = 1_000_000

_logger = logging.getLogger(__name__)


class _Card(Protocol):
    """One GPU that is read."""

    gpu: Gpu

    def read(self) -> Reading | None:
        """A reading, if there is a new one. Raises `NvmlError`."""


class NvmlMeter:
    """Reads every NVIDIA GPU that this process can see: one channel each. Read from one thread.

    Args:
        scale_error: relative error of the energy counters that bounds allow for, 0.05 for 5 %. None is assumed.
        power_scale_error: the same for cards without a counter.
        clock_ns: the monotonic clock.
    """

    name = "nvml"
    pace = Pace(idle_seconds=1.0, open_seconds=0.02)

    def __init__(
        self,
        *,
        scale_error: float = 0.0,
        power_scale_error: float = POWER_SCALE_ERROR,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._scale_error = as_scale_error(scale_error)
        self._power_scale_error = as_scale_error(power_scale_error, "power_scale_error")
        self._clock_ns = clock_ns
        self._nvml: Nvml | None = None
        self._cards: list[_Card] = []
        self._lost: set[str] = set()

    def __repr__(self) -> str:
        return "NvmlMeter()"

    def open(self) -> Sequence[Channel]:
        """Find the GPUs whose energy can be read; those that cannot are named in the log.

        Raises:
            MeterError: ``nvml-not-installed``, ``gpu-no-driver``, ``gpu-mig``, ``gpu-lost``, ``gpu-unsupported``,
                ``meter-permission`` or ``gpu-error``, if there is none.
        """
        self.close()
        try:
            self._nvml = Nvml()
            channels = self._find(self._nvml)
        except NvmlError as error:
            self.close()
            raise MeterError(error.reason, str(error)) from error
        return channels

    def _find(self, nvml: Nvml) -> list[Channel]:
        channels: list[Channel] = []
        problem = NvmlError("meter-not-found", "The driver knows no GPU.")
        for gpu in nvml.gpus():
            try:
                card, scale_error = self._card(nvml, gpu)
            except NvmlError as error:
                problem = error
                _logger.info("GPU %d is not read: %s", gpu.index, error)
                continue
            self._cards.append(card)
            channels.append(
                Channel(
                    id=_channel_id(gpu),
                    component="gpu",
                    meter=self.name,
                    resource=gpu.resource,
                    limit_watts=nvml.limit_watts(gpu),
                    scale_error=scale_error,
                )
            )
        if not channels:
            raise problem
        return channels

    def _card(self, nvml: Nvml, gpu: Gpu) -> tuple[_Card, float]:
        """How to read a GPU, and the relative error of that."""
        if nvml.has_instances(gpu):
            raise NvmlError(
                "gpu-mig",
                f"GPU {gpu.index} ({gpu.name}) is split into instances (MIG). It counts the energy of all of them"
                " together, and an instance cannot see its neighbours.",
            )
        try:
            nvml.energy_mj(gpu)
        except NvmlError as error:
            if error.reason != "gpu-unsupported":
                raise
            nvml.power_mw(gpu)
            return _PowerCard(nvml, gpu, self._clock_ns), self._power_scale_error
        return _CounterCard(nvml, gpu, self._clock_ns), self._scale_error

    def read(self) -> Sequence[Reading]:
        """Readings of those GPUs whose counter has moved since the last time; one that does not answer is left out.

        Raises:
            MeterError: ``meter-closed``, or why no GPU answers, e.g. ``gpu-lost``.
        """
        if self._nvml is None:
            raise MeterError("meter-closed", "NvmlMeter: the meter is not open.")
        readings: list[Reading | None] = []
        problem: NvmlError | None = None
        for card in self._cards:
            try:
                readings.append(card.read())
            except NvmlError as error:
                problem = error
                self._note_lost(card.gpu, error)
        if problem is not None and not readings:
            raise MeterError(problem.reason, str(problem)) from problem
        return [reading for reading in readings if reading is not None]

    def _note_lost(self, gpu: Gpu, error: NvmlError) -> None:
        """Say once that a GPU does not answer any more."""
        if gpu.uuid not in self._lost:
            self._lost.add(gpu.uuid)
            _logger.warning("GPU %d is left out until it answers: %s", gpu.index, error)

    def close(self) -> None:
        """Give the library back."""
        nvml, self._nvml, self._cards = self._nvml, None, []
        if nvml is not None:
            nvml.close()


class _CounterCard:
    """A GPU with an energy counter."""

    def __init__(self, nvml: Nvml, gpu: Gpu, clock_ns: Callable[[], int]) -> None:
        self.gpu = gpu
        self._nvml = nvml
        self._clock_ns = clock_ns
        self._energy_mj: int | None = None
        self._state = _IdleState(nvml, gpu)
        self._unchanged_ns = 0  # at this instant it still had the value before

    def read(self) -> Reading | None:
        before_ns = self._clock_ns()
        energy_mj = self._nvml.energy_mj(self.gpu)
        after_ns = self._clock_ns()
        earliest_ns, self._unchanged_ns = max(self._unchanged_ns, before_ns - REFRESH_NS), before_ns
        if energy_mj == self._energy_mj:
            return None
        self._energy_mj = energy_mj
        return Reading(_channel_id(self.gpu), energy_mj * 1000, earliest_ns, after_ns, self._state.read(after_ns))


class _PowerCard:
    """A GPU without one: the integral of its power, by the trapezoidal rule."""

    def __init__(self, nvml: Nvml, gpu: Gpu, clock_ns: Callable[[], int]) -> None:
        self.gpu = gpu
        self._nvml = nvml
        self._clock_ns = clock_ns
        self._state = _IdleState(nvml, gpu)
        self._last: tuple[int, int] | None = None
        self._energy_pj = 0  # 1 mW for 1 ns is 1 pJ

    def read(self) -> Reading | None:
        before_ns = self._clock_ns()
        power_mw = self._nvml.power_mw(self.gpu)
        after_ns = self._clock_ns()
        at_ns = (before_ns + after_ns) // 2
        if self._last is not None:
            last_ns, last_mw = self._last
            if at_ns - last_ns <= _LONGEST_STEP_NS:
                self._energy_pj += (last_mw + power_mw) * (at_ns - last_ns) // 2
            else:
                self._energy_pj -= _PJ_PER_UJ  # a counter that steps back tells the ledger that energy is missing
        self._last = (at_ns, power_mw)
        state = self._state.read(after_ns)
        return Reading(_channel_id(self.gpu), self._energy_pj // _PJ_PER_UJ, before_ns, after_ns, state)


class _IdleState:
    """What a GPU's idle power depends on: its performance state, and whether a process holds memory on it."""

    def __init__(self, nvml: Nvml, gpu: Gpu) -> None:
        self._nvml = nvml
        self._gpu = gpu
        self._resident = False
        self._looked_ns: int | None = None

    def read(self, now_ns: int) -> str:
        """``"P8"``, ``"P0 resident"``..."""
        if self._looked_ns is None or now_ns - self._looked_ns >= _LOOK_FOR_PROCESSES_NS:
            self._looked_ns = now_ns
            self._resident = self._has_processes()
        state = self._nvml.performance_state(self._gpu)
        name = "P?" if state is None else f"P{state}"
        return f"{name} resident" if self._resident else name

    def _has_processes(self) -> bool:
        try:
            return bool(self._nvml.processes(self._gpu))
        except NvmlError:
            return False


def nvidia_driver_is_there(dev: Path = Path("/dev")) -> bool:
    """Whether it is worth asking: the driver's device, or that of Windows' GPUs in WSL."""
    return (dev / "nvidiactl").exists() or (dev / "dxg").exists()


def _channel_id(gpu: Gpu) -> str:
    return f"gpu-{gpu.index}"

"""NVIDIA's management library: what meters and servers need of it, with its errors as reasons.

Below meters and servers because both need it: the meter reads energy, a server's part is a share of the activity.
Behind the official bindings `nvidia-ml-py` (extra ``nvidia``, module ``pynvml``), which load the driver's
``libnvidia-ml.so.1``. Source: NVML API Reference, "Device Queries".
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

_T = TypeVar("_T")

GPU_RESOURCE = "gpu:"
"""How `otel_llm_energy.quantities.Channel.resource` begins where it is a GPU; its UUID follows."""


class NvmlError(Exception):
    """A question to the driver was not answered.

    Attributes:
        reason: the slug that a span shows, e.g. ``"gpu-lost"``.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU.

    Attributes:
        index: as the driver counts; it may change at the next start.
        uuid: names the card for ever.
        name: of the product.
        handle: the library's.
    """

    index: int
    uuid: str
    name: str
    handle: Any

    @property
    def resource(self) -> str:
        """Whose activity shares its energy, as in `otel_llm_energy.quantities.Channel.resource`."""
        return f"{GPU_RESOURCE}{self.uuid}"


class Utilisation(NamedTuple):
    """What a process used of a GPU's multiprocessors: percent, in a sample taken at ``at_us`` (the driver's clock)."""

    pid: int
    percent: int
    at_us: int


class Nvml:
    """The library, opened; it counts how often, so each user has one of its own. Thread-safe.

    Raises:
        NvmlError: ``nvml-not-installed`` (no bindings), ``gpu-no-driver``, or what the driver says.
    """

    def __init__(self) -> None:
        try:
            self._pynvml: Any = importlib.import_module("pynvml")
        except ImportError as error:
            if error.name != "pynvml":
                raise
            raise NvmlError(
                "nvml-not-installed", "GPUs are read through nvidia-ml-py. Run: pip install 'otel-llm-energy[nvidia]'"
            ) from None
        self._reasons: Mapping[int, str] = {
            self._pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: "gpu-no-driver",
            self._pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "gpu-no-driver",
            self._pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "gpu-no-driver",
            self._pynvml.NVML_ERROR_NO_PERMISSION: "meter-permission",
            self._pynvml.NVML_ERROR_GPU_IS_LOST: "gpu-lost",
            self._pynvml.NVML_ERROR_RESET_REQUIRED: "gpu-lost",
            self._pynvml.NVML_ERROR_NOT_SUPPORTED: "gpu-unsupported",
            self._pynvml.NVML_ERROR_FUNCTION_NOT_FOUND: "gpu-unsupported",
        }
        self._ask("nvmlInit", self._pynvml.nvmlInit)

    def close(self) -> None:
        """Give the library back. Never raises."""
        try:
            self._pynvml.nvmlShutdown()
        except self._pynvml.NVMLError:
            return  # it was not open any more

    def gpus(self) -> list[Gpu]:
        """All GPUs that answer; raises `NvmlError` only if none does."""
        found: list[Gpu] = []
        problem: NvmlError | None = None
        for index in range(self._ask("nvmlDeviceGetCount", self._pynvml.nvmlDeviceGetCount)):
            try:
                found.append(self._gpu(index))
            except NvmlError as error:
                problem = error
        if problem is not None and not found:
            raise problem
        return found

    def _gpu(self, index: int) -> Gpu:
        handle = self._ask(f"GPU {index}", self._pynvml.nvmlDeviceGetHandleByIndex, index)
        uuid = self._ask(f"GPU {index}, UUID", self._pynvml.nvmlDeviceGetUUID, handle)
        name = self._ask(f"GPU {index}, name", self._pynvml.nvmlDeviceGetName, handle)
        return Gpu(index, str(uuid), str(name), handle)

    def energy_mj(self, gpu: Gpu) -> int:
        """Cumulative energy since the driver was loaded, mJ (Volta and later)."""
        return int(self._of(gpu, "nvmlDeviceGetTotalEnergyConsumption"))

    def power_mw(self, gpu: Gpu) -> int:
        """Power now, mW; on some cards the mean of the last second."""
        return int(self._of(gpu, "nvmlDeviceGetPowerUsage"))

    def limit_watts(self, gpu: Gpu) -> float | None:
        """The power limit that the driver enforces, W; ``None`` if it does not say."""
        try:
            return float(self._of(gpu, "nvmlDeviceGetEnforcedPowerLimit")) / 1000
        except NvmlError:
            return None

    def has_instances(self, gpu: Gpu) -> bool:
        """The card is split into instances (MIG), whose energy is not counted apart."""
        try:
            current, _pending = self._of(gpu, "nvmlDeviceGetMigMode")
        except NvmlError:
            return False
        return bool(current)

    def performance_state(self, gpu: Gpu) -> int | None:
        """From 0 (fastest) to 15; ``None`` if the card does not say."""
        try:
            return int(self._of(gpu, "nvmlDeviceGetPerformanceState"))
        except NvmlError:
            return None

    def busy_percent(self, gpu: Gpu) -> int:
        """Part of the last sample period (up to a second) in which the GPU worked."""
        return int(self._of(gpu, "nvmlDeviceGetUtilizationRates").gpu)

    def processes(self, gpu: Gpu) -> set[int]:
        """Processes that hold a context on it: of this PID namespace, or, in some containers, of the host's."""
        kinds = ("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetGraphicsRunningProcesses")
        return {int(process.pid) for kind in kinds for process in self._of(gpu, kind)}

    def utilisation(self, gpu: Gpu, since_us: int) -> list[Utilisation]:
        """What its processes used of it since then; empty if nothing was sampled."""
        try:
            samples = self._of(gpu, "nvmlDeviceGetProcessUtilization", since_us)
        except NvmlError as error:
            if error.reason == "gpu-nothing-found":
                return []
            raise
        return [Utilisation(int(one.pid), int(one.smUtil), int(one.timeStamp)) for one in samples]

    def _of(self, gpu: Gpu, function: str, *arguments: object) -> Any:
        what = f"GPU {gpu.index} ({gpu.name}), {function}"
        return self._ask(what, getattr(self._pynvml, function), gpu.handle, *arguments)

    def _ask(self, what: str, function: Callable[..., _T], *arguments: object) -> _T:
        try:
            return function(*arguments)
        except self._pynvml.NVMLError as error:
            code = int(getattr(error, "value", -1))
            missing = code == self._pynvml.NVML_ERROR_NOT_FOUND
            reason = "gpu-nothing-found" if missing else self._reasons.get(code, "gpu-error")
            raise NvmlError(reason, f"{what}: NVML says {str(error).rstrip('.')}.") from error

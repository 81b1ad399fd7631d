"""Where joules come from: meters that yield cumulative readings, and know nothing of calls."""

from otel_llm_energy.meters.base import Meter, MeterError, Pace
from otel_llm_energy.meters.cpu_estimate import CpuEstimate
from otel_llm_energy.meters.discovery import Discovery, LeftOut, OpenMeter, discover, in_guest
from otel_llm_energy.meters.nvml import NvmlMeter
from otel_llm_energy.meters.powercap import RaplMeter
from otel_llm_energy.meters.scaphandre import ScaphandreMeter

__all__ = [
    "CpuEstimate",
    "Discovery",
    "LeftOut",
    "Meter",
    "MeterError",
    "NvmlMeter",
    "OpenMeter",
    "Pace",
    "RaplMeter",
    "ScaphandreMeter",
    "discover",
    "in_guest",
]

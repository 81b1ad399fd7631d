"""Where joules come from: meters that yield cumulative readings, and know nothing of calls."""

from otel_llm_energy.meters.base import Meter, MeterError, Pace, ProcessMeter
from otel_llm_energy.meters.cpu_estimate import CpuEstimate
from otel_llm_energy.meters.discovery import Discovery, LeftOut, OpenMeter, discover, in_guest
from otel_llm_energy.meters.nvml import NvmlMeter
from otel_llm_energy.meters.powercap import RaplMeter
from otel_llm_energy.meters.prometheus import PrometheusMeter
from otel_llm_energy.meters.scaphandre import ScaphandreMeter
from otel_llm_energy.meters.scaphandre_stream import ScaphandreStream
from otel_llm_energy.meters.urls import meter_at

__all__ = [
    "CpuEstimate",
    "Discovery",
    "LeftOut",
    "Meter",
    "MeterError",
    "NvmlMeter",
    "OpenMeter",
    "Pace",
    "ProcessMeter",
    "PrometheusMeter",
    "RaplMeter",
    "ScaphandreMeter",
    "ScaphandreStream",
    "discover",
    "in_guest",
    "meter_at",
]

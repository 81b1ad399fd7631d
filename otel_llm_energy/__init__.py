"""Measured energy on every LLM call's span: joules, joules per token, how sure, and who else drew power.

::

    import otel_llm_energy
    otel_llm_energy.instrument()
"""

import sys

if sys.platform == "win32":
    raise ImportError(
        "otel-llm-energy runs on Linux only: this is Windows, where neither its meters nor /proc are there. Run the app"
        " in WSL 2 or a container, or import it only where sys.platform is 'linux'."
    )

from otel_llm_energy.by_hand import measure
from otel_llm_energy.instrument import Instrumentation, instrument, measure_idle
from otel_llm_energy.meters import (
    CpuEstimate,
    MeterError,
    NvmlMeter,
    PrometheusMeter,
    RaplMeter,
    ScaphandreMeter,
    ScaphandreStream,
)
from otel_llm_energy.settings import SettingError
from otel_llm_energy.status import Status
from otel_llm_energy.tracing.measurement import Measurement
from otel_llm_energy.tracing.processor import EnergySpanProcessor
from otel_llm_energy.version import __version__
from otel_llm_instrumentation import conversation

__all__ = [
    "CpuEstimate",
    "EnergySpanProcessor",
    "Instrumentation",
    "Measurement",
    "MeterError",
    "NvmlMeter",
    "PrometheusMeter",
    "RaplMeter",
    "ScaphandreMeter",
    "ScaphandreStream",
    "SettingError",
    "Status",
    "__version__",
    "conversation",
    "instrument",
    "measure",
    "measure_idle",
]

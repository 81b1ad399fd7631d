"""Equal calls at 1 % head sampling, by the SDK's own sampler; of these trace ids it takes one in ten.

Counters go out with the exit. Prints how many calls were made.
"""

import sys

from app import ask, set_up_tracing
from openai import OpenAI
from opentelemetry import metrics
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased

import otel_llm_energy

CALLS = 20


class EveryTenth(RandomIdGenerator):
    """Trace ids of which every tenth is below the sampler's bound."""

    made = 0

    def generate_trace_id(self) -> int:
        self.made += 1
        low_bits = self.made if self.made % 10 == 5 else 2**64 - self.made
        return (1 << 64) | low_bits


metrics.set_meter_provider(MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter())]))
set_up_tracing(TracerProvider(sampler=TraceIdRatioBased(0.01), id_generator=EveryTenth()))
energy = otel_llm_energy.instrument()
client = OpenAI()
for _ in range(CALLS):
    ask(client)
energy.force_flush()
energy.uninstrument()
sys.stdout.write(f"{CALLS}\n")

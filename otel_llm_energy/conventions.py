"""Every attribute and metric of this project: name, type, unit, tier and meaning, in one place.

The namespace is our own because OpenTelemetry asks third parties not to extend ``gen_ai.*``
(https://opentelemetry.io/docs/specs/semconv/general/naming/). Units stand in the attribute names because no
back end shows an attribute's unit. No key is a prefix of another: back ends that nest dots would lose one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Tier = Literal["minimal", "standard", "full"]
TIERS: Final[tuple[Tier, ...]] = ("minimal", "standard", "full")


@dataclass(frozen=True, slots=True)
class Attribute:
    """A span attribute: its key, OTLP type, tier and meaning."""

    key: str
    type: Literal["double", "int", "string", "bool"]
    tier: Tier
    meaning: str


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric: its name, instrument, UCUM unit and meaning."""

    name: str
    instrument: Literal["counter", "updowncounter", "histogram", "gauge"]
    unit: str
    meaning: str
    boundaries: tuple[float, ...] = ()


JOULES: Final = "llm.energy.joules"
QUALITY: Final = "llm.energy.quality"
REASON: Final = "llm.energy.reason"
JOULES_PER_OUTPUT_TOKEN: Final = "llm.energy.joules_per_output_token"
ABOVE_IDLE_JOULES: Final = "llm.energy.above_idle_joules"
LOWER_JOULES: Final = "llm.energy.lower_joules"
UPPER_JOULES: Final = "llm.energy.upper_joules"
PREFILL_JOULES: Final = "llm.energy.prefill_joules"
DECODE_JOULES: Final = "llm.energy.decode_joules"
LOAD_JOULES: Final = "llm.energy.load_joules"
SUBTREE_JOULES: Final = "llm.energy.subtree_joules"
SUBTREE_INCOMPLETE: Final = "llm.energy.subtree_incomplete"
METER: Final = "llm.energy.meter"
SCOPE: Final = "llm.energy.scope"
MILLIJOULES: Final = "llm.energy.millijoules"
CLASS: Final = "llm.energy.class"
CPU_JOULES: Final = "llm.energy.cpu_joules"
MEMORY_JOULES: Final = "llm.energy.memory_joules"
GPU_JOULES: Final = "llm.energy.gpu_joules"
HOST_JOULES: Final = "llm.energy.host_joules"
METHOD: Final = "llm.energy.method"
COVERAGE: Final = "llm.energy.coverage"
CONCURRENCY: Final = "llm.energy.concurrency"
JOULES_PER_TOKEN: Final = "llm.energy.joules_per_token"
MEAN_WATTS: Final = "llm.energy.mean_watts"
QUEUE_SECONDS: Final = "llm.energy.queue_seconds"
CO2E_GRAMS: Final = "llm.energy.co2e_grams"

# In the order in which they are kept when the provider limits the number of attributes.
ATTRIBUTES: Final[tuple[Attribute, ...]] = (
    Attribute(
        JOULES,
        "double",
        "minimal",
        "This call's own share of the metered energy, J. Exclusive: summing it over a trace never counts a joule twice.",
    ),
    Attribute(
        QUALITY,
        "string",
        "minimal",
        "The first that applies of unavailable, estimated, degraded, shared (mean concurrency above 1.05), measured.",
    ),
    Attribute(REASON, "string", "minimal", "Why the quality is unavailable or degraded."),
    Attribute(
        SUBTREE_JOULES,
        "double",
        "standard",
        "On every ancestor of an LLM span: itself and all below it in this process, J.",
    ),
    Attribute(
        SUBTREE_INCOMPLETE,
        "bool",
        "standard",
        "The ancestor ended while a call below it was still open or unsettled.",
    ),
    Attribute(
        JOULES_PER_OUTPUT_TOKEN,
        "double",
        "standard",
        "joules / output tokens, J; only with a token count that the server reported.",
    ),
    Attribute(
        ABOVE_IDLE_JOULES,
        "double",
        "standard",
        "The part of joules above the idle baseline, J. Use it to compare models.",
    ),
    Attribute(LOWER_JOULES, "double", "standard", "Lower bound of joules, given the sharing method, J."),
    Attribute(UPPER_JOULES, "double", "standard", "Upper bound, likewise, J; not there where energy is known to be missing."),
    Attribute(
        METER,
        "string",
        "standard",
        "What was read: rapl, scaphandre, scaphandre-stream, prometheus, nvml, cpu-estimate; joined with +.",
    ),
    Attribute(
        SCOPE,
        "string",
        "standard",
        "process: the server's part of the activity is known; device or host: it is not.",
    ),
    Attribute(
        MILLIJOULES,
        "int",
        "standard",
        "joules again, in mJ: TraceQL's quantiles and the Collector's numeric sampler take only integers.",
    ),
    Attribute(
        CLASS,
        "string",
        "standard",
        "joules in decades, such as 1-10 J: Jaeger searches by exact string only.",
    ),
    Attribute(
        PREFILL_JOULES,
        "double",
        "standard",
        "Energy of reading the prompt, J; left out where a bucket does not part the phases.",
    ),
    Attribute(
        DECODE_JOULES,
        "double",
        "standard",
        "Energy of writing the answer, J; left out where a bucket does not part the phases.",
    ),
    Attribute(
        LOAD_JOULES,
        "double",
        "standard",
        "Energy of loading the model, J; left out where a bucket does not part the phases.",
    ),
    Attribute(CPU_JOULES, "double", "full", "The part from CPU packages, J."),
    Attribute(MEMORY_JOULES, "double", "full", "The part from memory domains, J."),
    Attribute(GPU_JOULES, "double", "full", "The part from GPUs, J."),
    Attribute(HOST_JOULES, "double", "full", "The part from counters of a whole host, J."),
    Attribute(METHOD, "string", "full", "How idle and overlap were shared, such as above-idle/equal-time or above-idle/phase-tokens."),
    Attribute(COVERAGE, "double", "full", "Part of the work window that lies inside readings, 0 to 1."),
    Attribute(
        CONCURRENCY,
        "double",
        "full",
        "Mean number of calls at work on the same server during this call's work.",
    ),
    Attribute(JOULES_PER_TOKEN, "double", "full", "joules / (input + output tokens), J."),
    Attribute(MEAN_WATTS, "double", "full", "joules / length of the work window, W."),
    Attribute(
        QUEUE_SECONDS,
        "double",
        "full",
        "Time between the start of the call and its work, without loading, s.",
    ),
    Attribute(CO2E_GRAMS, "double", "full", "joules x the configured grid intensity, g of CO2 equivalent."),
)

SERVER_LOAD_SECONDS: Final = "llm.server.load_seconds"
SERVER_PREFILL_SECONDS: Final = "llm.server.prefill_seconds"
SERVER_DECODE_SECONDS: Final = "llm.server.decode_seconds"
SERVER_END_TIME: Final = "llm.server.end_time"

CHANNEL: Final = "llm.energy.channel"
COMPONENT: Final = "llm.energy.component"
HOST: Final = "llm.energy.host"
THREAD: Final = "llm.energy.processor.thread"

METRIC_ATTRIBUTES: Final[tuple[tuple[str, str], ...]] = (
    (CHANNEL, "The counter, such as package-0 or package-0/dram: unique on its machine."),
    (COMPONENT, "What the counter covers: cpu, memory, gpu or host."),
    (HOST, "Where the meter of another machine is asked, such as gpu-1:8080; not there for this machine's."),
    (METER, "What was read, as on spans."),
    (QUALITY, "As on spans."),
    (REASON, "Why energy is no call's, or why spans are degraded."),
    (THREAD, "Who has handed a span on: forwarder, or application where it was not held."),
)
"""What tells the series of one metric apart, besides the standard attributes of the call."""

CONSUMPTION: Final = Metric("llm.energy.consumption", "counter", "J", "Energy attributed to LLM calls.")
METERED: Final = Metric("llm.energy.metered", "counter", "J", "Energy that the meters read, by channel and host.")
UNATTRIBUTED: Final = Metric("llm.energy.unattributed", "counter", "J", "Metered energy of no call, by reason, channel and host.")
OPERATION: Final = Metric(
    "llm.energy.operation",
    "histogram",
    "J",
    "Energy of one LLM call.",
    (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000),
)
PER_OUTPUT_TOKEN: Final = Metric(
    "llm.energy.per_output_token",
    "histogram",
    "J/{token}",
    "Energy of one LLM call per output token.",
    (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50),
)
HELD_SPANS: Final = Metric(
    "llm.energy.processor.held", "updowncounter", "{span}", "Spans held until their energy is known."
)
FORWARDED_SPANS: Final = Metric("llm.energy.processor.forwarded", "counter", "{span}", "Held spans handed on.")
DEGRADED_SPANS: Final = Metric(
    "llm.energy.processor.degraded",
    "counter",
    "{span}",
    "Spans handed on degraded or without energy, by reason.",
)
DROPPED_SPANS: Final = Metric(
    "llm.energy.processor.dropped",
    "counter",
    "{span}",
    "Spans that the next processor refused with an exception.",
)
METER_LAG: Final = Metric("llm.energy.meter.lag", "gauge", "s", "Age of the newest reading, by meter and host.")

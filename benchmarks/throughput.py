"""How many spans a second pass the energy processor, enriched, on one core? Beside the SDK's own, in one run.

Each span is a call's, with the attributes that our instrumentor gives it, and a bill that is there when it ends; the
desk is a stand-in that settles at once, so that this is the cost of holding, enriching and handing on alone. They take
turns, and the best one counts: what else the machine does only adds.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter, SpanExportResult

from otel_llm_energy.ledger.bill import Bill, Quality
from otel_llm_energy.tracing.claims import Claim
from otel_llm_energy.tracing.enrich import Style
from otel_llm_energy.tracing.processor import EnergySpanProcessor, NoDesk

ATTRIBUTES = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "openai",
    "gen_ai.request.model": "smollm2",
    "gen_ai.request.max_tokens": 100,
    "gen_ai.request.temperature": 0.5,
    "gen_ai.response.model": "smollm2",
    "gen_ai.response.id": "chatcmpl-1",
    "gen_ai.response.finish_reasons": ("stop",),
    "gen_ai.usage.input_tokens": 11,
    "gen_ai.usage.output_tokens": 7,
    "server.address": "127.0.0.1",
    "server.port": 8080,
    "llm.server.prefill_seconds": 0.1,
    "llm.server.decode_seconds": 0.9,
}
BILL = Bill(
    energy_nj=12_345_678_901,
    quality=Quality.MEASURED,
    above_idle_nj=9_345_678_901,
    lower_nj=11_345_678_901,
    upper_nj=13_345_678_901,
    phases_nj={"prefill": 2_000_000_000, "decode": 10_345_678_901},
    components_nj={"cpu": 11_345_678_901, "memory": 1_000_000_000},
    meter="rapl",
    scope="process",
    method="above-idle/equal-time",
    coverage=1.0,
    work_ns=1_000_000_000,
)


class Counting(SpanExporter):
    """Throws spans away, and counts them."""

    def __init__(self) -> None:
        self.spans = 0
        self.enriched = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.spans += len(spans)
        self.enriched += sum("llm.energy.joules" in (span.attributes or {}) for span in spans)
        return SpanExportResult.SUCCESS


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks throughput", description=__doc__)
    parser.add_argument("--spans", type=int, default=5_000, help="a turn")
    parser.add_argument("--turns", type=int, default=20)
    options = parser.parse_args(arguments)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    best = dict.fromkeys(_CANDIDATES, float("inf"))
    for _ in range(options.turns):
        for name, (make, style) in _CANDIDATES.items():
            best[name] = min(best[name], _once(options.spans, make(Counting()), style))
    bare = best["SimpleSpanProcessor"]
    for name, us in best.items():
        alone = f"  (its own part {us - bare:5.1f} us, {1e6 / (us - bare):.0f} spans/s)" if us > bare else ""
        print(f"{name:34} {1e6 / us:9.0f} spans/s  {us:6.1f} us a span{alone}")
    return 0


def _batching(exporter: SpanExporter) -> SpanProcessor:
    return BatchSpanProcessor(exporter, max_queue_size=10**6)


_CANDIDATES: dict[str, tuple[Callable[[SpanExporter], SpanProcessor], Style | None]] = {
    "SimpleSpanProcessor": (SimpleSpanProcessor, None),
    "BatchSpanProcessor": (_batching, None),
    "EnergySpanProcessor, standard": (SimpleSpanProcessor, Style("standard")),
    "EnergySpanProcessor, full": (SimpleSpanProcessor, Style("full")),
}


def _once(count: int, processor: SpanProcessor, style: Style | None) -> float:
    """Microseconds from the start of a span until it is exported."""
    provider = TracerProvider()
    energy = None
    if style is not None:
        energy = EnergySpanProcessor(processor, NoDesk(), style=style, max_held=count + 1)
        processor = energy
    provider.add_span_processor(processor)
    tracer = provider.get_tracer("benchmark")
    start_ns = time.perf_counter_ns()
    for begin in range(0, count, 1000):
        claims = []
        for _ in range(begin, min(begin + 1000, count)):
            span = tracer.start_span("chat smollm2", attributes=ATTRIBUTES)
            if energy is not None:
                claim = Claim(span.get_span_context())
                claim.input_tokens, claim.output_tokens = 11, 7
                energy.gate.bind(span, claim)
                claims.append(claim)
            span.end()
        for claim in claims:
            claim.bill = BILL
        if energy is not None:
            energy.gate.settled(claims)
    provider.force_flush()
    elapsed_us = (time.perf_counter_ns() - start_ns) / 1e3
    provider.shutdown()
    return elapsed_us / count

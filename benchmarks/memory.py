"""What does a held span cost in memory, beyond the span itself, and is memory flat over many calls in a row?"""

from __future__ import annotations

import argparse
import gc
import tracemalloc
from collections.abc import Callable

from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider

from benchmarks.throughput import ATTRIBUTES
from otel_llm_energy.ledger.bill import Window
from otel_llm_energy.ledger.ledger import Ledger
from otel_llm_energy.quantities import ActivitySample, Channel, Reading
from otel_llm_energy.tracing.claims import Claim
from otel_llm_energy.tracing.processor import EnergySpanProcessor, NoDesk


class Keeping(SpanProcessor):
    """Keeps the finished spans, and nothing else: what they cost by themselves."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def on_end(self, span: ReadableSpan) -> None:
        self.spans.append(span)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks memory", description=__doc__)
    parser.add_argument("--calls", type=int, default=100_000, help="calls in a row")
    options = parser.parse_args(arguments)
    for count in (1_000, 10_000):
        alone = _bytes_each(count, _keep)
        held = _bytes_each(count, _hold)
        print(
            f"{count:6} held spans: {held:6.0f} bytes each, {alone:6.0f} of them the span itself,"
            f" {held - alone:6.0f} beyond it"
        )
    _flat(options.calls)
    return 0


def _bytes_each(count: int, fill: Callable[[int], object]) -> float:
    fill(100)
    gc.collect()
    tracemalloc.start()
    kept = fill(count)
    gc.collect()
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del kept
    return size / count


def _keep(count: int) -> object:
    processor = Keeping()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(processor)
    tracer = provider.get_tracer("benchmark")
    for _ in range(count):
        tracer.start_span("chat smollm2", attributes=ATTRIBUTES).end()
    return provider, processor


def _hold(count: int) -> object:
    """Ended calls whose energy is not known yet, with their place in the ledger."""
    processor = EnergySpanProcessor(Keeping(), NoDesk(), max_held=count + 1, max_hold_seconds=3600)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(processor)
    tracer = provider.get_tracer("benchmark")
    ledger = _ledger()
    claims = []
    for index in range(count):
        span = tracer.start_span("chat smollm2", attributes=ATTRIBUTES)
        assert isinstance(span, Span)
        claim = Claim(span.get_span_context())
        processor.gate.bind(span, claim)
        claim.entry = ledger.open("server", index * 1000 + 1, "chat")
        ledger.close(claim.entry, (Window(index * 1000 + 1, index * 1000 + 901),), reported=True)
        claims.append(claim)
        span.end()
    return provider, processor, ledger, claims


def _ledger() -> Ledger:
    ledger = Ledger(0)
    for channel in ("package-0", "package-0/dram"):
        ledger.add_channel(Channel(channel, "cpu", "rapl"))
    ledger.add_server("server")
    return ledger


def _flat(calls: int) -> None:
    """Calls in a row through the ledger, with a reading every 50 ms and a sample every 250 ms."""
    ledger = _ledger()
    tracemalloc.start()
    sizes = []
    for index in range(calls):
        now_ns = index * 10_000_000
        entry = ledger.open("server", now_ns + 1, "chat")
        ledger.close(entry, (Window(now_ns + 1, now_ns + 9_000_000),), reported=True)
        if index % 5 == 0:
            for channel in ("package-0", "package-0/dram"):
                ledger.read(Reading(channel, now_ns // 20, now_ns, now_ns))
        if index % 25 == 0:
            ledger.sample(ActivitySample("cpu", now_ns, now_ns, {"server": now_ns // 2}, 2, 0, 0))
            ledger.settle(now_ns)
        if (index + 1) % (calls // 5) == 0:
            sizes.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    shown = ", ".join(f"{size / 1024:.0f}" for size in sizes)
    print(f"{calls} calls in a row ({calls // 100} s of them), KiB of the ledger after each fifth: {shown}")

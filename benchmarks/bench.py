"""What the accuracy benchmarks share: a metered session on real parts, its readings, and the truth of each call."""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import otel_llm_energy
from otel_llm_energy import Instrumentation, RaplMeter, ScaphandreMeter
from otel_llm_energy.meters.base import Meter
from otel_llm_energy.quantities import Channel, Reading
from tests.support.backends import running_scaphandre
from tests.support.feeder import feeding
from tests.support.powercap import PowerModel

BASELINE_SECONDS = {"rapl": 5.0, "scaphandre": 12.0}


class Recorder:
    """A meter that passes on another's readings and keeps them, so that other methods see just the same ones."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self.name = meter.name
        self.pace = meter.pace
        self.readings: dict[str, list[tuple[int, int]]] = {}

    def open(self) -> Sequence[Channel]:
        return self._meter.open()

    def read(self) -> Sequence[Reading]:
        readings = self._meter.read()
        for reading in readings:
            at_ns = (reading.earliest_ns + reading.latest_ns) // 2
            self.readings.setdefault(reading.channel_id, []).append((at_ns, reading.energy_uj))
        return readings

    def close(self) -> None:
        self._meter.close()

    def interpolated_joules(self, start_ns: int, end_ns: int) -> float:
        """Uniform interpolation of the counters over the call's span."""
        return sum(_at(series, end_ns) - _at(series, start_ns) for series in self._series()) / 1e6

    def mean_power_joules(self, start_ns: int, end_ns: int, around_ns: int = 500_000_000) -> float:
        """Mean of the power samples from half a second before to half a second after, times the call's duration."""
        joules = 0.0
        for series in self._series():
            powers = [
                (later - energy) / (end - start)
                for (start, energy), (end, later) in itertools.pairwise(series)
                if start_ns - around_ns <= end <= end_ns + around_ns
            ]
            joules += statistics.fmean(powers) * (end_ns - start_ns) / 1e6 if powers else 0.0
        return joules

    def _series(self) -> list[list[tuple[int, int]]]:
        return [sorted(series) for series in self.readings.values()]


def _at(series: Sequence[tuple[int, int]], time_ns: int) -> float:
    index = min(max(bisect_left(series, (time_ns, 0)), 1), len(series) - 1)
    (start_ns, before_uj), (end_ns, after_uj) = series[index - 1], series[index]
    return before_uj + (after_uj - before_uj) * (time_ns - start_ns) / (end_ns - start_ns)


@dataclass
class Session:
    """A running measurement.

    Attributes:
        handle: what `instrument` gave.
        model: of the synthetic counters' power.
        recorder: the meter's readings.
        spans: the exporter that gets every span.
    """

    handle: Instrumentation
    model: PowerModel
    recorder: Recorder
    provider: TracerProvider
    spans: InMemorySpanExporter = field(default_factory=InMemorySpanExporter)

    def calls(self) -> list[ReadableSpan]:
        """The calls' spans, in the order of their start; waits until all are settled."""
        time.sleep(5.0 if self.recorder.name == "scaphandre" else 1.0)
        self.handle.force_flush()
        found = [s for s in self.spans.get_finished_spans() if "gen_ai.operation.name" in (s.attributes or {})]
        return sorted(found, key=lambda span: span.start_time or 0)


@contextmanager
def session(meter: str, model: PowerModel | None = None) -> Iterator[Session]:
    """Synthetic counters that follow the machine's CPU use, read as RAPL files or through the real Scaphandre."""
    model = model or PowerModel()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        tree = stack.enter_context(feeding(folder / "powercap", model))
        if meter == "scaphandre":
            url = stack.enter_context(running_scaphandre(tree.root, folder)).url
            recorder = Recorder(ScaphandreMeter(url))
        else:
            recorder = Recorder(RaplMeter(tree.root))
        spans = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(spans))
        handle = otel_llm_energy.instrument(
            tracer_provider=provider, meters=recorder, detail="full", clients="auto", max_hold=60.0
        )
        stack.callback(handle.uninstrument)
        time.sleep(BASELINE_SECONDS[meter])
        yield Session(handle, model, recorder, provider, spans)


def relative_errors(values: Sequence[float], truths: Sequence[float]) -> list[float]:
    return [value / truth - 1 for value, truth in zip(values, truths, strict=True)]


def summary(errors: Sequence[float]) -> str:
    """Bias, root mean square and extremes of relative errors, in per cent."""
    rms = (sum(error**2 for error in errors) / len(errors)) ** 0.5
    return (
        f"bias {100 * statistics.fmean(errors):+6.2f} %   rms {100 * rms:6.2f} %"
        f"   least {100 * min(errors):+7.2f} %   most {100 * max(errors):+7.2f} %"
    )


def baseline_summary(handle: Instrumentation) -> str:
    parts = [
        f"{each.channel.id} {'?' if each.idle_watts is None else format(each.idle_watts, '.2f')} W"
        for each in handle.status().channels
    ]
    return ", ".join(parts)

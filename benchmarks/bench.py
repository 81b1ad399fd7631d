"""What the accuracy benchmarks share: a metered session on real parts, its readings, and the truth of each call."""

from __future__ import annotations

import itertools
import math
import statistics
import tempfile
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import otel_llm_energy
from benchmarks.replay import KeepingLedger
from otel_llm_energy import Instrumentation, RaplMeter, ScaphandreMeter, conventions
from otel_llm_energy.meters.base import Meter
from otel_llm_energy.quantities import Channel, Reading
from tests.support.backends import running_scaphandre
from tests.support.feeder import Truth, Watched, feeding
from tests.support.powercap import PowercapTree, PowerModel

BASELINE_SECONDS = {"rapl": 5.0, "scaphandre": 12.0}
# The kernel charges a process's last tick late.
LAST_TICK_NS = 20_000_000


class Recorder:
    """A meter that passes on another's readings and keeps them, so that other methods see just the same ones.

    Args:
        meter: the other one.
        before: called before each reading.
    """

    def __init__(self, meter: Meter, before: Callable[[], None] = lambda: None) -> None:
        self._meter = meter
        self._before = before
        self.name = meter.name
        self.pace = meter.pace
        self.readings: dict[str, list[tuple[int, int]]] = {}

    def open(self) -> Sequence[Channel]:
        return self._meter.open()

    def read(self) -> Sequence[Reading]:
        self._before()
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
        ledger: the ledger that billed the calls, with all that it was told.
        watched: the server, and where the feeder writes down what it really used.
    """

    handle: Instrumentation
    model: PowerModel
    recorder: Recorder
    provider: TracerProvider
    ledger: KeepingLedger
    watched: Watched
    spans: InMemorySpanExporter = field(default_factory=InMemorySpanExporter)

    def accounts(self) -> dict[str, int]:
        """Metered energy, and all that it was spent on, nJ."""
        balances = [each.balance for each in self.handle.status().channels]
        spent = [b.billed_nj + b.pending_nj + sum(b.unattributed_nj.values()) for b in balances]
        return {"metered": sum(b.metered_nj for b in balances), "settled": sum(spent)}

    def truth(self) -> Truth:
        """What the server really used until now."""
        return Truth(self.watched.truth)

    @contextmanager
    def prefilling(self) -> Iterator[None]:
        """The server reads a prompt: the synthetic power knows it, as the hardware's would."""
        assert self.watched.prefilling is not None
        self.watched.prefilling.write_text("1")
        try:
            yield
        finally:
            self.watched.prefilling.write_text("0")

    def calls(self) -> list[Call]:
        """The calls' spans, in the order of their start; waits until all are settled."""
        time.sleep(5.0 if self.recorder.name == "scaphandre" else 1.0)
        self.handle.force_flush()
        found = [s for s in self.spans.get_finished_spans() if "gen_ai.operation.name" in (s.attributes or {})]
        return [call_of(span) for span in sorted(found, key=lambda span: span.start_time or 0)]


@contextmanager
def session(
    meter: str,
    server_pid: int,
    model: PowerModel | None = None,
    step_seconds: float = 0.002,
    *,
    fresh: bool = False,
    **options: Any,
) -> Iterator[Session]:
    """Synthetic counters that follow the machine's CPU use, read as RAPL files or through the real Scaphandre.

    Args:
        meter: ``"rapl"`` or ``"scaphandre"``.
        server_pid: the model server's process, whose part of the energy the feeder writes down.
        model: of the counters' power.
        step_seconds: of the feeder.
        fresh: it also makes a step for each reading.
        options: for `instrument`.
    """
    model = model or PowerModel()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        watched = Watched(server_pid, folder / "truth", folder / "prefilling")
        (folder / "prefilling").write_text("0")
        tree = stack.enter_context(feeding(folder / "powercap", model, step_seconds, watched))
        recorder = Recorder(stack.enter_context(_meter(meter, tree, folder)), tree.catch_up if fresh else lambda: None)
        spans = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(spans))
        options = {"detail": "full", "max_hold": 60.0, "idle_cache": "off", **options}
        kept: list[KeepingLedger] = []
        with mock.patch("otel_llm_energy.stations.Ledger", lambda *args, **more: _kept(kept, *args, **more)):
            handle = otel_llm_energy.instrument(tracer_provider=provider, meters=recorder, **options)
        stack.callback(handle.uninstrument)
        time.sleep(BASELINE_SECONDS[meter])
        yield Session(handle, model, recorder, provider, kept[0], watched, spans)


@contextmanager
def _meter(name: str, tree: PowercapTree, folder: Path) -> Iterator[Meter]:
    if name == "rapl":
        yield RaplMeter(tree.root)
        return
    with running_scaphandre(tree.root, folder) as scaphandre:
        yield ScaphandreMeter(scaphandre.url)


def _kept(ledgers: list[KeepingLedger], *arguments: Any, **options: Any) -> KeepingLedger:
    ledgers.append(KeepingLedger(*arguments, **options))
    return ledgers[-1]


@dataclass(frozen=True, slots=True)
class Call:
    """A call as its span tells it, on the monotonic clock.

    Attributes:
        start_ns, end_ns: as the client saw it.
        work_ns: how long the server says that it was at work.
    """

    span: ReadableSpan
    start_ns: int
    end_ns: int
    work_ns: int

    @property
    def window(self) -> tuple[int, int]:
        """When the server was at work; of a stream that is read as fast as it is written, too."""
        return self.end_ns - self.work_ns, self.end_ns

    def number(self, key: str) -> float:
        """An attribute that the span of every metered call has."""
        value = (self.span.attributes or {}).get(key)
        if not isinstance(value, (int, float)):
            raise SystemExit(f"the span of a call has no {key}: {dict(self.span.attributes or {})}")
        return float(value)

    def text(self, key: str) -> str:
        return str((self.span.attributes or {}).get(key, ""))

    @property
    def joules(self) -> float:
        return self.number(conventions.JOULES)


def call_of(span: ReadableSpan) -> Call:
    """Source of the clocks' distance: both are read here, so a step of the wall clock since then shifts it."""
    attributes = span.attributes or {}
    to_monotonic_ns = time.monotonic_ns() - time.time_ns()
    seconds = [attributes.get(conventions.SERVER_PREFILL_SECONDS), attributes.get(conventions.SERVER_DECODE_SECONDS)]
    work_seconds = sum(value for value in seconds if isinstance(value, (int, float)))
    start_ns, end_ns = (span.start_time or 0) + to_monotonic_ns, (span.end_time or 0) + to_monotonic_ns
    return Call(span, start_ns, end_ns, int(work_seconds * 1e9))


def lone_truth(truth: Truth, call: Call) -> float:
    """The idle energy of the call's work and all that its server added while it was open, J."""
    start_ns, end_ns = call.window
    return truth.idle_joules(start_ns, end_ns) + truth.server_joules(call.start_ns, call.end_ns + LAST_TICK_NS)


def together_truth(truth: Truth, calls: Sequence[Call]) -> float:
    """The same for calls in a row, taken together: the last tick of one lies in the next. J."""
    idle_joules = sum(truth.idle_joules(*call.window) for call in calls)
    return idle_joules + truth.server_joules(calls[0].start_ns, calls[-1].end_ns + LAST_TICK_NS)


def shared_truths(truth: Truth, calls: Sequence[Call]) -> list[float]:
    """Of calls that overlap: the server's energy and the idle energy at each instant, in equal parts to those at work.

    Where nobody was at work what the server added goes to nobody. J.
    """
    edges_ns = sorted({edge for call in calls for edge in call.window})
    joules = [0.0] * len(calls)
    for start_ns, end_ns in itertools.pairwise(edges_ns):
        working = [i for i, call in enumerate(calls) if call.window[0] <= start_ns and end_ns <= call.window[1]]
        if working:
            together = truth.idle_joules(start_ns, end_ns) + truth.server_joules(start_ns, end_ns)
            for i in working:
                joules[i] += together / len(working)
    return joules


def relative_errors(values: Sequence[float], truths: Sequence[float]) -> list[float]:
    return [value / truth - 1 for value, truth in zip(values, truths, strict=True)]


def rms(errors: Sequence[float]) -> float:
    """Root mean square."""
    return math.sqrt(statistics.fmean(error**2 for error in errors))


def baseline_summary(handle: Instrumentation) -> str:
    parts = [
        f"{each.channel.id} {'?' if each.idle_watts is None else format(each.idle_watts, '.2f')} W"
        for each in handle.status().channels
    ]
    return ", ".join(parts)

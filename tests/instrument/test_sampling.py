"""Calls count whether their spans are sampled or not: the same machine twice, at 100 % and at 1 %, to the nanojoule."""

from __future__ import annotations

from dataclasses import dataclass

from openai import OpenAI
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Decision, Sampler, SamplingResult, TraceIdRatioBased

import otel_llm_energy
from otel_llm_energy import conventions as names
from otel_llm_energy.ledger.ledger import Ledger
from otel_llm_energy.meters.discovery import Discovery
from otel_llm_energy.quantities import ActivitySample, Channel, Reading
from otel_llm_energy.servers.server import Server
from otel_llm_energy.tracing.books import Books
from otel_llm_energy.tracing.claims import Claim
from otel_llm_energy.tracing.desk import SettlingDesk
from otel_llm_energy.tracing.directory import Directory
from otel_llm_energy.tracing.gate import Gate
from otel_llm_energy.tracing.joint import Joint
from otel_llm_energy.tracing.metrics import EnergyMetrics
from otel_llm_energy.tracing.station import MachineAccess, Station
from otel_llm_instrumentation import ServerTimings
from tests.instrument.asking import ask, measuring
from tests.support.powercap import PowercapTree
from tests.tracing.fakes import ManualClock

CALLS = 200
AT_ONCE = 4
WORK_MS, IDLE_WATTS, BUSY_WATTS = 100, 20, 80
MS = 1_000_000


class EveryHundredth(RandomIdGenerator):
    """Trace ids of which the SDK's own sampler takes one in a hundred."""

    def __init__(self) -> None:
        self._made = 0

    def generate_trace_id(self) -> int:
        self._made += 1
        return (1 << 64) | (self._made if self._made % 100 == 50 else 2**64 - self._made)


class NoActivity:
    """The test gives the samples itself."""

    def watch(self, server: Server) -> None: ...

    def forget(self, server_id: str) -> None: ...

    def sample(self) -> ActivitySample | None:
        return None

    def close(self) -> None: ...


class Machine:
    """Real tracing, metrics, gate, desk and ledger; clock, counter and activity are moved by hand, no thread runs."""

    def __init__(self, sampler: Sampler) -> None:
        self.clock = ManualClock()
        self.exporter = InMemorySpanExporter()
        self.reader = InMemoryMetricReader()
        provider = TracerProvider(sampler=sampler, id_generator=EveryHundredth(), shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = provider.get_tracer("client")
        self.books = Books(Ledger(self.clock.now_ns), clock_ns=self.clock)
        self.books.add_channels([Channel("package-0", "cpu", "rapl", idle_watts=IDLE_WATTS)])
        metrics = EnergyMetrics(MeterProvider([self.reader]))
        station = Station(self.books, MachineAccess(lambda: Discovery((), ()), NoActivity(), _nobody), lambda: None)
        self.desk = SettlingDesk(
            Directory(station), lambda: [metrics, self.gate], balance_listener=metrics, clock_ns=self.clock
        )
        self.joint = Joint(provider, lambda downstream: Gate(downstream, self.desk, clock_ns=self.clock))
        self.gate = self.joint.gate
        self._energy_uj = self._busy_ns = 0
        self._take(0.0)

    def run(self) -> list[float]:
        """Equal calls, some at once, in a queue of one; the joules of each, in the order of their end."""
        claims = []
        for _ in range(CALLS // AT_ONCE):
            opened = [self._open() for _ in range(AT_ONCE)]
            for span, claim in opened:
                self.clock.now_ns += WORK_MS * MS
                self._take(1.0)
                self.desk.close(claim, ServerTimings(decode_seconds=WORK_MS / 1000))
                span.end()
            claims += [claim for _, claim in opened]
            self.clock.now_ns += 50 * MS
            self._take(0.0)
        self.desk._settle()
        assert self.joint.leave()
        return [claim.bill.energy_nj / 1e9 for claim in claims if claim.bill is not None and claim.bill.energy_nj]

    def _open(self) -> tuple[trace.Span, Claim]:
        span = self.tracer.start_span("chat", context=Context())
        claim = Claim(span.get_span_context())
        self.gate.bind(span, claim, Context())
        self.desk.open(claim, "127.0.0.1", 8080, "openai", "chat")
        return span, claim

    def _take(self, busy_cpus: float) -> None:
        """A reading and a sample; since the last ones so many CPUs were busy, all with the server."""
        now_ns = self.clock.now_ns
        length_ns = now_ns - getattr(self, "_taken_ns", now_ns)
        self._taken_ns = now_ns
        self._energy_uj += round((IDLE_WATTS + (BUSY_WATTS - IDLE_WATTS) * busy_cpus) * length_ns) // 1000
        self._busy_ns += round(busy_cpus * length_ns)
        self.books.read([Reading("package-0", self._energy_uj, now_ns, now_ns)])
        parts = {"127.0.0.1:8080": self._busy_ns}
        self.books.sample(ActivitySample("cpu", now_ns, self._busy_ns, parts, 2, 0, 0), final=True)


def _nobody(host: str, port: int) -> Server:
    return Server(f"{host}:{port}", host, "local")


@dataclass(frozen=True)
class Outcome:
    """What one run left behind."""

    billed: list[float]
    spans: list[ReadableSpan]
    counted: int
    totals: dict[str, float]


def outcome(sampler: Sampler) -> Outcome:
    machine = Machine(sampler)
    billed = machine.run()
    data = machine.reader.get_metrics_data()
    assert data is not None
    metrics = [m for resource in data.resource_metrics for scope in resource.scope_metrics for m in scope.metrics]
    points = {metric.name: list(metric.data.data_points) for metric in metrics}
    return Outcome(
        billed,
        list(machine.exporter.get_finished_spans()),
        sum(point.count for point in points[names.OPERATION.name]),
        {
            metric.name: sum(point.value for point in points[metric.name])
            for metric in (names.CONSUMPTION, names.METERED, names.UNATTRIBUTED)
        },
    )


def test_bills_and_counters_are_the_same_when_one_in_a_hundred_is_sampled() -> None:
    """Every call is billed and counted; a sampled one says what it says at 100 %."""
    everything, few = outcome(ALWAYS_ON), outcome(TraceIdRatioBased(0.01))
    assert (len(everything.spans), len(few.spans)) == (CALLS, CALLS // 100)
    assert (everything.counted, few.counted) == (CALLS, CALLS)
    assert few.billed == everything.billed
    assert few.totals == everything.totals
    by_id = {span.context.trace_id: said(span) for span in everything.spans if span.context is not None}
    for span in few.spans:
        assert span.context is not None
        assert said(span) == by_id[span.context.trace_id]


def test_equal_calls_are_billed_equally_and_all_adds_up() -> None:
    """8 J each: 100 ms at 80 W, the waiting of the other three not counted."""
    found = outcome(TraceIdRatioBased(0.01))
    assert len(found.billed) == CALLS
    assert {round(joules, 6) for joules in found.billed} == {8.0}
    consumed, left = found.totals[names.CONSUMPTION.name], found.totals[names.UNATTRIBUTED.name]
    assert round(consumed, 6) == 8.0 * CALLS
    assert round(consumed + left - found.totals[names.METERED.name], 6) == 0


class LeavingOut(Sampler):
    """Samples all spans but those of LLM calls and of measured work."""

    def should_sample(self, parent_context: Context | None, trace_id: int, name: str, *_: object) -> SamplingResult:
        left_out = name.startswith(("chat", "measured"))
        return SamplingResult(Decision.DROP if left_out else Decision.RECORD_AND_SAMPLE)

    def get_description(self) -> str:
        return "LeavingOut"


def test_span_above_has_the_joules_of_calls_and_work_that_a_sampler_leaves_out(
    client: OpenAI, powercap: PowercapTree
) -> None:
    """The spans of these are known to nobody; what they are made in is."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=LeavingOut(), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with measuring(provider, powercap) as energy:
        tracer = provider.get_tracer("app")
        with tracer.start_as_current_span("asking"):
            ask(client)
        with tracer.start_as_current_span("working"), otel_llm_energy.measure("measured"):
            sum(range(10_000_000))
        energy.force_flush()
    spans = {span.name: span.attributes or {} for span in exporter.get_finished_spans()}
    assert sorted(spans) == ["asking", "working"]
    for attributes in spans.values():
        assert names.SUBTREE_JOULES in attributes, attributes


def said(span: ReadableSpan) -> dict[str, object]:
    """All that a span says of energy."""
    return {key: value for key, value in (span.attributes or {}).items() if key.startswith("llm.energy.")}

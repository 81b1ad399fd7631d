"""The metrics, through the real SDK: every call once, partitions that add up, exemplars that link."""

from __future__ import annotations

import dataclasses
import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.metrics import (
    AlignedHistogramBucketExemplarReservoir,
    ExemplarReservoir,
    MeterProvider,
    TraceBasedExemplarFilter,
)
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.metrics.view import View
from opentelemetry.trace import INVALID_SPAN_CONTEXT, SpanContext, TraceFlags

from otel_llm_energy import conventions
from otel_llm_energy.conventions import CHANNEL, COMPONENT, HOST, THREAD
from otel_llm_energy.ledger.bill import Quality, unavailable
from otel_llm_energy.quantities import Channel
from otel_llm_energy.tracing.claims import CallFacts, Claim, Whole
from otel_llm_energy.tracing.health import Health
from otel_llm_energy.tracing.metrics import EnergyMetrics, MeterPlace
from tests.tracing.fakes import bill_of

SAMPLED = SpanContext(11, 22, is_remote=False, trace_flags=TraceFlags(1))
PACKAGE = Channel("package-0", "cpu", "rapl")


class Measured:
    """Energy metrics on a real meter provider, and what it would export."""

    def __init__(self, *views: View) -> None:
        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider(
            [self.reader], exemplar_filter=TraceBasedExemplarFilter(), shutdown_on_exit=False, views=views
        )
        self.health = Health()
        self.lag_seconds = {MeterPlace("rapl", ""): 0.25, MeterPlace("scaphandre", "gpu-1:8080"): 2.5}
        self.metrics = EnergyMetrics(self.provider, health=lambda: [self.health], lag_seconds=lambda: self.lag_seconds)

    def points(self, name: str) -> list[tuple[dict[str, object], object]]:
        data = self.reader.get_metrics_data()
        found = [
            metric
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
        ]
        return [(dict(point.attributes), point) for metric in found for point in metric.data.data_points]


def settled_claim(joules: float, context: SpanContext = SAMPLED) -> Claim:
    claim = Claim(context)
    claim.facts = CallFacts(operation="chat")
    claim.output_tokens = 10
    claim.bill = dataclasses.replace(
        bill_of(joules),
        components_nj={"cpu": round(joules * 0.75e9), "memory": round(joules * 0.25e9)},
    )
    return claim


def test_call_is_counted_by_component_and_once_in_the_histograms() -> None:
    """The counter's parts add up to the call's joules; a histogram has one record for a call."""
    measured = Measured()
    measured.metrics.settled([settled_claim(8.0)])
    common = {
        "gen_ai.operation.name": "chat",
        conventions.QUALITY: "measured",
        conventions.METER: "rapl",
    }
    parts = {attributes[COMPONENT]: point.value for attributes, point in measured.points("llm.energy.consumption")}
    assert parts == {"cpu": 6.0, "memory": 2.0}
    ((attributes, point),) = measured.points("llm.energy.operation")
    assert attributes == common
    assert (point.count, point.sum) == (1, 8.0)
    assert tuple(point.explicit_bounds) == conventions.OPERATION.boundaries
    ((_, per_token),) = measured.points("llm.energy.per_output_token")
    assert per_token.sum == 0.8


def test_work_in_several_parts_is_in_the_histograms_once_when_all_of_them_are_settled() -> None:
    """What it was paused for is an operation of its own; the counter has each part at once."""
    measured = Measured()
    parts = [settled_claim(3.0), settled_claim(5.0)]
    whole = Whole()
    for part in parts:
        part.whole, part.output_tokens = whole, 0
    measured.metrics.settled(parts[:1])
    assert sum(point.value for _, point in measured.points("llm.energy.consumption")) == 3.0
    assert not whole.end(2, None, 16)
    assert measured.points("llm.energy.operation") == []
    measured.metrics.settled([settled_claim(1.0), parts[1]])
    assert sum(point.value for _, point in measured.points("llm.energy.consumption")) == 9.0
    ((_, operation),) = measured.points("llm.energy.operation")
    assert (operation.count, operation.sum) == (2, 9.0)
    ((_, per_token),) = measured.points("llm.energy.per_output_token")
    assert (per_token.count, per_token.sum) == (2, 0.1 + 0.5)


def test_no_part_of_an_operation_is_kept_when_it_is_counted() -> None:
    """But the last one, which says where and what it was."""
    measured, whole, parts = Measured(), Whole(), list[weakref.ref[Claim]]()
    for _ in range(100):
        claim = settled_claim(0.25)
        claim.whole = whole
        measured.metrics.settled([claim])
        parts.append(weakref.ref(claim))
        del claim
    gc.collect()
    assert [part() for part in parts[:-1]] == [None] * 99
    assert whole.end(100, 10, 50)
    measured.metrics.ended(whole)
    measured.metrics.catch_up()
    ((_, operation),) = measured.points("llm.energy.operation")
    assert (operation.count, operation.sum) == (1, 25.0)


def test_operation_that_a_collection_ends_inside_the_sdk_is_recorded_afterwards() -> None:
    """Of a measured generator that was thrown away; the SDK calls a view's factory while it holds the metric's lock."""
    measured = Measured(View(instrument_name="llm.energy.operation", exemplar_reservoir_factory=lambda _: reservoir()))
    part, other = settled_claim(3.0), settled_claim(5.0)
    whole = part.whole = Whole()
    part.facts, other.facts = CallFacts(), CallFacts(operation="embeddings")

    def reservoir() -> Callable[..., ExemplarReservoir]:
        if whole.bill and whole.end(1, None, 16):
            measured.metrics.ended(whole)
        return AlignedHistogramBucketExemplarReservoir

    measured.metrics.settled([settled_claim(1.0), part])
    recording = threading.Thread(target=measured.metrics.settled, args=([other],), daemon=True)
    recording.start()
    recording.join(10.0)
    assert not recording.is_alive()
    measured.metrics.catch_up()
    points = measured.points("llm.energy.operation")
    assert {attributes.get("gen_ai.operation.name"): point.sum for attributes, point in points} == {
        "chat": 1.0,
        None: 3.0,
        "embeddings": 5.0,
    }


def test_calls_that_are_alike_are_added_up_when_they_are_settled_together() -> None:
    """Each is in the histograms by itself; another server's call stays apart."""
    measured = Measured()
    other = settled_claim(4.0)
    other.facts = CallFacts(operation="chat", address="gpu-1")
    measured.metrics.settled([settled_claim(8.0), other, settled_claim(2.0)])
    consumed = {
        (attributes.get("server.address"), attributes[COMPONENT]): point.value
        for attributes, point in measured.points("llm.energy.consumption")
    }
    assert consumed == {(None, "cpu"): 7.5, (None, "memory"): 2.5, ("gpu-1", "cpu"): 3.0, ("gpu-1", "memory"): 1.0}
    counts = {attributes.get("server.address"): p.count for attributes, p in measured.points("llm.energy.operation")}
    assert counts == {None: 2, "gpu-1": 1}


def test_exemplar_links_to_the_span_of_the_call() -> None:
    """Recorded by another thread, long after the span, yet in its context."""
    measured = Measured()
    measured.metrics.settled([settled_claim(8.0)])
    ((_, point),) = measured.points("llm.energy.operation")
    (exemplar,) = point.exemplars
    assert (exemplar.trace_id, exemplar.span_id) == (11, 22)


def test_call_is_counted_when_it_has_no_span() -> None:
    """Unsampled calls count all the same."""
    measured = Measured()
    measured.metrics.settled([settled_claim(8.0, INVALID_SPAN_CONTEXT)])
    ((_, point),) = measured.points("llm.energy.operation")
    assert point.count == 1


def test_nothing_is_counted_when_the_energy_is_unavailable() -> None:
    """Unknown is not zero."""
    measured = Measured()
    claim = settled_claim(1.0)
    claim.bill = unavailable("no-meter")
    measured.metrics.settled([claim])
    assert measured.points("llm.energy.operation") == []


def test_nothing_is_counted_when_the_claim_was_of_no_call() -> None:
    """A span above the call's own was taken for it at first: its energy would be counted beside the call's."""
    measured = Measured()
    claim = settled_claim(1.0)
    claim.withdrawn = True
    measured.metrics.settled([claim])
    assert measured.points("llm.energy.operation") == []
    assert measured.points("llm.energy.consumption") == []


def test_estimates_are_kept_apart_from_measurements() -> None:
    """A sum over both would be neither."""
    measured = Measured()
    estimated = settled_claim(1.0)
    estimated.bill = bill_of(1.0, Quality.ESTIMATED)
    measured.metrics.settled([settled_claim(8.0), estimated])
    qualities = {attributes[conventions.QUALITY] for attributes, _ in measured.points("llm.energy.consumption")}
    assert qualities == {"measured", "estimated"}


def test_metered_and_unattributed_are_counted_by_channel_and_reason() -> None:
    """Metered = attributed + unattributed by reason, visible to all."""
    measured = Measured()
    measured.metrics.metered(PACKAGE, 10.0)
    measured.metrics.unattributed(PACKAGE, "idle", 1.5)
    measured.metrics.unattributed(PACKAGE, "other", 0.5)
    channel = {CHANNEL: "package-0", COMPONENT: "cpu", conventions.METER: "rapl"}
    assert [(a, p.value) for a, p in measured.points("llm.energy.metered")] == [(channel, 10.0)]
    reasons = {a[conventions.REASON]: p.value for a, p in measured.points("llm.energy.unattributed")}
    assert reasons == {"idle": 1.5, "other": 0.5}


def test_hosts_are_counted_apart_when_their_counters_have_the_same_names() -> None:
    """Two exporters, each with a package-0; this machine's has no host."""
    measured = Measured()
    hosts = {"": 1.0, "gpu-1:8080": 2.0, "gpu-2:8080": 4.0}
    for host, joules in hosts.items():
        measured.metrics.metered(Channel("package-0", "cpu", "scaphandre", host=host), joules)
        measured.metrics.unattributed(Channel("package-0", "cpu", "scaphandre", host=host), "idle", joules)
    for metric in ("llm.energy.metered", "llm.energy.unattributed"):
        assert {a.get(HOST, ""): p.value for a, p in measured.points(metric)} == hosts


def test_health_and_lag_are_read_at_collection() -> None:
    """The gate only counts; the reader asks."""
    measured = Measured()
    measured.metrics.metered(PACKAGE, 1.0)
    measured.health.held, measured.health.forwarded, measured.health.passed, measured.health.dropped = 3, 40, 5, 1
    measured.health.degraded["max-hold"] = 2
    values = {
        name: [(attributes, point.value) for attributes, point in measured.points(f"llm.energy.{name}")]
        for name in ("processor.held", "processor.forwarded", "processor.dropped", "processor.degraded", "meter.lag")
    }
    assert values == {
        "processor.held": [({}, 3)],
        "processor.forwarded": [({THREAD: "forwarder"}, 40), ({THREAD: "application"}, 5)],
        "processor.dropped": [({}, 1)],
        "processor.degraded": [({conventions.REASON: "max-hold"}, 2)],
        "meter.lag": [
            ({conventions.METER: "rapl"}, 0.25),
            ({conventions.METER: "scaphandre", HOST: "gpu-1:8080"}, 2.5),
        ],
    }


def test_health_and_lag_are_of_who_measures_now_when_it_was_done_again() -> None:
    """The SDK keeps the first callbacks: a meter that was given up grew ever older, and the next one was not seen."""
    measured = Measured()
    measured.metrics.metered(PACKAGE, 1.0)
    measured.health.held, measured.health.forwarded, measured.health.passed, measured.health.dropped = 3, 40, 5, 1
    measured.health.degraded["max-hold"] = 2
    measured.metrics.leave()
    assert measured.points("llm.energy.meter.lag") == []
    health = Health()
    again = EnergyMetrics(
        measured.provider, health=lambda: [health], lag_seconds=lambda: {MeterPlace("rapl", ""): 0.125}
    )
    again.metered(PACKAGE, 1.0)
    health.held, health.forwarded = 2, 3
    measured.metrics.leave()
    ((_, lag),) = measured.points("llm.energy.meter.lag")
    ((_, held),) = measured.points("llm.energy.processor.held")
    (_, forwarded), (_, passed) = measured.points("llm.energy.processor.forwarded")
    ((_, dropped),) = measured.points("llm.energy.processor.dropped")
    ((_, degraded),) = measured.points("llm.energy.processor.degraded")
    assert (lag.value, held.value) == (0.125, 2)
    assert (forwarded.value, passed.value, dropped.value, degraded.value) == (43, 5, 1, 2)


def test_nothing_is_made_when_the_meter_provider_records_nothing() -> None:
    """No SDK, no work."""
    metrics = EnergyMetrics(NoOpMeterProvider())
    metrics.settled([settled_claim(1.0)])
    assert metrics._made is None


def test_global_meter_provider_is_found_when_it_is_set_later() -> None:
    """The app may set up its metrics after us; in a process of its own, since the global is set once."""
    program = """
from opentelemetry import metrics
from tests.tracing.test_tracing_metrics import InMemoryMetricReader, MeterProvider, settled_claim
from otel_llm_energy.tracing.metrics import EnergyMetrics
energy = EnergyMetrics()
energy.settled([settled_claim(1.0)])
assert energy._made is None
reader = InMemoryMetricReader()
metrics.set_meter_provider(MeterProvider([reader], shutdown_on_exit=False))
energy.settled([settled_claim(1.0)])
assert "llm.energy.consumption" in reader.get_metrics_data().to_json()
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60, cwd=Path.cwd())

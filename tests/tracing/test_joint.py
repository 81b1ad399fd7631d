"""Joining the provider that is there, whoever set it up and in whatever order."""

from __future__ import annotations

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ConcurrentMultiSpanProcessor, ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from otel_llm_energy import conventions
from otel_llm_energy.tracing.claims import Claim
from otel_llm_energy.tracing.forward import Downstream
from otel_llm_energy.tracing.gate import Gate
from otel_llm_energy.tracing.joining import Joining
from otel_llm_energy.tracing.joint import CannotJoinError, Joint
from otel_llm_energy.tracing.processor import EnergySpanProcessor, NoDesk
from tests.tracing.children import run_child
from tests.tracing.fakes import Collecting, FakeDesk, Pipeline


class ForeignTracer(trace.Tracer):
    """A tracer that is not the SDK's."""

    def start_span(self, *args: object, **kwargs: object) -> trace.Span:
        return trace.INVALID_SPAN

    def start_as_current_span(self, *args: object, **kwargs: object) -> object:
        return trace.use_span(trace.INVALID_SPAN)


class Handing(trace.TracerProvider):
    """A provider that hands out one tracer."""

    def __init__(self, tracer: trace.Tracer) -> None:
        self._tracer = tracer

    def get_tracer(self, *args: object, **kwargs: object) -> trace.Tracer:
        return self._tracer


def one_call(line: Pipeline, name: str = "chat") -> None:
    """One call, from its span's start to its bill."""
    span = line.tracer.start_span(name)
    claim = line.call(span)
    span.end()
    line.desk.settle(claim, 2.0)
    line.sent()


@pytest.mark.parametrize("concurrent", [False, True])
def test_all_processors_get_enriched_copies_when_added_before_or_after(concurrent: bool) -> None:
    """Also tracers handed out earlier, batch and simple processors, and the concurrent multi processor."""
    multi = ConcurrentMultiSpanProcessor() if concurrent else None
    provider = TracerProvider(shutdown_on_exit=False, active_span_processor=multi)
    before, after = InMemorySpanExporter(), InMemorySpanExporter()
    provider.add_span_processor(BatchSpanProcessor(before))
    tracer = provider.get_tracer("early")
    line = Pipeline(provider=provider)
    provider.add_span_processor(SimpleSpanProcessor(after))
    line.tracer = tracer
    one_call(line)
    assert provider.force_flush()
    for exporter in (before, after):
        (span,) = exporter.get_finished_spans()
        assert (span.attributes or {})[conventions.JOULES] == 2.0
    provider.shutdown()


def test_provider_is_as_before_when_the_joint_leaves() -> None:
    """What is held goes out, and none of our hooks remains."""
    line = Pipeline(forced_joules=0.5)
    pipeline = line.provider._active_span_processor
    span = line.tracer.start_span("chat")
    line.call(span)
    span.end()
    assert line.joint.leave()
    assert line.out.attributes("chat")[conventions.REASON] == "uninstrument"
    assert not {"on_start", "on_end", "force_flush", "shutdown"} & vars(pipeline).keys()
    line.tracer.start_span("after").end()
    assert line.out.names == ["chat", "after"]


def test_hook_of_another_library_stays_when_it_was_put_on_top() -> None:
    """Only what is still ours is unbound; below the other's hook everything passes."""
    line = Pipeline()
    pipeline = line.provider._active_span_processor
    ours, seen = pipeline.on_end, []

    def theirs(span: ReadableSpan) -> None:
        seen.append(span.name)
        ours(span)

    pipeline.on_end = theirs  # type: ignore[method-assign]
    line.joint.leave()
    line.tracer.start_span("after").end()
    assert (seen, line.out.names) == (["after"], ["after"])
    assert pipeline.on_end is theirs


def test_hook_of_another_library_is_restored_when_it_was_there_first() -> None:
    """Leaving puts back what we found."""
    provider = TracerProvider(shutdown_on_exit=False)
    pipeline, seen = provider._active_span_processor, []
    pipeline.on_end = lambda span: seen.append(span.name)  # type: ignore[method-assign]
    theirs = pipeline.on_end
    line = Pipeline(provider=provider)
    line.tracer.start_span("joined").end()
    line.joint.leave()
    assert pipeline.on_end is theirs
    assert seen == ["joined"]


def test_second_joint_is_refused_when_one_stands_there() -> None:
    """Twice joined, spans would be held twice."""
    line = Pipeline()
    with pytest.raises(CannotJoinError) as error:
        Joint(line.provider, line._make_gate)
    assert error.value.reason == "joined-already"
    line.joint.leave()
    Joint(line.provider, line._make_gate).leave()


def test_joins_is_false_when_tracing_was_set_up_anew() -> None:
    """A second set-up makes another provider; the one that watches must find out."""
    line = Pipeline()
    assert line.joint.joins(line.provider)
    assert not line.joint.joins(TracerProvider(shutdown_on_exit=False))
    assert not line.joint.joins(trace.ProxyTracerProvider())


def test_reason_is_clear_when_the_provider_cannot_be_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    """No provider yet, tracing disabled, or not the SDK's: each has its own word."""

    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    disabled = TracerProvider(shutdown_on_exit=False)
    for provider, reason in (
        (trace.ProxyTracerProvider(), "no-provider"),
        (disabled, "disabled"),
        (trace.NoOpTracerProvider(), "disabled"),
        (Handing(ForeignTracer()), "not-sdk"),
    ):
        with pytest.raises(CannotJoinError) as error:
            Joint(provider, lambda downstream: Gate(downstream, FakeDesk()))
        assert error.value.reason == reason


def test_what_a_processor_wired_by_hand_holds_is_handed_on_when_measuring_ends() -> None:
    """Its desk settles nothing from then on, so that the span would be held until its bound."""
    provider, out, desk = TracerProvider(shutdown_on_exit=False), Collecting(), FakeDesk()
    processor = EnergySpanProcessor(out)
    provider.add_span_processor(processor)

    def equip(gate: Gate) -> None:
        gate.desk = desk
        desk.listeners.append(gate)

    joining = Joining(provider, lambda downstream: Gate(downstream, desk), equip, lambda: None)
    joining.start()
    assert joining.state == "wired by hand"
    span = provider.get_tracer("app").start_span("chat")
    processor.gate.bind(span, Claim(span.get_span_context()))
    span.end()
    assert out.names == []
    joining.leave(desk)
    assert out.names == ["chat"]
    assert (out.attributes("chat")[conventions.REASON], desk.forced[0][1]) == ("flush", "flush")
    assert isinstance(processor.gate.desk, NoDesk)
    assert joining.gates == ()


def test_wrapped_tracer_is_seen_through_when_it_shows_the_sdk_tracer() -> None:
    """logfire's provider hands out tracers that hold the SDK's as `tracer`."""

    inner = TracerProvider(shutdown_on_exit=False)
    wrapping = ForeignTracer()
    wrapping.tracer = inner.get_tracer("inner")  # type: ignore[attr-defined]
    joint = Joint(Handing(wrapping), lambda downstream: Gate(downstream, FakeDesk()))
    assert joint.joins(inner)
    joint.leave()


def test_logfire_is_joined_before_and_after_its_second_configuration() -> None:
    """The real logfire, in a process of its own since it sets global providers, noticed when configured again."""
    output = run_child("logfire_twice")
    assert output == [
        "first: chat 2.0, agent 2.0",
        "lost by the second configure()",
        "second: chat 2.0, agent 2.0",
    ]


def test_fastapi_app_is_joined_when_it_sets_up_tracing_at_its_start() -> None:
    """Joining before the set-up says so; after it, tracers made at import and processors added later are covered."""
    output = run_child("fastapi_sets_up_tracing_at_start")
    assert output == ["no-provider", "answer", "chat 2.0", "agent 2.0"]


def test_downstream_calls_the_methods_that_were_there_when_it_was_made() -> None:
    """Otherwise our own hooks would call themselves."""
    out = Collecting()
    downstream = Downstream(out)
    out.on_end = lambda span: None  # type: ignore[method-assign]
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(out)
    span = provider.get_tracer("app").start_span("chat")
    downstream.on_end(span)  # type: ignore[arg-type]
    assert out.names == ["chat"]

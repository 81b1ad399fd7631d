"""The gate, before a real SDK provider: what is held, what passes, and that all leaves."""

from __future__ import annotations

import gc
import logging
import socket
import threading
import weakref
from collections.abc import Iterable
from queue import SimpleQueue
from typing import Any

import pytest
from opentelemetry import context, trace
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from otel_llm_energy import conventions
from otel_llm_energy.ledger.bill import Quality
from otel_llm_energy.tracing import enrich
from otel_llm_energy.tracing.claims import Claim, Whole
from otel_llm_energy.tracing.gate import Gate
from otel_llm_energy.tracing.processor import EnergySpanProcessor
from tests.support.waiting import until
from tests.tracing.fakes import Collecting, FakeDesk, Pipeline

DROPPED = NonRecordingSpan(SpanContext(1, 2, is_remote=False, trace_flags=TraceFlags(0)))
"""The span of a call that a sampler left out."""


def test_span_passes_in_the_same_call_when_it_is_no_call_and_has_none_below() -> None:
    """An ordinary span reaches the next processor before end() returns, and is the very same object's copy."""
    line = Pipeline()
    with line.tracer.start_as_current_span("http"):
        pass
    assert line.out.names == ["http"]


def test_span_is_held_until_the_bill_when_a_call_is_bound_to_it() -> None:
    """The span of a call leaves with its energy, not before."""
    line = Pipeline()
    span = line.tracer.start_span("chat", attributes={"user": "kept"})
    claim = line.call(span)
    span.end()
    assert line.sent() == []
    assert line.gate.health.held == 1
    line.desk.settle(claim, 12.5)
    assert line.sent() == ["chat"]
    attributes = line.out.attributes("chat")
    assert attributes["user"] == "kept"
    assert attributes[conventions.JOULES] == 12.5
    assert attributes[conventions.QUALITY] == "measured"
    assert conventions.SUBTREE_JOULES not in attributes
    assert line.gate.health.held == 0


def test_one_thread_sends_when_a_second_span_ends_while_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two threads that hold a first span at once, or of one in which a garbage collection ends another span."""
    line = Pipeline()
    first, second = line.tracer.start_span("first"), line.tracer.start_span("second")
    claims = [line.call(first), line.call(second)]
    made: list[threading.Thread] = []

    class EndingTheSecond(threading.Thread):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            made.append(self)
            if len(made) == 1:
                second.end()

    monkeypatch.setattr(threading, "Thread", EndingTheSecond)
    first.end()
    for claim in claims:
        line.desk.settle(claim, 1.0)
    assert sorted(line.sent()) == ["first", "second"]
    assert len(made) == 1
    assert line.gate.deactivate()


def test_span_is_not_held_when_its_bill_came_before_its_end() -> None:
    """A span of another instrumentation that ends long after its call leaves at once."""
    line = Pipeline()
    span = line.tracer.start_span("chat")
    line.desk.settle(line.call(span), 1.0)
    span.end()
    assert line.sent() == ["chat"]
    assert line.out.attributes("chat")[conventions.JOULES] == 1.0


def test_ancestors_wait_and_carry_totals_when_calls_below_have_ended() -> None:
    """Each ancestor carries the sum below it, and leaves after its children."""
    line = Pipeline()
    with line.tracer.start_as_current_span("root"), line.tracer.start_as_current_span("agent"):
        first = line.tracer.start_span("first")
        second = line.tracer.start_span("second")
        claims = [line.call(first), line.call(second)]
        second.end()
        first.end()
    assert line.sent() == []
    line.desk.settle(claims[1], 2.0)
    assert line.sent() == ["second"]
    line.desk.settle(claims[0], 1.0)
    assert line.sent() == ["second", "first", "agent", "root"]
    for name in ("agent", "root"):
        assert line.out.attributes(name) == {conventions.SUBTREE_JOULES: 3.0}


@pytest.mark.parametrize("estimated", ["first", "second"])
def test_total_is_an_estimate_when_one_bill_below_is(estimated: str) -> None:
    """Whichever comes first: measured joules beside it do not make the sum a measurement."""
    line = Pipeline()
    with line.tracer.start_as_current_span("agent"):
        for name in ("first", "second"):
            with line.tracer.start_as_current_span(name) as span:
                claim = line.call(span)
            line.desk.settle(claim, 1.0, Quality.ESTIMATED if name == estimated else Quality.MEASURED)
    assert sorted(line.sent()) == ["agent", "first", "second"]
    assert line.out.attributes("agent") == {conventions.SUBTREE_JOULES: 2.0, conventions.QUALITY: "estimated"}


def test_call_that_contains_a_call_shows_its_own_share_and_the_total() -> None:
    """`joules` is exclusive, `subtree_joules` is not."""
    line = Pipeline()
    with line.tracer.start_as_current_span("outer") as outer:
        outer_claim = line.call(outer)
        with line.tracer.start_as_current_span("inner") as inner:
            inner_claim = line.call(inner)
    line.desk.settle(outer_claim, 1.0)
    assert line.sent() == []
    line.desk.settle(inner_claim, 4.0)
    assert line.sent() == ["inner", "outer"]
    attributes = line.out.attributes("outer")
    assert (attributes[conventions.JOULES], attributes[conventions.SUBTREE_JOULES]) == (1.0, 5.0)


def test_ancestor_does_not_wait_and_says_so_when_a_call_below_is_still_open() -> None:
    """A root that ends before its background call leaves at once, with what is known."""
    line = Pipeline()
    root = line.tracer.start_span("root")
    inside = trace.set_span_in_context(root)
    done = line.tracer.start_span("done", inside)
    background = line.tracer.start_span("background", inside)
    claims = [line.call(done), line.call(background)]
    done.end()
    line.desk.settle(claims[0], 3.0)
    root.end()
    assert line.sent() == ["done", "root"]
    assert line.out.attributes("root") == {
        conventions.SUBTREE_JOULES: 3.0,
        conventions.SUBTREE_INCOMPLETE: True,
    }
    background.end()
    line.desk.settle(claims[1], 5.0)
    assert line.sent() == ["done", "root", "background"]


def test_grandparent_gets_the_call_when_the_parent_ended_before_it_started() -> None:
    """A fire-and-forget call under a finished span still counts for the ancestors that are open."""
    line = Pipeline()
    root = line.tracer.start_span("root")
    parent = line.tracer.start_span("parent", trace.set_span_in_context(root))
    late_context = trace.set_span_in_context(parent)
    parent.end()
    late = line.tracer.start_span("late", late_context)
    claim = line.call(late)
    late.end()
    root.end()
    line.desk.settle(claim, 2.0)
    assert line.sent() == ["parent", "late", "root"]
    assert line.out.attributes("root") == {conventions.SUBTREE_JOULES: 2.0}


@pytest.mark.parametrize("where", ["open child", "the ended span"])
def test_held_ancestor_says_incomplete_when_a_call_starts_after_its_end(where: str) -> None:
    """It waits for what had ended, not for what comes later, and does not call that complete."""
    line = Pipeline()
    root = line.tracer.start_span("root")
    inside = trace.set_span_in_context(root)
    held = line.tracer.start_span("held", inside)
    child = line.tracer.start_span("child", inside)
    claim = line.call(held)
    held.end()
    root.end()
    line.call(child if where == "open child" else root)
    line.desk.settle(claim, 2.0)
    assert line.sent() == ["held", "root"]
    assert line.out.attributes("root") == {
        conventions.SUBTREE_JOULES: 2.0,
        conventions.SUBTREE_INCOMPLETE: True,
    }


def test_ancestors_count_the_call_when_its_own_span_was_not_sampled() -> None:
    """A dropped span displays nothing, but its recorded parent's total must hold."""
    line = Pipeline()
    with line.tracer.start_as_current_span("root") as root:
        claim = Claim()
        shown = line.gate.bind(DROPPED, claim, trace.set_span_in_context(root))
        claim.closed = True
    assert not shown
    line.desk.settle(claim, 2.0)
    assert line.sent() == ["root"]
    assert line.out.attributes("root") == {conventions.SUBTREE_JOULES: 2.0}


def test_ancestor_does_not_wait_for_an_open_call_when_the_calls_own_span_was_not_sampled() -> None:
    """It goes at once, as it would if there were a span of the call's; the ones above wait once the call has ended."""
    line = Pipeline()
    claim = Claim()
    with line.tracer.start_as_current_span("root"):
        with line.tracer.start_as_current_span("handler"):
            line.gate.bind(DROPPED, claim)
        assert line.sent() == ["handler"]
        claim.closed = True
    assert line.sent() == ["handler"]
    line.desk.settle(claim, 2.0)
    assert line.sent() == ["handler", "root"]
    assert line.out.attributes("handler") == {conventions.SUBTREE_INCOMPLETE: True}
    assert line.out.attributes("root") == {conventions.SUBTREE_JOULES: 2.0}


def test_nobody_waits_for_an_open_call_that_is_not_sampled_when_all_above_it_have_ended() -> None:
    """What it is billed later changes nothing here."""
    line = Pipeline()
    claim = Claim()
    with line.tracer.start_as_current_span("root"):
        line.gate.bind(DROPPED, claim)
    assert line.sent() == ["root"]
    line.desk.settle(claim, 2.0)
    assert line.sent() == ["root"]
    assert line.out.attributes("root") == {conventions.SUBTREE_INCOMPLETE: True}


def test_chain_ends_when_the_parent_is_remote() -> None:
    """A caller in another process is no ancestor here."""
    line = Pipeline()
    remote = NonRecordingSpan(SpanContext(7, 8, is_remote=True, trace_flags=TraceFlags(1)))
    span = line.tracer.start_span("chat", trace.set_span_in_context(remote))
    line.desk.settle(line.call(span), 1.0)
    span.end()
    assert line.sent() == ["chat"]


def test_span_shows_one_bill_when_two_calls_were_made_in_it() -> None:
    """A fallback within one span of another library adds up."""
    line = Pipeline()
    span = line.tracer.start_span("chat")
    claims = [line.call(span), line.call(span)]
    span.end()
    line.desk.settle(claims[0], 1.0)
    assert line.sent() == []
    line.desk.settle(claims[1], 2.0)
    assert line.sent() == ["chat"]
    assert line.out.attributes("chat")[conventions.JOULES] == 3.0


def test_no_part_of_an_operation_is_kept_when_it_has_its_bill() -> None:
    """One that is paused ten thousand times would fill the memory; its span shows the sum."""
    pipeline = Pipeline()
    span = pipeline.tracer.start_span("measured")
    whole, parts = Whole(), list[weakref.ref[Claim]]()
    for _ in range(100):
        claim = pipeline.call(span)
        claim.whole = whole
        pipeline.desk.settle(claim, 0.25)
        parts.append(weakref.ref(claim))
        del claim
    gc.collect()
    assert [part() for part in parts] == [None] * 100
    last = pipeline.call(span)
    last.whole = whole
    whole.end(101, 10, 50)
    span.end()
    pipeline.desk.settle(last, 25.0, Quality.SHARED)
    assert pipeline.sent() == ["measured"]
    shown = pipeline.out.attributes("measured")
    assert (shown[conventions.JOULES], shown[conventions.QUALITY]) == (50.0, "shared")
    assert (shown[conventions.CLASS], shown[conventions.JOULES_PER_OUTPUT_TOKEN]) == ("10-100 J", 1.0)


@pytest.mark.parametrize(
    "attributes",
    [{"gen_ai.operation.name": "chat"}, {"openinference.span.kind": "LLM"}, {"llm.request.type": "completion"}],
)
def test_span_says_server_unknown_when_another_library_made_it_for_an_unseen_call(attributes: dict[str, str]) -> None:
    """Nothing was metered for it: it says so, at once, with no joules."""
    line = Pipeline()
    line.tracer.start_span("theirs", attributes=attributes).end()
    assert line.out.attributes("theirs") == {
        **attributes,
        conventions.QUALITY: "unavailable",
        conventions.REASON: "server_unknown",
    }
    assert line.gate.health.degraded == {"server_unknown": 1}


def test_span_of_another_library_is_a_container_when_a_call_was_billed_below_it() -> None:
    """A LangChain-like LLM span over our own call's span carries the total and no quality of its own."""
    line = Pipeline()
    outer = line.tracer.start_span("theirs", attributes={"openinference.span.kind": "LLM"})
    inside = trace.set_span_in_context(outer)
    ours = line.tracer.start_span("ours", inside, attributes={"gen_ai.operation.name": "chat"})
    claim = line.call(ours)
    ours.end()
    outer.end()
    line.desk.settle(claim, 2.0)
    assert line.sent() == ["ours", "theirs"]
    assert line.out.attributes("theirs") == {"openinference.span.kind": "LLM", conventions.SUBTREE_JOULES: 2.0}


def test_held_span_leaves_degraded_when_max_hold_has_passed_since_its_end() -> None:
    """Holding is bounded in time; the desk is asked for what it knows."""
    line = Pipeline(max_hold_seconds=5.0, forced_joules=0.5)
    with line.tracer.start_as_current_span("root"), line.tracer.start_as_current_span("chat") as span:
        line.call(span)
        line.clock.advance(60.0)
    assert line.gate.tick() == 1.0
    line.clock.advance(4.9)
    assert line.gate.tick() == pytest.approx(0.1)  # until it is due: nobody else would look
    assert line.sent() == []
    line.clock.advance(0.1)
    line.gate.tick()
    assert line.sent() == ["chat", "root"]
    attributes = line.out.attributes("chat")
    assert (attributes[conventions.QUALITY], attributes[conventions.REASON]) == ("degraded", "max-hold")
    assert line.gate.health.degraded == {"max-hold": 1}


def test_each_held_span_leaves_at_its_own_bound_when_an_earlier_one_has_left() -> None:
    """The next bound is known after the first was kept: else a span would wait for as long as no other is held."""
    line = Pipeline(max_hold_seconds=5.0, forced_joules=0.5)
    for name in ("first", "second"):
        span = line.tracer.start_span(name)
        line.call(span)
        span.end()
        line.clock.advance(2.0)
    line.clock.advance(1.0)
    assert line.sent() == ["first"]
    line.clock.advance(2.0)
    assert line.sent() == ["first", "second"]
    assert line.gate.tick() == 1.0  # there is no bound any more that is due


@pytest.mark.parametrize("overlapping", [False, True])
def test_no_span_is_lost_when_two_that_are_held_have_one_id(overlapping: bool) -> None:
    """It is to be unique in its trace alone, and a test's id generator may begin anew."""

    class Same(RandomIdGenerator):
        def generate_span_id(self) -> int:
            return 1

    line = Pipeline(provider=TracerProvider(id_generator=Same(), shutdown_on_exit=False))
    spans = []
    for name in ("first", "second"):
        span = line.tracer.start_span(name)
        line.call(span)
        spans.append(span)
        if not overlapping:
            span.end()
    if overlapping:
        for span in spans:
            span.end()
    line.clock.advance(30)
    assert line.sent() == ["first", "second"]
    assert line.gate.health.held == 0


def test_another_bound_holds_for_spans_that_end_from_then_on() -> None:
    """A meter that is found late may need more time between two readings."""
    line = Pipeline(max_hold_seconds=5.0, forced_joules=0.5)
    for name, seconds in (("before", None), ("after", 20.0)):
        if seconds is not None:
            line.gate.max_hold_seconds = seconds
        span = line.tracer.start_span(name)
        line.call(span)
        span.end()
        assert line.sent() == []
    assert line.gate.max_hold_seconds == 20.0
    line.clock.advance(5.0)
    assert line.sent() == ["before"]
    line.clock.advance(15.0)
    assert line.sent() == ["before", "after"]


def test_what_is_counted_is_of_now_and_stays_with_the_gate_as_far_as_it_is_held() -> None:
    """Also just as a span has ended. Whoever takes the counts does not see the same span leave twice."""
    line = Pipeline(max_hold_seconds=5.0)
    claims = []
    for name in ("first", "second"):
        with line.tracer.start_as_current_span(name) as span:
            claims.append(line.call(span))
    assert line.gate.health.held == 2
    line.desk.settle(claims[0], 1.0)
    line.sent()
    taken = line.gate.take_health()
    assert (taken.held, taken.forwarded) == (0, 1)
    assert (line.gate.health.held, line.gate.health.forwarded) == (1, 0)
    line.desk.settle(claims[1], 1.0)
    line.sent()
    assert (line.gate.health.held, line.gate.health.forwarded) == (0, 1)


def test_held_span_leaves_unavailable_when_the_desk_fails() -> None:
    """A desk that raises costs the energy, never the span."""
    line = Pipeline(max_hold_seconds=5.0)

    def fail(*_: object) -> None:
        raise OSError("no desk")

    line.desk.force = fail  # type: ignore[method-assign]
    span = line.tracer.start_span("chat")
    line.call(span)
    span.end()
    line.clock.advance(6.0)
    line.gate.tick()
    assert line.sent() == ["chat"]
    assert line.out.attributes("chat") == {conventions.QUALITY: "unavailable", conventions.REASON: "max-hold"}
    assert line.gate.health.degraded == {"max-hold": 1}


def test_oldest_span_leaves_when_more_than_max_held_are_held() -> None:
    """Holding is bounded in number."""
    line = Pipeline(max_held=3, forced_joules=0.5)
    for number in range(5):
        span = line.tracer.start_span(f"chat {number}")
        line.call(span)
        span.end()
    assert line.sent() == ["chat 0", "chat 1"]
    assert line.gate.health.held == 3
    assert {reason for _, reason in line.desk.forced} == {"hold-limit"}


def test_ending_a_span_does_not_wait_when_the_desk_is_at_work() -> None:
    """What must leave early is settled by a thread of ours, however long that takes."""
    line = Pipeline(max_held=8, forced_joules=0.5)
    force, go, forcing = line.desk.force, threading.Event(), set[str]()

    def force_once_told(claims: Iterable[Claim], reason: str) -> None:
        forcing.add(threading.current_thread().name)
        go.wait(30)
        force(claims, reason)

    line.desk.force = force_once_told  # type: ignore[method-assign]
    for number in range(10):
        span = line.tracer.start_span(f"chat {number}")
        line.call(span)
        span.end()
        line.gate._mailbox.work()
    go.set()
    until(lambda: len(line.out.names) == 2)
    assert line.out.names == ["chat 0", "chat 1"]
    assert forcing == {"otel-llm-energy-forward"}


def test_spans_over_the_limit_leave_together_when_the_desk_takes_its_time() -> None:
    """It may have to ask another process, which does not answer: one after the other they would never catch up."""
    line = Pipeline(max_held=16, forced_joules=0.5)
    force, go, asked = line.desk.force, threading.Event(), threading.Event()
    sizes: list[int] = []  # of what the desk is asked for at once

    def force_once_told(claims: Iterable[Claim], reason: str) -> None:
        sizes.append(len(list(claims)))
        asked.set()
        go.wait(30)
        force(claims, reason)

    line.desk.force = force_once_told  # type: ignore[method-assign]
    for number in range(24):
        span = line.tracer.start_span(f"chat {number}")
        line.call(span)
        span.end()
        line.gate._mailbox.work()
        assert number != 16 or asked.wait(20)
    go.set()
    until(lambda: len(line.out.names) == 8)
    assert sizes == [1, 7]
    line.gate.deactivate()


def test_nothing_is_held_when_max_hold_is_zero() -> None:
    """Users' tests see every span as soon as it ended, with what is known."""
    line = Pipeline(max_hold_seconds=0.0, forced_joules=0.5)
    with line.tracer.start_as_current_span("root"), line.tracer.start_as_current_span("chat") as span:
        line.call(span)
    assert line.out.names == ["chat", "root"]
    assert line.out.attributes("chat")[conventions.REASON] == "not-held"
    assert line.out.attributes("root") == {conventions.SUBTREE_JOULES: 0.5}


class _Blocking(Collecting):
    """A next processor that is stuck in the forwarding thread until it is told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()
        self.entered = threading.Event()

    def on_end(self, span: ReadableSpan) -> None:
        if threading.current_thread().name == "otel-llm-energy-forward":
            self.entered.set()
            self.go.wait(30)
        super().on_end(span)


def test_root_says_incomplete_when_it_may_not_wait_and_a_call_below_is_open() -> None:
    """As where it may: what is not known yet is missing for good."""
    line = Pipeline(max_hold_seconds=0.0, forced_joules=3.0)
    with line.tracer.start_as_current_span("root"):
        with line.tracer.start_as_current_span("done") as done:
            line.call(done)
        background = line.tracer.start_span("background")
        line.call(background)
    assert line.out.names == ["done", "root"]
    assert line.out.attributes("root") == {conventions.SUBTREE_JOULES: 3.0, conventions.SUBTREE_INCOMPLETE: True}
    background.end()


def test_span_that_has_left_cannot_display_a_call_any_more() -> None:
    """Whoever binds one is told, and may look for another span to show its bill."""
    line = Pipeline()
    span = line.tracer.start_span("chat")
    assert line.gate.bind(span, Claim(span.get_span_context()))
    other = line.tracer.start_span("http")
    other.end()
    assert line.out.names == ["http"]
    assert not line.gate.bind(other, Claim(other.get_span_context()))


def test_span_goes_on_without_its_energy_when_that_cannot_be_added(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A defect of ours costs the energy, never the span; the log has the traceback."""
    line = Pipeline()

    def fail(*_: object) -> dict[str, object]:
        raise ZeroDivisionError("defect")

    monkeypatch.setattr(enrich, "call_attributes", fail)
    span = line.tracer.start_span("chat", attributes={"user": "kept"})
    claim = line.call(span)
    span.end()
    line.desk.settle(claim, 1.0)
    assert line.sent() == ["chat"]
    assert line.out.attributes("chat") == {"user": "kept"}
    assert "A span goes on without its energy." in caplog.text
    assert "ZeroDivisionError: defect" in caplog.text


def test_no_span_is_lost_and_memory_is_bounded_when_the_next_processor_is_stuck(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Once the queue is full, whoever ends a span hands it on itself, as without us."""
    line = Pipeline(max_held=4, forced_joules=0.5)
    stuck = _Blocking()
    line.provider.add_span_processor(stuck)
    for number in range(40):
        span = line.tracer.start_span(f"chat {number}")
        claim = line.call(span)
        span.end()
        if claim.bill is None:
            line.desk.settle(claim, 1.0)
        if number == 0:
            assert stuck.entered.wait(10)
        assert len(line.gate._forwarder) <= 8
    assert len(stuck.spans) == 31
    stuck.go.set()
    line.sent()
    assert sorted(stuck.names) == sorted(f"chat {number}" for number in range(40))
    assert line.gate.health.degraded == {"queue-full": 31}
    assert (line.gate.health.forwarded, line.gate.health.passed) == (9, 31)
    assert caplog.messages == ["The next span processor is too slow; spans are handed on directly."]


def test_force_flush_waits_one_meter_period_and_releases_all() -> None:
    """A flush right after a call asks for a reading, and loses nothing if none comes."""
    line = Pipeline(forced_joules=0.5)
    line.gate.meter_period_seconds = 1.5
    for name in ("covered", "uncovered"):
        span = line.tracer.start_span(name)
        claim = line.call(span)
        span.end()
        if name == "covered":
            line.desk.on_hasten = lambda claim=claim: line.desk.settle(claim, 2.0)
    assert line.provider.force_flush(20_000)
    assert line.desk.hastened_seconds == [1.5]
    assert line.out.names == ["covered", "uncovered"]
    assert line.out.attributes("covered")[conventions.QUALITY] == "measured"
    assert line.out.attributes("uncovered")[conventions.REASON] == "flush"
    assert line.out.flushes == 1


def test_force_flush_returns_false_when_the_timeout_is_exceeded() -> None:
    """False means that not all could be handed on in time, and it comes in time."""
    line = Pipeline()
    stuck = _Blocking()
    line.provider.add_span_processor(stuck)
    span = line.tracer.start_span("chat")
    line.call(span)
    span.end()
    assert line.gate.force_flush(50) is False
    stuck.go.set()
    assert line.sent() == ["chat"]


def test_shutdown_releases_before_the_next_and_only_once() -> None:
    """What is held goes out before the next processor stops listening; then everything passes."""
    line = Pipeline(forced_joules=0.5)
    span = line.tracer.start_span("chat")
    line.call(span)
    span.end()
    line.provider.shutdown()
    assert line.out.names == ["chat"]
    line.gate.shutdown()
    assert line.out.shutdowns == 1
    line.tracer.start_span("after").end()
    assert line.out.names == ["chat", "after"]


def test_everything_passes_when_the_gate_was_deactivated() -> None:
    """A library that has put its hook on top of ours still comes through here: nothing settles calls any more."""
    line = Pipeline()
    before = line.tracer.start_span("before")
    line.call(before)
    assert line.gate.deactivate()
    after = line.tracer.start_span("after")
    assert not line.gate.bind(after, Claim(after.get_span_context()))
    for span in (before, after):
        span.end()
    assert line.out.names == ["before", "after"]
    assert line.out.attributes("before") == line.out.attributes("after") == {}


def test_span_is_handed_on_when_it_ends_amid_the_shutdown() -> None:
    """Its thread had found the gate open; what it is held for comes no more, and nobody would look for it again."""
    line = Pipeline(forced_joules=0.5)
    on_its_way, go_on = threading.Event(), threading.Event()

    class Watch:
        """Stops a thread on its way into the gate."""

        def started(self, gate: Gate, span: Span, parent_context: context.Context | None) -> None: ...

        def ended(self, span: ReadableSpan) -> None:
            if span.name == "late":
                on_its_way.set()
                assert go_on.wait(10)

        def billed_elsewhere(self, span: ReadableSpan) -> bool:
            return False

        def claim_late(self, span: ReadableSpan) -> None: ...

    first, late = line.tracer.start_span("first"), line.tracer.start_span("late")
    line.call(first)
    line.call(late)
    line.gate.watch = Watch()
    ending = threading.Thread(target=late.end)

    class LettingItIn(SpanProcessor):
        """Comes after the gate: by then all that was held at the beginning of the shutdown is on its way out."""

        def on_end(self, span: ReadableSpan) -> None:
            if span.name == "first":
                go_on.set()
                ending.join(10)

    line.provider.add_span_processor(LettingItIn())
    first.end()
    ending.start()
    assert on_its_way.wait(10)
    line.provider.shutdown()
    assert line.out.names == ["first", "late"]


def test_app_is_untouched_when_the_next_processor_raises_on_a_held_span(caplog: pytest.LogCaptureFixture) -> None:
    """The refusal is counted and logged once a minute, and the forwarder goes on."""

    class Refusing(SpanProcessor):
        def on_end(self, span: ReadableSpan) -> None:
            raise ValueError("full")

    line = Pipeline()
    line.provider.add_span_processor(Refusing())
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            span = line.tracer.start_span("chat")
            claim = line.call(span)
            span.end()
            line.desk.settle(claim, 1.0)
        line.sent()
    assert line.gate.health.dropped == 3
    assert len([record for record in caplog.records if "refused" in record.message]) == 1


@pytest.mark.parametrize(("calls", "max_hold_seconds"), [(False, 30.0), (True, 30.0), (True, 0.0)])
def test_no_node_remains_when_spans_are_gone(calls: bool, max_hold_seconds: float) -> None:
    """Memory follows the Span objects: an endless chain of spans, and spans that never end, leave nothing behind."""
    line = Pipeline(max_hold_seconds=max_hold_seconds)
    inside = trace.set_span_in_context(line.tracer.start_span("first"))
    for _ in range(100):
        span = line.tracer.start_span("link", inside)
        if calls:
            line.desk.settle(line.call(span), 1.0)
            line.sent()
        trace.get_current_span(inside).end()
        line.sent()
        inside = trace.set_span_in_context(span)
    node = line.gate._tree.find(span.get_span_context())
    assert node is not None
    depth = 0
    while node is not None:
        node, depth = node.parent, depth + 1
    assert depth <= 3
    del span, inside
    gc.collect()
    assert len(line.gate._tree) == 0


def test_span_ended_by_the_garbage_collector_is_taken_in_when_the_gate_is_at_work() -> None:
    """An abandoned stream may end its span in the middle of our own work: no deadlock, nothing lost."""
    line = Pipeline()

    class EndsInDel:
        def __init__(self, name: str) -> None:
            self.span = line.tracer.start_span(name)
            self.claim = line.call(self.span)

        def __del__(self) -> None:
            self.span.end()

    abandoned = EndsInDel("abandoned")
    claim = abandoned.claim
    holder = [abandoned]
    del abandoned
    line.gate._mailbox.post(holder.clear)
    assert line.gate.health.held == 1
    line.desk.settle(claim, 1.0)
    assert line.sent() == ["abandoned"]


def test_span_has_its_energy_when_it_is_ended_as_the_garbage_of_a_cycle() -> None:
    """The collector clears weak references to what only the garbage holds before it ends the stream in it."""
    line = Pipeline()

    class EndsInDel:
        def __init__(self) -> None:
            self.cycle = self
            self.span = line.tracer.start_span("abandoned")
            self.claim = line.call(self.span)

        def __del__(self) -> None:
            self.span.end()

    abandoned = EndsInDel()
    claim = abandoned.claim
    assert line.sent() == []  # and the call is entered: no note holds the span any more
    del abandoned
    gc.collect()
    line.desk.settle(claim, 1.0)
    assert line.sent() == ["abandoned"]
    assert line.out.attributes("abandoned")[conventions.JOULES] == 1.0
    gc.collect()
    assert len(line.gate._tree) == 0


def test_spans_wait_for_no_call_of_the_parent_when_they_end_in_a_forked_child() -> None:
    """Its bill comes in the parent: the child's span above says that it is missing. Calls of the child are billed."""
    line = Pipeline()
    agent, root = line.tracer.start_span("agent"), line.tracer.start_span("root")
    within, outside = trace.set_span_in_context(agent), trace.set_span_in_context(root)
    parents, ended = line.tracer.start_span("parent's", within), line.tracer.start_span("parent's, ended", outside)
    line.call(parents)
    line.call(ended)
    ended.end()
    assert line.sent() == []
    line.gate._start_afresh()
    parents.end()
    own = line.tracer.start_span("own", within)
    claim = line.call(own)
    own.end()
    agent.end()
    root.end()
    assert line.sent() == ["parent's", "root"]
    line.desk.settle(claim, 2.0)
    assert line.sent() == ["parent's", "root", "own", "agent"]
    assert line.out.attributes("parent's") == {}
    assert line.out.attributes("root") == {conventions.SUBTREE_INCOMPLETE: True}
    assert line.out.attributes("agent") == {conventions.SUBTREE_JOULES: 2.0, conventions.SUBTREE_INCOMPLETE: True}


def test_forwarding_has_an_empty_context_when_the_span_ended_under_suppression() -> None:
    """logfire drops what is forwarded under suppression."""

    class Looking(Collecting):
        suppressed: object = "not called"

        def on_end(self, span: ReadableSpan) -> None:
            self.suppressed = context.get_value("suppress_instrumentation")

    line, looking = Pipeline(), Looking()
    line.provider.add_span_processor(looking)
    token = context.attach(context.set_value("suppress_instrumentation", True))
    try:
        span = line.tracer.start_span("chat")
        claim = line.call(span)
        span.end()
        line.desk.settle(claim, 1.0)
    finally:
        context.detach(token)
    line.sent()
    assert looking.suppressed is None


def test_held_span_leaves_by_itself_when_nobody_settles_or_flushes() -> None:
    """The forwarding thread watches the real clock."""
    left = threading.Event()

    class Last(Collecting):
        def on_end(self, span: ReadableSpan) -> None:
            super().on_end(span)
            left.set()

    out = Last()
    processor = EnergySpanProcessor(out, FakeDesk(), max_hold_seconds=0.05)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(processor)
    span = provider.get_tracer("app").start_span("chat")
    processor.gate.bind(span, Claim())
    span.end()
    assert left.wait(30)
    assert out.attributes("chat")[conventions.REASON] == "max-hold"
    provider.shutdown()


def test_all_leave_once_when_many_threads_call_and_another_settles() -> None:
    """Ends, bills, bounds and flushes at the same time: every span comes out exactly once."""
    line = Pipeline(max_held=50, forced_joules=0.5)
    unsettled: SimpleQueue[Claim | None] = SimpleQueue()

    def calls(number: int) -> None:
        for turn in range(100):
            root = line.tracer.start_span(f"root {number} {turn}")
            span = line.tracer.start_span(f"chat {number} {turn}", trace.set_span_in_context(root))
            unsettled.put(line.call(span))
            span.end()
            root.end()
            if turn % 40 == 0:
                line.gate.force_flush(10_000)

    def settle() -> None:
        while (claim := unsettled.get()) is not None:
            if claim.bill is None:
                line.desk.settle(claim, 1.0)

    settling = threading.Thread(target=settle)
    callers = [threading.Thread(target=calls, args=(number,)) for number in range(6)]
    for thread in (settling, *callers):
        thread.start()
    for thread in callers:
        thread.join()
    unsettled.put(None)
    settling.join()
    assert line.gate.force_flush(30_000)
    expected = [f"{name} {number} {turn}" for name in ("root", "chat") for number in range(6) for turn in range(100)]
    assert sorted(line.out.names) == sorted(expected)
    assert line.gate.health.held == 0
    assert all(conventions.QUALITY in (s.attributes or {}) for s in line.out.spans if s.name.startswith("chat"))


def test_app_is_not_blocked_when_a_simple_processor_has_a_dead_collector() -> None:
    """Ending the span of a call returns at once although the exporter waits for a socket that never answers."""
    with socket.socket() as dead:
        dead.bind(("127.0.0.1", 0))
        dead.listen()
        line = Pipeline()
        line.provider.add_span_processor(_dead_exporter(dead.getsockname()[1]))
        span = line.tracer.start_span("chat")
        claim = line.call(span)
        span.end()
        line.desk.settle(claim, 1.0)
        accepted, _ = dead.accept()  # the forwarder is in the exporter's request by now
        with accepted:
            again = line.tracer.start_span("chat again")
            second = line.call(again)
            again.end()
            line.desk.settle(second, 1.0)
            assert line.out.names == ["chat"]
        line.sent()
        assert line.out.names == ["chat", "chat again"]


def _dead_exporter(port: int) -> SpanProcessor:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor

    return SimpleSpanProcessor(OTLPSpanExporter(endpoint=f"http://127.0.0.1:{port}/v1/traces", timeout=1))


def test_processor_by_hand_delivers_starts_and_enriched_copies() -> None:
    """`EnergySpanProcessor` is the same gate as a plain public span processor."""

    class Next(Collecting):
        started = 0
        ending = 0

        def on_start(self, span: Span, parent_context: object = None) -> None:
            self.started += 1

        def _on_ending(self, span: Span) -> None:
            self.ending += 1

    out, desk = Next(), FakeDesk()
    processor = EnergySpanProcessor(out, desk)
    desk.listeners.append(processor.gate)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(processor)
    span = provider.get_tracer("app").start_span("chat")
    claim = Claim(span.get_span_context())
    assert processor.gate.bind(span, claim)
    span.end()
    desk.settle(claim, 2.0)
    assert provider.force_flush()
    assert out.started == 1
    assert out.ending == (1 if hasattr(SpanProcessor, "_on_ending") else 0)
    assert out.attributes("chat")[conventions.JOULES] == 2.0
    provider.shutdown()
    assert out.shutdowns == 1


def test_time_that_a_span_may_be_held_counts_from_its_end_when_it_is_entered_late() -> None:
    """What the app's thread only noted does not get longer than max_hold for that."""
    line = Pipeline(max_hold_seconds=10.0)
    span = line.tracer.start_span("chat")
    line.call(span)
    span.end()
    line.clock.advance(10.0)
    line.gate.tick()
    assert line.sent() == ["chat"]
    assert line.out.attributes("chat")[conventions.REASON] == "max-hold"


def test_memory_stays_bounded_when_nobody_enters_what_is_noted() -> None:
    """Threads of ours that are starved of the interpreter are helped by those that end spans."""
    line = Pipeline(max_held=64)
    for _ in range(1_000):
        span = line.tracer.start_span("chat")
        line.call(span)
        span.end()
    assert len(line.gate._mailbox) <= 33
    assert line.gate.health.held <= 64 + 32 + 33
    until(lambda: len(line.sent()) == 1_000 - 64)  # the forwarder may have some in hand
    assert line.gate.health.held == 64

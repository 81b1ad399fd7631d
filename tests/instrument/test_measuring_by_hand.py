"""`measure()`: work of this very process, metered by counters that follow its real CPU use."""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Sequence
from contextvars import copy_context
from typing import Any

import numpy
import pytest
from openai import OpenAI
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

import otel_llm_energy
from otel_llm_energy import Instrumentation
from otel_llm_energy import conventions as names
from otel_llm_instrumentation.conversations import conversation_in
from tests.instrument.asking import ask, measuring, said
from tests.support.cpu_time import tree_cpu_ns
from tests.support.powercap import PowercapTree

_WATTS_PER_CPU = 66  # of the synthetic counters: 60 of the package and a tenth of that for memory
_CPU_SECONDS = 0.6


@pytest.fixture
def energy(provider: TracerProvider, powercap: PowercapTree) -> Iterator[Instrumentation]:
    """The one line, with the idle power that the counters have."""
    with measuring(provider, powercap) as energy:
        yield energy


def burn(cpu_seconds: float = _CPU_SECONDS) -> None:
    """Use so much CPU time in this thread."""
    until_seconds = time.thread_time() + cpu_seconds
    while time.thread_time() < until_seconds:
        sum(range(1000))


def burn_in_steps() -> Iterator[None]:
    for _ in range(2):
        burn(0.2)
        yield


def operations(reader: InMemoryMetricReader) -> Sequence[Any]:
    """The data points of llm.energy.operation."""
    data = reader.get_metrics_data()
    assert data is not None
    metrics = [metric for each in data.resource_metrics[0].scope_metrics for metric in each.metrics]
    (points,) = [metric.data.data_points for metric in metrics if metric.name == names.OPERATION.name]
    return points


def test_work_of_this_process_is_billed_by_its_cpu_time(
    energy: Instrumentation, exporter: InMemorySpanExporter
) -> None:
    """What 0.6 CPU seconds cost, on a span of the given name; tokens give joules per token."""
    before_ns = tree_cpu_ns(os.getpid())
    with otel_llm_energy.measure("generate", {"gen_ai.request.model": "own"}) as measurement:
        burn()
        measurement.output_tokens = 42
    used_seconds = (tree_cpu_ns(os.getpid()) - before_ns) / 1e9
    energy.force_flush()
    span = said(exporter, "generate")
    assert span[names.QUALITY] in ("measured", "shared", "degraded"), span
    assert span[names.ABOVE_IDLE_JOULES] == pytest.approx(_WATTS_PER_CPU * used_seconds, rel=0.4)
    assert span[names.JOULES_PER_OUTPUT_TOKEN] == pytest.approx(span[names.JOULES] / 42, rel=1e-4)
    assert (span["gen_ai.usage.output_tokens"], span["gen_ai.request.model"]) == (42, "own")
    assert names.SUBTREE_JOULES not in span
    assert f"\nprocess {os.getpid()}: " in str(energy.status())


def test_inner_measurement_has_its_own_joules_and_the_outer_one_the_rest(
    energy: Instrumentation, exporter: InMemorySpanExporter
) -> None:
    """Each joule is on one span; the outer one's total is both."""
    with otel_llm_energy.measure("outer"):
        burn(_CPU_SECONDS / 2)
        with otel_llm_energy.measure("inner"):
            burn()
        burn(_CPU_SECONDS / 2)
    energy.force_flush()
    outer, inner = said(exporter, "outer"), said(exporter, "inner")
    total = outer[names.JOULES] + inner[names.JOULES]
    assert outer[names.SUBTREE_JOULES] == pytest.approx(total, rel=1e-4)
    for span in (outer, inner):
        assert 0.25 * total < span[names.JOULES] < 0.75 * total


def test_each_measurement_is_counted_once_when_one_is_within_another(
    provider: TracerProvider, powercap: PowercapTree, exporter: InMemorySpanExporter
) -> None:
    """The outer one has two claims, before the inner one and after it, and is one operation."""
    reader = InMemoryMetricReader()
    with measuring(provider, powercap, meter_provider=MeterProvider([reader])) as energy:
        with otel_llm_energy.measure("outer"):
            burn(0.2)
            with otel_llm_energy.measure("inner"):
                burn(0.2)
            burn(0.2)
        energy.force_flush()
        points = operations(reader)
    joules = [said(exporter, name)[names.JOULES] for name in ("outer", "inner")]
    assert sum(point.count for point in points) == 2
    assert sum(point.sum for point in points) == pytest.approx(sum(joules), rel=1e-4)


@pytest.mark.parametrize("settled_before", [True, False])
def test_each_measurement_is_counted_once_when_the_inner_one_goes_on_for_longer(
    settled_before: bool, provider: TracerProvider, powercap: PowercapTree, exporter: InMemorySpanExporter
) -> None:
    """The outer one ends while paused, as a request whose stream is read later; its claim may be settled before."""
    reader = InMemoryMetricReader()
    with measuring(provider, powercap, meter_provider=MeterProvider([reader])) as energy:
        with otel_llm_energy.measure("outer"):
            burn(0.2)
            steps = otel_llm_energy.measure("inner")(burn_in_steps)()
            next(steps)
            if settled_before:
                energy.force_flush()
        list(steps)
        energy.force_flush()
        points = operations(reader)
    joules = [said(exporter, name)[names.JOULES] for name in ("outer", "inner")]
    assert sum(point.count for point in points) == 2
    assert sum(point.sum for point in points) == pytest.approx(sum(joules), rel=1e-4)


@pytest.mark.parametrize("settled_before", [True, False])
def test_measurement_has_joules_per_token_when_it_ends_while_paused(
    settled_before: bool, provider: TracerProvider, powercap: PowercapTree, exporter: InMemorySpanExporter
) -> None:
    """Of its joules until then; tokens that are not known remain so."""
    with measuring(provider, powercap, detail="full") as energy:
        with otel_llm_energy.measure("outer") as outer:
            burn(0.2)
            steps = otel_llm_energy.measure("inner")(burn_in_steps)()
            next(steps)
            if settled_before:
                energy.force_flush()
            outer.input_tokens, outer.output_tokens = 40, 2
        list(steps)
        energy.force_flush()
    span = said(exporter, "outer")
    assert span[names.JOULES_PER_OUTPUT_TOKEN] == pytest.approx(span[names.JOULES] / 2, rel=1e-4)
    assert span[names.JOULES_PER_TOKEN] == pytest.approx(span[names.JOULES] / 42, rel=1e-4)
    assert names.JOULES_PER_OUTPUT_TOKEN not in said(exporter, "inner")


def test_server_that_is_called_within_keeps_its_joules(
    client: OpenAI, energy: Instrumentation, exporter: InMemorySpanExporter
) -> None:
    """Though it is a child of this process: its CPU time is not this process's."""
    ask(client)  # the server is known from here on
    energy.force_flush()
    exporter.clear()
    with otel_llm_energy.measure("agent"):
        ask(client, max_tokens=64)
    energy.force_flush()
    agent, call = said(exporter, "agent"), said(exporter, "chat smollm2-135m")
    assert agent[names.ABOVE_IDLE_JOULES] < call[names.ABOVE_IDLE_JOULES]
    total = agent[names.JOULES] + call[names.JOULES]
    assert agent[names.SUBTREE_JOULES] == pytest.approx(total, rel=1e-4)


async def test_functions_and_coroutines_are_measured_at_each_call_when_decorated(
    energy: Instrumentation, exporter: InMemorySpanExporter
) -> None:
    """As a decorator, and with ``async with``; tasks do not meet."""

    @otel_llm_energy.measure("plain")
    def plain() -> int:
        return 1

    @otel_llm_energy.measure("coroutine")
    async def coroutine() -> int:
        await asyncio.sleep(0)
        async with otel_llm_energy.measure("within"):
            return 2

    assert [plain(), *await asyncio.gather(coroutine(), coroutine())] == [1, 2, 2]
    energy.force_flush()
    spans = exporter.get_finished_spans()
    assert sorted(span.name for span in spans) == ["coroutine", "coroutine", "plain", "within", "within"]
    assert all(names.QUALITY in (span.attributes or {}) for span in spans)
    parents = {span.context.span_id for span in spans if span.name == "coroutine" and span.context}
    assert {span.parent.span_id for span in spans if span.name == "within" and span.parent} == parents


async def test_generators_are_measured_from_their_first_step_to_their_end_when_decorated(
    energy: Instrumentation, exporter: InMemorySpanExporter
) -> None:
    """Their work is done in their steps, not in the call that makes them."""

    @otel_llm_energy.measure("steps")
    def steps() -> Iterator[int]:
        for step in range(3):
            burn(_CPU_SECONDS / 3)
            yield step

    @otel_llm_energy.measure("asynchronous")
    async def asynchronous() -> AsyncIterator[int]:
        for step in range(3):
            burn(_CPU_SECONDS / 3)
            yield step

    assert list(steps()) == [step async for step in asynchronous()] == [0, 1, 2]
    energy.force_flush()
    for name in ("steps", "asynchronous"):
        assert said(exporter, name)[names.ABOVE_IDLE_JOULES] == pytest.approx(_WATTS_PER_CPU * _CPU_SECONDS, rel=0.4)


async def test_consumers_of_decorated_generators_notice_nothing(
    provider: TracerProvider, energy: Instrumentation, exporter: InMemorySpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    """What is sent and thrown into them arrives, two may take turns, and none leaves its span as the current one."""

    @otel_llm_energy.measure("echo")
    def echo() -> Generator[Any, Any, str]:
        said = yield "first"
        try:
            yield said
        except KeyError as error:
            yield repr(error)
        return "end"

    @otel_llm_energy.measure("echo")
    async def echo_async() -> AsyncIterator[Any]:
        said = yield "first"
        try:
            yield said
        except KeyError as error:
            yield repr(error)

    one, other = echo(), echo()
    assert [next(one), next(other), one.send(5), other.send(6)] == ["first", "first", 5, 6]
    assert one.throw(KeyError("k")) == "KeyError('k')"
    with pytest.raises(StopIteration, match="end"):
        next(one)
    other.close()
    steps: Any = echo_async()
    assert [await anext(steps), await steps.asend(5), await steps.athrow(KeyError("k"))] == [
        "first",
        5,
        "KeyError('k')",
    ]
    async for _ in echo_async():
        break
    gc.collect()
    await asyncio.sleep(0.01)
    await steps.aclose()
    assert inspect.isgeneratorfunction(echo)
    assert inspect.isasyncgenfunction(echo_async)
    assert not trace.get_current_span().get_span_context().is_valid
    energy.force_flush()
    assert [span.status.status_code for span in exporter.get_finished_spans()] == [StatusCode.UNSET] * 4
    assert not caplog.records


def test_nothing_of_a_block_stays_current_when_somebody_attached_on_top(
    energy: Instrumentation,
) -> None:
    """Baggage, say, that is never taken back."""
    with otel_llm_energy.measure("block"), otel_llm_energy.conversation("c"):
        context.attach(baggage.set_baggage("key", "value"))
    assert not trace.get_current_span().get_span_context().is_valid
    assert conversation_in() is None
    assert energy.active


def test_generator_that_its_consumer_leaves_has_not_failed(
    energy: Instrumentation, exporter: InMemorySpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor is anything logged where each of its steps is run in a context of its own, as Starlette does."""

    def steps() -> Iterator[int]:
        with otel_llm_energy.measure("left"), otel_llm_energy.conversation("c"):
            yield from range(3)

    left = steps()
    for run in (left.__next__, left.__next__, left.close):
        copy_context().run(run)
    energy.force_flush()
    (span,) = exporter.get_finished_spans()
    assert span.status.status_code is StatusCode.UNSET
    assert not caplog.records


@pytest.mark.parametrize("cleanup_awaits", [False, True])
async def test_decorated_generator_closes_well_when_its_event_loop_has_closed_what_it_measures(
    cleanup_awaits: bool, energy: Instrumentation, exporter: InMemorySpanExporter
) -> None:
    """At the loop's end, all asynchronous generators are closed at once; here the inner one first."""
    begun: list[AsyncGenerator[Any, Any]] = []
    go_on = asyncio.Event()

    @otel_llm_energy.measure("left")
    async def left() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            if cleanup_awaits:
                await go_on.wait()

    hooks = sys.get_asyncgen_hooks()
    sys.set_asyncgen_hooks(firstiter=begun.append)
    steps = left()
    try:
        await anext(steps)
    finally:
        sys.set_asyncgen_hooks(*hooks)
    outer, inner = begun
    closing = asyncio.create_task(inner.aclose())
    await asyncio.sleep(0)
    await outer.aclose()
    go_on.set()
    await closing
    energy.force_flush()
    (span,) = exporter.get_finished_spans()
    assert (span.name, span.status.status_code) == ("left", StatusCode.UNSET)


async def test_nothing_is_logged_when_a_decorated_generator_is_thrown_away_within_a_step(
    energy: Instrumentation, exporter: InMemorySpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    """By a task that is never finished: what it waited for is closed in the context of whoever lets go of it."""

    @otel_llm_energy.measure("waits")
    async def waits() -> AsyncIterator[int]:
        await asyncio.Event().wait()
        yield 1

    step = waits().__anext__()
    copy_context().run(step.send, None)
    with pytest.raises(GeneratorExit):
        step.throw(GeneratorExit)
    energy.force_flush()
    (span,) = exporter.get_finished_spans()
    assert (span.name, span.status.status_code) == ("waits", StatusCode.UNSET)
    assert not caplog.records


@pytest.mark.parametrize("odd", ["5", 5.0, -1, 2**63, float("nan")])
def test_what_is_no_number_of_tokens_is_left_out_with_a_warning(
    odd: Any, energy: Instrumentation, exporter: InMemorySpanExporter
) -> None:
    """The joules are there."""
    with otel_llm_energy.measure("odd") as measurement:
        burn(0.05)
        measurement.input_tokens = numpy.int64(7)
        with pytest.warns(UserWarning, match="number of tokens"):
            measurement.output_tokens = odd
    energy.force_flush()
    span = said(exporter, "odd")
    assert span["gen_ai.usage.input_tokens"] == 7
    assert "gen_ai.usage.output_tokens" not in span
    assert names.JOULES in span


def test_measurement_says_so_when_it_is_begun_twice() -> None:
    """It stands for one span."""
    measurement = otel_llm_energy.measure("shared")
    with measurement:
        pass
    with pytest.raises(RuntimeError, match=r"measure\(\) anew"), measurement:
        pass


def test_failure_is_noted_and_passed_on_when_the_work_fails(
    energy: Instrumentation, exporter: InMemorySpanExporter
) -> None:
    """The energy is spent all the same."""
    with pytest.raises(ZeroDivisionError), otel_llm_energy.measure("fails"):
        burn(0.05)
        raise ZeroDivisionError
    energy.force_flush()
    (span,) = exporter.get_finished_spans()
    assert span.status.status_code is StatusCode.ERROR
    assert (span.attributes or {})["error.type"] == "ZeroDivisionError"
    assert names.QUALITY in (span.attributes or {})


def test_it_does_nothing_but_make_a_span_when_nothing_measures() -> None:
    """Neither an error nor a figure."""
    with otel_llm_energy.measure("unmeasured") as measurement:
        measurement.output_tokens = 3
    assert measurement.output_tokens == 3

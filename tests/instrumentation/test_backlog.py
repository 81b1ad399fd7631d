"""Calls that end while their stream is collected, which may be at any allocation, in any thread, under any lock."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from opentelemetry.sdk.metrics import AlignedHistogramBucketExemplarReservoir, Exemplar, MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.metrics.view import View
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.util.types import Attributes

from otel_llm_instrumentation import add_observer, remove_observer
from otel_llm_instrumentation.backlog import Backlog, is_inside_sdk
from otel_llm_instrumentation.openai import OpenAIInstrumentor
from tests.instrumentation import payloads
from tests.instrumentation.conftest import Watched
from tests.instrumentation.replay import ReplayServer, json_reply, sse_reply

_PATIENCE_SECONDS = 20
_DURATION = "gen_ai.client.operation.duration"


@pytest.fixture
def collected_by_hand() -> Iterator[None]:
    """No collection but the test's own."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class CollectingUnderLock(AlignedHistogramBucketExemplarReservoir):
    """Collects garbage while the SDK's metrics are collected, which is under their locks."""

    def collect(self, point_attributes: Attributes) -> list[Exemplar]:
        gc.collect()
        return super().collect(point_attributes)


class AskingWhereItIs(SpanProcessor):
    """Notes whether the SDK is among its callers."""

    def __init__(self) -> None:
        self.answers: list[bool] = []

    def on_start(self, span: Span, parent_context: Any = None) -> None:
        self.answers.append(is_inside_sdk())

    def on_end(self, span: ReadableSpan) -> None:
        self.answers.append(is_inside_sdk())


def test_sdk_is_seen_when_it_is_among_the_callers() -> None:
    """However far up; a span that is open does not count."""
    asking = AskingWhereItIs()
    provider = TracerProvider()
    provider.add_span_processor(asking)
    with provider.get_tracer("test").start_as_current_span("outer"):
        assert not is_inside_sdk()
    assert asking.answers == [True, True]


def test_reports_are_made_once_in_their_order_when_it_is_time() -> None:
    """A report may add another one."""
    made: list[str] = []
    backlog = Backlog()
    assert not backlog

    def first() -> None:
        made.append("first")
        backlog.add(lambda: made.append("third"))

    backlog.add(first)
    backlog.add(lambda: made.append("second"))
    assert backlog
    backlog.make_up()
    backlog.make_up()
    assert made == ["first", "second", "third"]


def test_reports_are_made_when_the_interpreter_exits() -> None:
    """No later call comes to make them."""
    program = "from otel_llm_instrumentation.backlog import Backlog; Backlog().add(lambda: print('made'))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "made\n"


def _durations(reader: InMemoryMetricReader) -> int:
    """Of how many calls the duration was recorded."""
    data = reader.get_metrics_data()
    found = [
        point.count
        for resource in (data.resource_metrics if data else [])
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == _DURATION
        for point in metric.data.data_points
    ]
    return sum(found)


def _abandon(server: ReplayServer, *, is_raw: bool = False) -> None:
    """Leave a stream, or a raw response, behind in a cycle, for a collection to find."""
    server.reply = sse_reply([{"choices": []}] * 3, hangs=True)
    completions = openai.OpenAI(base_url=f"{server.url}/v1", api_key="k").chat.completions
    create = completions.with_raw_response.create if is_raw else completions.create
    kept: list[object] = [create(model="m", messages=[], stream=True)]
    kept.append(kept)


def _call(server: ReplayServer) -> None:
    server.reply = json_reply(payloads.CHAT)
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="k") as client:
        client.chat.completions.create(model="m", messages=[])


@pytest.fixture
def instrumented() -> Iterator[tuple[Watched, InMemoryMetricReader]]:
    """An instrumentor whose metrics collect garbage while they are collected; an observer."""
    watched, reader = Watched(), InMemoryMetricReader()
    view = View(instrument_name=_DURATION, exemplar_reservoir_factory=lambda _: CollectingUnderLock)
    meter_provider = MeterProvider([reader], views=[view])
    OpenAIInstrumentor().instrument(
        tracer_provider=watched.provider, meter_provider=meter_provider, skip_dep_check=True
    )
    add_observer(watched)
    yield watched, reader
    remove_observer(watched)
    OpenAIInstrumentor().uninstrument()


@pytest.mark.usefixtures("collected_by_hand")
@pytest.mark.parametrize("is_raw", [False, True], ids=["stream", "raw response"])
def test_nothing_waits_for_ever_when_an_abandoned_stream_is_collected_under_a_lock_of_the_sdk(
    is_raw: bool, server: ReplayServer, instrumented: tuple[Watched, InMemoryMetricReader]
) -> None:
    """Its metrics and its span, which says when it ended, come with the next call."""
    watched, reader = instrumented
    _call(server)
    _abandon(server, is_raw=is_raw)
    collecting = threading.Thread(target=reader.collect, daemon=True)
    collecting.start()
    collecting.join(_PATIENCE_SECONDS)
    assert not collecting.is_alive()
    assert (len(watched.ended), len(watched.spans)) == (2, 1)
    _call(server)
    _, abandoned, called = watched.spans
    assert (abandoned.end_time or 0) < (called.start_time or 0)
    assert _durations(reader) == 3


@pytest.mark.usefixtures("collected_by_hand")
def test_an_abandoned_stream_is_reported_at_once_when_the_sdk_is_not_collecting(
    server: ReplayServer, instrumented: tuple[Watched, InMemoryMetricReader]
) -> None:
    """Nothing waits where nothing can be waited for."""
    watched, reader = instrumented
    _abandon(server)
    gc.collect()
    assert (len(watched.spans), _durations(reader)) == (1, 1)


@pytest.mark.usefixtures("collected_by_hand")
def test_what_waits_is_reported_when_instrumentation_is_taken_back(
    server: ReplayServer, instrumented: tuple[Watched, InMemoryMetricReader]
) -> None:
    """There will be no next call."""
    watched, reader = instrumented
    _call(server)
    _abandon(server)
    assert _durations(reader) == 1
    assert len(watched.spans) == 1
    OpenAIInstrumentor().uninstrument()
    assert (len(watched.spans), _durations(reader)) == (2, 2)

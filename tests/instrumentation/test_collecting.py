"""Calls that end while their stream is collected, which may be at any allocation, in any thread, under any lock."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import openai
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from otel_llm_instrumentation.collecting import AfterCollection
from otel_llm_instrumentation.openai import OpenAIInstrumentor
from tests.instrumentation import payloads
from tests.instrumentation.replay import ReplayServer, json_reply, sse_reply


@pytest.fixture
def collected_by_hand() -> Iterator[None]:
    """No collection but the test's own."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Cycle:
    """Collected, it does what it was made for."""

    def __init__(self, after: AfterCollection, done: list[str]) -> None:
        self.me = self
        self.after = after
        self.done = done

    def __del__(self) -> None:
        self.after.run(self.done.append, "collected")


@pytest.mark.usefixtures("collected_by_hand")
def test_action_waits_when_its_thread_collects_garbage() -> None:
    """Until the next one, or the end; the thread may hold the lock that the action would wait for."""
    done: list[str] = []
    after = AfterCollection(lambda: None)
    after.start()
    Cycle(after, done)
    gc.collect()
    assert done == []
    after.run(done.append, "next")
    assert done == ["collected", "next"]
    Cycle(after, done)
    gc.collect()
    after.stop()
    assert done == ["collected", "next", "collected"]
    assert not [each for each in gc.callbacks if getattr(each, "__self__", None) is after]


def test_next_action_is_done_when_one_that_waited_fails() -> None:
    """Whoever asked for it has gone on."""
    done: list[str] = []
    after = AfterCollection(lambda: done.append("failed"))
    after._collects("start", {})
    after.run(int, "no number")
    after.run(done.append, "other")
    after._collects("stop", {})
    after.stop()
    assert done == ["failed", "other"]


def durations(reader: InMemoryMetricReader) -> int:
    """Of how many calls the duration was recorded."""
    data = reader.get_metrics_data()
    found = [
        point.count
        for resource in (data.resource_metrics if data else [])
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == "gen_ai.client.operation.duration"
        for point in metric.data.data_points
    ]
    return sum(found)


@pytest.mark.usefixtures("collected_by_hand")
def test_metrics_of_an_abandoned_stream_come_with_the_next_call_when_it_is_collected(server: ReplayServer) -> None:
    """Recorded within the collection they stopped all threads for ever, if that had begun inside the SDK's metrics."""
    reader = InMemoryMetricReader()
    OpenAIInstrumentor().instrument(meter_provider=MeterProvider([reader]), skip_dep_check=True)
    try:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="k") as client:
            server.reply = sse_reply([{"choices": []}] * 3, hangs=True)
            kept: list[object] = [client.chat.completions.create(model="m", messages=[], stream=True)]
            kept.append(kept)
            del kept
            gc.collect()
            assert durations(reader) == 0
            server.reply = json_reply(payloads.CHAT)
            client.chat.completions.create(model="m", messages=[])
            assert durations(reader) == 2
    finally:
        OpenAIInstrumentor().uninstrument()

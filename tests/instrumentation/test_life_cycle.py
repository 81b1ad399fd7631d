"""One call: who is told what, when other instrumentations are there, and when something of ours fails."""

from __future__ import annotations

import contextvars
import gc
import logging
import weakref
from collections.abc import Generator
from typing import Any

import openai
import pytest
from opentelemetry import context, trace
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk.trace import Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from otel_llm_instrumentation import CallView, add_observer, remove_observer
from otel_llm_instrumentation.call import Call, begin_call
from otel_llm_instrumentation.facts import Facts, Request, Route
from otel_llm_instrumentation.openai import OpenAIInstrumentor
from otel_llm_instrumentation.telemetry import Telemetry
from tests.instrumentation import payloads
from tests.instrumentation.conftest import Watched
from tests.instrumentation.replay import ReplayServer, json_reply, sse_reply

_ASK: dict[str, Any] = {"model": "m", "messages": payloads.MESSAGES}


def _ask(server: ReplayServer) -> Any:
    server.reply = json_reply(payloads.chat())
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="k", max_retries=0).chat.completions.create(**_ASK)


def _begin(watched: Watched, streaming: bool = False) -> Call:
    route = Route("chat", {}, lambda payloads: Facts(output_tokens=len(payloads)))
    telemetry = Telemetry("test", watched.provider)
    call = begin_call(telemetry, Request(route, "openai", "m", "127.0.0.1", 80, streaming))
    assert call is not None
    return call


def test_call_ends_once_when_several_places_end_it(watched: Watched) -> None:
    """The first end wins: its error is the call's, later ones change nothing."""
    call = _begin(watched)
    call.end(TimeoutError())
    ended_ns = call.ended_ns
    call.end()
    call.end(KeyError())
    assert (call.ended_ns, call.error_type) == (ended_ns, "TimeoutError")
    watched.only_span()


def test_span_is_open_with_all_facts_when_observers_hear_of_the_end(watched: Watched) -> None:
    """So that an observer may still write on it."""
    seen = []

    class Writer:
        def call_started(self, call: CallView) -> None: ...

        def first_chunk(self, call: CallView) -> None: ...

        def call_ended(self, call: CallView) -> None:
            seen.append((call.span.is_recording(), call.output_tokens))
            call.span.set_attribute("from.observer", 1)

    writer = Writer()
    add_observer(writer)
    call = _begin(watched)
    call.see("answer")
    call.end()
    remove_observer(writer)
    assert seen == [(True, 1)]
    assert (watched.only_span().attributes or {})["from.observer"] == 1


def test_observers_are_told_when_the_span_is_not_sampled(server: ReplayServer) -> None:
    """Calls count whether or not a span displays them."""
    watched = Watched(provider=TracerProvider(sampler=ALWAYS_OFF))
    OpenAIInstrumentor().instrument(tracer_provider=watched.provider)
    add_observer(watched)
    try:
        _ask(server)
    finally:
        remove_observer(watched)
        OpenAIInstrumentor().uninstrument()
    assert not watched.spans
    assert watched.ended[0].output_tokens == 8
    assert not watched.ended[0].span.is_recording()


def test_app_is_unharmed_when_an_observer_raises(
    server: ReplayServer, watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged once for each kind of event, and others are still told."""

    class Broken:
        def call_started(self, call: CallView) -> None:
            raise RuntimeError("no")

        first_chunk = call_ended = call_started

    broken = Broken()
    add_observer(broken)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert _ask(server).id == "chatcmpl-1"
    remove_observer(broken)
    assert len(watched.ended) == 3
    assert [record.getMessage().split()[0].rpartition(".")[2] for record in caplog.records] == [
        "call_started",
        "call_ended",
    ]


def test_app_is_unharmed_when_a_span_processor_raises(server: ReplayServer) -> None:
    """At the start and at the end of a span."""

    class Broken(SpanProcessor):
        def on_start(self, span: Span, parent_context: context.Context | None = None) -> None:
            raise RuntimeError("no")

        def on_end(self, span: object) -> None:
            raise RuntimeError("no")

    watched = Watched()
    watched.provider.add_span_processor(Broken())
    OpenAIInstrumentor().instrument(tracer_provider=watched.provider)
    add_observer(watched)
    try:
        assert _ask(server).id == "chatcmpl-1"
    finally:
        remove_observer(watched)
        OpenAIInstrumentor().uninstrument()
    assert len(watched.ended) == 1


def test_span_is_a_child_of_the_apps_span_when_there_is_one(server: ReplayServer, watched: Watched) -> None:
    """And the app's span is the current one again afterwards, also while it handles chunks."""
    server.reply = sse_reply(payloads.chunks())
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="k")
    with watched.provider.get_tracer("app").start_as_current_span("app") as app:
        for _ in client.chat.completions.create(**_ASK, stream=True):
            assert trace.get_current_span() is app
        assert trace.get_current_span() is app
    parent = watched.spans[0].parent
    assert parent is not None
    assert parent.span_id == app.get_span_context().span_id


def test_nothing_is_observed_when_instrumentation_is_suppressed(server: ReplayServer, watched: Watched) -> None:
    """By the standard key and by OpenLLMetry's."""
    with suppress_instrumentation():
        _ask(server)
    token = context.attach(context.set_value("suppress_language_model_instrumentation", True))
    _ask(server)
    context.detach(token)
    assert not watched.spans
    assert not watched.started


def test_call_steps_aside_when_the_official_instrumentation_has_a_span_for_it(
    server: ReplayServer, watched: Watched
) -> None:
    """No second span; the call is observed, bound to the span that is there, which gets the server's timings."""
    with watched.provider.get_tracer("genai").start_as_current_span("chat m") as span:
        token = context.attach(context.set_value("opentelemetry.genai.client.inference.context", object()))
        _ask(server)
        context.detach(token)
    assert [s.name for s in watched.spans] == ["chat m"]
    [call] = watched.ended
    assert call.span is span
    assert not call.owns_span
    assert call.output_tokens == 8
    assert dict(watched.spans[0].attributes or {}) == {
        "llm.server.prefill_seconds": 0.0755,
        "llm.server.decode_seconds": 0.09225,
    }


def test_inner_call_passes_through_when_it_is_part_of_a_call_of_ours(watched: Watched) -> None:
    """A client that works through another client is one call."""
    outer = _begin(watched)
    inner = outer.run(
        begin_call, Telemetry("test"), Request(Route("chat", {}, lambda _: Facts()), "x", "m", None, None, False)
    )
    assert inner is None
    outer.end()
    watched.only_span()


def test_nothing_is_complained_of_when_an_awaited_call_is_thrown_away_in_another_context(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    """An event loop that ends closes coroutines in a context of its own, where the call's was never the current one."""

    class Never:
        def __await__(self) -> Generator[None, None, None]:
            yield

    call = _begin(watched)
    awaited = call.run_async(Never)
    contextvars.copy_context().run(awaited.send, None)
    awaited.close()
    call.end()
    assert caplog.records == []
    watched.only_span()


def test_content_is_let_go_when_a_call_has_ended(watched: Watched) -> None:
    """An observer that keeps calls keeps no answers."""

    class Answer:
        pass

    call, answer = _begin(watched), Answer()
    gone = weakref.ref(answer)
    call.see(answer)
    call.end()
    del answer
    assert gone() is None


def test_nothing_is_kept_when_calls_have_ended(server: ReplayServer) -> None:
    """Calls, answers and hooks go with the app's own references, without the garbage collector."""
    OpenAIInstrumentor().instrument(tracer_provider=TracerProvider())
    gone: list[weakref.ref[object]] = []

    class Witness:
        def call_started(self, call: CallView) -> None:
            gone.append(weakref.ref(call))

        def first_chunk(self, call: CallView) -> None: ...

        def call_ended(self, call: CallView) -> None: ...

    witness = Witness()
    add_observer(witness)
    gc.disable()
    try:
        _ask(server)
        server.reply = sse_reply(payloads.chunks())
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="k")
        list(client.chat.completions.create(**_ASK, stream=True))
        assert [ref() for ref in gone] == [None, None]
    finally:
        gc.enable()
        remove_observer(witness)
        OpenAIInstrumentor().uninstrument()


def test_no_content_is_on_the_span_when_nobody_asked_for_it(server: ReplayServer, watched: Watched) -> None:
    """Neither prompt nor answer."""
    _ask(server)
    everything = repr(watched.only_span().to_json())
    assert "capital" not in everything
    assert "Paris" not in everything

"""Where another span stands for a call ours makes none, and still tells observers. The real others: tests/peers."""

from __future__ import annotations

import asyncio
import functools
import sys
from collections.abc import Callable, Iterator
from contextvars import copy_context
from types import ModuleType, SimpleNamespace
from typing import Any

import openai
import pytest
import wrapt
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.trace import SpanKind

from otel_llm_instrumentation.openai import OpenAIInstrumentor
from otel_llm_instrumentation.standing import note_above, note_started, stands_for
from tests.instrumentation import payloads
from tests.instrumentation.conftest import Watched
from tests.instrumentation.replay import ReplayServer, json_reply, sse_reply

_ASK: dict[str, Any] = {"model": "m", "messages": payloads.MESSAGES}
_CHAT = [
    {"gen_ai.operation.name": "chat"},
    {"openinference.span.kind": "LLM"},
    {"llm.request.type": "chat"},
]


@pytest.fixture
def ask(server: ReplayServer) -> Callable[[], object]:
    server.reply = json_reply(payloads.chat())
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="k", max_retries=0)
    return lambda: client.chat.completions.create(**_ASK)


@pytest.fixture
def tracer(watched: Watched) -> trace.Tracer:
    return watched.provider.get_tracer("another")


@pytest.mark.parametrize("marks", _CHAT)
def test_current_span_that_says_it_is_the_call_is_the_only_one(
    marks: dict[str, str], ask: Callable[[], object], tracer: trace.Tracer, watched: Watched
) -> None:
    """It gets the server's timings; the observer is told of it, and of the tokens."""
    with tracer.start_as_current_span("theirs", attributes=marks) as span:
        ask()
    assert [each.name for each in watched.spans] == ["theirs"]
    (call,) = watched.ended
    assert (call.owns_span, call.span, call.output_tokens) == (False, span, 8)
    assert (watched.spans[0].attributes or {})["llm.server.decode_seconds"] == 0.09225


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"gen_ai.operation.name": "invoke_agent"},
        {"gen_ai.operation.name": "embeddings"},
        {"openinference.span.kind": "CHAIN"},
    ],
)
def test_span_of_a_chain_an_agent_or_another_operation_is_only_the_parent(
    attributes: dict[str, str], ask: Callable[[], object], tracer: trace.Tracer, watched: Watched
) -> None:
    """Containers never stand for a call."""
    with tracer.start_as_current_span("theirs", attributes=attributes):
        ask()
    ours, theirs = watched.spans
    assert (ours.name, theirs.name) == ("chat m", "theirs")
    assert ours.parent is not None
    assert theirs.context is not None
    assert ours.parent.span_id == theirs.context.span_id


@pytest.mark.parametrize("marks", _CHAT)
def test_span_above_a_call_with_a_span_of_its_own_stands_for_none_when_it_is_marked_later(
    marks: dict[str, str], ask: Callable[[], object], tracer: trace.Tracer, watched: Watched
) -> None:
    """LiteLLM writes on the app's span, once a call is over, what that call was."""
    with tracer.start_as_current_span("the app's") as span:
        ask()
        span.set_attributes(marks)
        ask()
    assert [each.name for each in watched.spans] == ["chat m", "chat m", "the app's"]
    assert [call.owns_span for call in watched.ended] == [True, True]


@pytest.mark.parametrize("marks", _CHAT)
def test_span_of_a_call_stands_for_it_when_a_call_of_another_operation_came_first(
    marks: dict[str, str], tracer: trace.Tracer
) -> None:
    """A chat engine embeds the question before it asks."""
    with tracer.start_as_current_span("theirs", attributes=marks) as span:
        note_above(otel_context.get_current())
        assert stands_for(span, "chat")


class _KeepsKindBack(wrapt.ObjectProxy):  # type: ignore[type-arg,misc]
    """OpenInference's span: what it says of its kind after its start is on the SDK's only once it ends."""

    def __init__(self, span: trace.Span) -> None:
        super().__init__(span)
        self._self_important_attributes: dict[str, str] = {}

    def set_attribute(self, key: str, value: str) -> None:
        self._self_important_attributes[key] = value


@pytest.mark.parametrize(("kind", "owns_span"), [("LLM", False), ("EMBEDDING", True), ("CHAIN", True)])
def test_current_span_that_keeps_its_kind_back_stands_for_the_call_of_that_kind(
    kind: str, owns_span: bool, ask: Callable[[], object], tracer: trace.Tracer, watched: Watched
) -> None:
    """OpenInference's for LiteLLM and Haystack say their kind right after their start."""
    span = _KeepsKindBack(tracer.start_span("theirs"))
    span.set_attribute("openinference.span.kind", kind)
    with trace.use_span(span, end_on_exit=True):
        ask()
    (call,) = watched.ended
    assert call.owns_span is owns_span
    assert [each.name for each in watched.spans] == (["chat m", "theirs"] if owns_span else ["theirs"])


def test_ended_span_that_is_still_current_stands_for_nothing(
    ask: Callable[[], object], tracer: trace.Tracer, watched: Watched
) -> None:
    """A library may leave one behind in the context."""
    with tracer.start_as_current_span("theirs", attributes=_CHAT[0], end_on_exit=False) as span:
        span.end()
        ask()
    assert [each.name for each in watched.spans] == ["theirs", "chat m"]


def test_span_that_is_not_current_stands_for_the_one_call_after_it_when_its_start_was_noted(
    ask: Callable[[], object], tracer: trace.Tracer, watched: Watched
) -> None:
    """OpenLLMetry's for Ollama: it is taken once, and only while it is open."""
    span = tracer.start_span("theirs", attributes=_CHAT[2])
    assert note_started(span)  # type: ignore[arg-type]
    ask()
    assert watched.spans == []
    ask()
    span.end()
    ended = tracer.start_span("ended", attributes=_CHAT[2])
    note_started(ended)
    ended.end()
    ask()
    assert [each.name for each in watched.spans] == ["chat m", "theirs", "ended", "chat m"]


def test_span_that_was_current_during_its_call_stands_for_no_other_while_it_is_open(
    ask: Callable[[], object], tracer: trace.Tracer, watched: Watched
) -> None:
    """An app that reads a stream of LangChain's may make calls in between, of which that span says nothing."""
    span = tracer.start_span("theirs", attributes=_CHAT[0])
    note_started(span)  # type: ignore[arg-type]
    with trace.use_span(span):
        ask()
    ask()
    span.end()
    assert [each.name for each in watched.spans] == ["chat m", "theirs"]
    assert [call.owns_span for call in watched.ended] == [False, True]


@pytest.mark.parametrize(
    ("asked", "suppressed", "taken"),
    [("m", False, True), ("claude", False, False), (None, False, True), ("unknown", True, True)],
)
def test_noted_span_stands_only_for_a_call_of_the_model_that_it_names(
    asked: str | None,
    suppressed: bool,
    taken: bool,
    ask: Callable[[], object],
    tracer: trace.Tracer,
    watched: Watched,
) -> None:
    """That of a library whose calls are not observed may be open: a stream of another API, say.

    One that suppresses what is below its own span, as OpenLLMetry's for LangChain, may misname it.
    """
    model = {} if asked is None else {"gen_ai.request.model": asked}
    span = tracer.start_span("theirs", attributes={**_CHAT[0], **model})
    note_started(span)  # type: ignore[arg-type]
    token = otel_context.attach(otel_context.set_value("suppress_language_model_instrumentation", suppressed))
    try:
        ask()
    finally:
        otel_context.detach(token)
    span.end()
    assert [call.owns_span for call in watched.ended] == [not taken]


class _Sights(SpanProcessor):
    def on_start(self, span: trace.Span, parent_context: Context | None = None) -> None:
        note_started(span, parent_context)


@pytest.mark.parametrize("noted", [True, False], ids=["where it is current", "in a task of its own"])
def test_span_stands_for_calls_below_spans_that_the_app_makes_within_it(
    noted: bool, ask: Callable[[], object], tracer: trace.Tracer, watched: Watched
) -> None:
    """A chat model of an app's own for LangChain may do so, with spans for its attempts and its HTTP requests."""
    watched.provider.add_span_processor(_Sights())

    def start() -> trace.Span:
        return tracer.start_span("theirs", attributes=_CHAT[0])

    span = start() if noted else copy_context().run(start)
    inference = otel_context.set_value("opentelemetry.genai.client.inference.context", object())
    token = otel_context.attach(trace.set_span_in_context(span, inference))
    try:
        for attempt in ("first", "second"):
            with tracer.start_as_current_span(attempt), tracer.start_as_current_span("request"):
                ask()
    finally:
        otel_context.detach(token)
    ask()
    span.end()
    assert [call.span for call in watched.ended[:2]] == [span, span]
    assert [each.name for each in watched.spans] == ["request", "first", "request", "second", "chat m", "theirs"]


def test_span_stands_for_embeddings_below_spans_that_the_app_makes_within_it(
    server: ReplayServer, tracer: trace.Tracer, watched: Watched
) -> None:
    """OpenTelemetry's own instrumentations mark the context of embeddings by another key."""
    watched.provider.add_span_processor(_Sights())
    server.reply = json_reply(payloads.EMBEDDINGS)
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="k", max_retries=0)
    span = tracer.start_span("theirs", attributes={"gen_ai.operation.name": "embeddings"})
    embedding = otel_context.set_value("opentelemetry.genai.client.embedding.context", object())
    token = otel_context.attach(trace.set_span_in_context(span, embedding))
    try:
        for part in ("first", "second"):
            with tracer.start_as_current_span(part):
                client.embeddings.create(model="m", input="x")
    finally:
        otel_context.detach(token)
    assert [call.span for call in watched.ended] == [span, span]


def test_noted_span_stands_for_no_call_below_a_span_of_another_trace(
    ask: Callable[[], object], tracer: trace.Tracer, watched: Watched
) -> None:
    """A stream of another request of the app's may still be open."""
    noted = tracer.start_span("theirs", attributes=_CHAT[0])
    note_started(noted)  # type: ignore[arg-type]
    token = otel_context.attach(otel_context.set_value("opentelemetry.genai.client.inference.context", object()))
    try:
        with tracer.start_as_current_span("attempt") as attempt:
            ask()
    finally:
        otel_context.detach(token)
    noted.end()
    assert [call.span for call in watched.ended] == [attempt]


def test_span_of_ours_stands_for_no_other_call_while_its_stream_is_open(
    server: ReplayServer, ask: Callable[[], object], watched: Watched
) -> None:
    """An app may ask in between, of which that span says nothing."""
    watched.provider.add_span_processor(_Sights())
    server.reply = sse_reply(payloads.chunks())
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="k", max_retries=0)
    stream = client.chat.completions.create(**_ASK, stream=True)
    server.reply = json_reply(payloads.chat())
    ask()
    list(stream)
    assert [call.owns_span for call in watched.ended] == [True, True]
    assert len(watched.spans) == 2


def test_span_with_the_conventional_name_stands_for_the_call_before_it_says_so(tracer: trace.Tracer) -> None:
    """OpenLIT's for Ollama says what it is when it ends."""
    assert stands_for(tracer.start_span("chat llama3", kind=SpanKind.CLIENT), "chat")
    assert not stands_for(tracer.start_span("chat llama3"), "chat")
    assert not stands_for(tracer.start_span("chatter", kind=SpanKind.CLIENT), "chat")
    assert not stands_for(tracer.start_span("embeddings bge", kind=SpanKind.CLIENT), "chat")


_OPENINFERENCE = "openinference.instrumentation.langchain"
_Runs = dict[str, tuple[str, trace.Span | None]]  # by their ids, each with its type and its span


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> _Runs:
    """The runs that OpenInference's for LangChain, which is played, knows."""
    runs: _Runs = {}

    class Tracer:
        @property
        def run_map(self) -> dict[str, SimpleNamespace]:
            return {run_id: SimpleNamespace(id=run_id, run_type=kind) for run_id, (kind, _) in runs.items()}

        def get_span(self, run_id: str) -> trace.Span | None:
            return runs[run_id][1]

    module: Any = ModuleType(_OPENINFERENCE)
    module.LangChainInstrumentor = SimpleNamespace(_instance=SimpleNamespace(_tracer=Tracer()))
    monkeypatch.setitem(sys.modules, _OPENINFERENCE, module)
    return runs


@pytest.mark.parametrize(
    ("run_type", "operation", "stands"),
    [
        ("llm", "text_completion", True),
        ("chat_model", "chat", True),
        ("chat_model", "embeddings", False),
        ("chain", "chat", False),
    ],
)
def test_span_of_openinferences_langchain_is_what_its_run_is(
    run_type: str,
    operation: str,
    stands: bool,
    runs: _Runs,
    watched: Watched,
) -> None:
    """It says so on the span only at its end; other runs are under way, and one has no span any more."""
    tracer = watched.provider.get_tracer(_OPENINFERENCE)
    span = tracer.start_span("theirs")
    another = "chain" if stands else "llm"
    runs.update({"1": (another, None), "2": (another, tracer.start_span("another")), "3": (run_type, span)})
    assert stands_for(span, operation) is stands


def test_span_of_openinferences_langchain_stands_for_no_call_when_its_run_is_over(
    runs: _Runs, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor when OpenInference is not there any more."""
    span = watched.provider.get_tracer(_OPENINFERENCE).start_span("theirs")
    assert not stands_for(span, "chat")
    monkeypatch.delitem(sys.modules, _OPENINFERENCE)
    assert not stands_for(span, "chat")


@pytest.mark.parametrize("below_theirs", [True, False])
@pytest.mark.parametrize("key", ["suppress_instrumentation", "suppress_language_model_instrumentation"])
def test_suppressed_call_is_observed_only_below_a_span_that_stands_for_it(
    key: str, below_theirs: bool, ask: Callable[[], object], tracer: trace.Tracer, watched: Watched
) -> None:
    """Libraries suppress what is below their own span; a user who suppresses wants nothing."""
    span = tracer.start_span("theirs", attributes=_CHAT[0])
    context = otel_context.set_value(key, True)
    token = otel_context.attach(trace.set_span_in_context(span, context) if below_theirs else context)
    try:
        ask()
    finally:
        otel_context.detach(token)
    assert len(watched.ended) == below_theirs
    assert watched.spans == []


_OPENLLMETRY = "opentelemetry.instrumentation.langchain"
_OPENLLMETRY_KEY = "suppress_language_model_instrumentation"


def _like_openllmetry(watched: Watched, ask: Callable[[], object], *, kind: SpanKind = SpanKind.CLIENT) -> None:
    """A call of LangChain's in asynchronous code: the key that was set below its span stays."""
    span = watched.provider.get_tracer(_OPENLLMETRY).start_span("ChatOpenAI.chat", kind=kind)
    span.set_attribute("gen_ai.operation.name", "chat")
    otel_context.attach(otel_context.set_value(_OPENLLMETRY_KEY, True))
    ask()
    span.end()


def test_calls_are_observed_after_openllmetry_has_left_its_key_behind_in_a_task(
    ask: Callable[[], object], tracer: trace.Tracer, watched: Watched
) -> None:
    async def task() -> None:
        _like_openllmetry(watched, ask)
        ask()
        with tracer.start_as_current_span("the app's"):
            _like_openllmetry(watched, ask)
            ask()
        chain = watched.provider.get_tracer(_OPENLLMETRY).start_span("RunnableSequence.workflow")
        ask()
        chain.end()

    watched.provider.add_span_processor(_Sights())
    asyncio.run(task())
    assert [call.owns_span for call in watched.ended] == [False, True, False, True, True]


@pytest.mark.parametrize("where", ["before", "in a thread", "within", "below a chain"])
def test_openllmetrys_key_is_obeyed_where_it_is_not_left_behind(
    where: str, ask: Callable[[], object], watched: Watched
) -> None:
    """It was set before any span of OpenLLMetry's, or is set while one is open, or can be taken back."""

    async def task() -> None:
        if where == "before":
            otel_context.attach(otel_context.set_value(_OPENLLMETRY_KEY, True))
        if where == "within":
            _like_openllmetry(watched, lambda: (ask(), ask()))
        else:
            _like_openllmetry(watched, ask, kind=SpanKind.INTERNAL if where == "below a chain" else SpanKind.CLIENT)
            ask()

    watched.provider.add_span_processor(_Sights())
    if where == "in a thread":
        copy_context().run(lambda: (_like_openllmetry(watched, ask), ask()))
    else:
        asyncio.run(task())
    assert [call.owns_span for call in watched.ended] == [False]


def test_nothing_is_observed_when_the_user_suppresses_instrumentation(
    ask: Callable[[], object], watched: Watched
) -> None:
    """By OpenTelemetry's own helper."""
    with suppress_instrumentation():
        ask()
    assert (watched.started, watched.spans) == ([], [])


def by_wrapt(tracer: trace.Tracer) -> None:
    def wrapper(wrapped: Any, _instance: object, args: Any, kwargs: Any) -> Any:
        with tracer.start_as_current_span("theirs", attributes=_CHAT[0]):
            return wrapped(*args, **kwargs)

    wrapt.wrap_function_wrapper(openai.OpenAI, "request", wrapper)


def by_closure(tracer: trace.Tracer) -> None:
    original = openai.OpenAI.request

    @functools.wraps(original)
    def request(*args: Any, **kwargs: Any) -> Any:
        with tracer.start_as_current_span("theirs", attributes=_CHAT[0]):
            return original(*args, **kwargs)

    openai.OpenAI.request = request  # type: ignore[method-assign, assignment]


@pytest.fixture
def class_restored() -> Iterator[None]:
    """Whatever a test puts on the class is gone after it."""
    yield
    if "request" in vars(openai.OpenAI):
        del openai.OpenAI.request


@pytest.mark.parametrize("wrap", [by_wrapt, by_closure])
@pytest.mark.parametrize("theirs_first", [True, False])
def test_one_span_is_made_whoever_wrapped_the_method_first(
    theirs_first: bool,
    wrap: Callable[[trace.Tracer], None],
    class_restored: None,
    ask: Callable[[], object],
) -> None:
    """Ours goes below theirs; undone, theirs stays and goes on."""
    watched, instrumentor = Watched(), OpenAIInstrumentor()
    tracer = watched.provider.get_tracer("another")
    steps = [lambda: wrap(tracer), lambda: instrumentor.instrument(tracer_provider=watched.provider)]
    for step in steps if theirs_first else reversed(steps):
        step()
    theirs = vars(openai.OpenAI)["request"]
    ask()
    assert [span.name for span in watched.spans] == ["theirs"]
    assert (watched.spans[0].attributes or {})["llm.server.decode_seconds"] == 0.09225
    instrumentor.uninstrument()
    assert vars(openai.OpenAI)["request"] is theirs
    ask()
    assert [span.name for span in watched.spans] == ["theirs", "theirs"]
    assert "llm.server.decode_seconds" not in (watched.spans[1].attributes or {})

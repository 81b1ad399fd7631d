"""LangChain and LangGraph with the one line and the extra: a real model where it can answer, else recorded answers."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType, SimpleNamespace
from typing import Any

import openai
import pytest
from langchain.agents import create_agent
from langchain_core.callbacks import BaseCallbackManager
from langchain_core.language_models import BaseChatModel
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda, RunnableParallel
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.pregel import Pregel
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import otel_llm_energy
from otel_llm_energy import Instrumentation
from otel_llm_energy import conventions as names
from otel_llm_instrumentation.langchain import LangChainInstrumentor
from tests.conftest import LlamaServerFactory
from tests.instrument.asking import measuring
from tests.instrument.conftest import exporter, provider  # noqa: F401 - fixtures
from tests.instrument.running import REPOSITORY
from tests.instrumentation import payloads
from tests.instrumentation.replay import ReplayServer, json_reply, replaying, sse_reply
from tests.support.powercap import PowercapTree
from tests.support.waiting import until

_QUESTION = {"question": "Write one sentence about the ocean."}
_OFFICIAL = "opentelemetry.instrumentation.genai.langchain"

Model = Callable[..., ChatOpenAI]


@pytest.fixture
def energy(provider: TracerProvider, powercap: PowercapTree) -> Iterator[Instrumentation]:  # noqa: F811
    with measuring(provider, powercap) as energy:
        yield energy


@pytest.fixture
def model(llama_server: LlamaServerFactory, energy: Instrumentation) -> Model:
    """A chat model of LangChain, aimed at the real llama.cpp server."""

    def make(**options: Any) -> ChatOpenAI:
        address: dict[str, Any] = {"base_url": llama_server().base_url, "api_key": "unused", "max_retries": 0}
        return ChatOpenAI(model="smollm2-135m", max_tokens=8, temperature=0, **address, **options)

    return make


@pytest.fixture
def chain(model: Model) -> Any:
    return ChatPromptTemplate.from_template("{question}") | model(stream_usage=True)


@pytest.fixture
def recorded(energy: Instrumentation) -> Iterator[tuple[ReplayServer, ChatOpenAI]]:
    """A model that says what the test gives it."""
    with replaying() as server:
        yield server, ChatOpenAI(model="m", base_url=f"{server.url}/v1", api_key="k", max_retries=0)


class Trace:
    """What was exported, by what it is."""

    def __init__(self, spans: tuple[ReadableSpan, ...]) -> None:
        self.spans = spans
        self.calls = [span for span in spans if self.said(span).get("gen_ai.operation.name") in ("chat", "embeddings")]

    @staticmethod
    def said(span: ReadableSpan) -> dict[str, Any]:
        return dict(span.attributes or {})

    def joules(self) -> float:
        return sum(float(self.said(call)[names.JOULES]) for call in self.calls)

    def named(self, start: str) -> list[ReadableSpan]:
        return [span for span in self.spans if span.name.startswith(start)]


@pytest.fixture
def traced(energy: Instrumentation, exporter: InMemorySpanExporter) -> Callable[[], Trace]:  # noqa: F811
    def trace() -> Trace:
        energy.force_flush()
        return Trace(exporter.get_finished_spans())

    return trace


def run_alone(script: str) -> str:
    """In a process of its own, which has imported nothing of LangChain yet, and ends well; what it says of trouble."""
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=REPOSITORY, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


async def events(chain: Any) -> None:
    async for _ in chain.astream_events(_QUESTION):
        pass


def in_threads(chain: Any) -> None:
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: contextvars.copy_context().run(chain.invoke, _QUESTION), range(2)))


LOOP = asyncio.new_event_loop()  # one for all: langchain-openai keeps its connections
SURFACES: dict[str, tuple[int, Callable[[Any], object]]] = {
    "invoke": (1, lambda chain: chain.invoke(_QUESTION)),
    "batch": (3, lambda chain: chain.batch([_QUESTION] * 3)),
    "abatch": (3, lambda chain: LOOP.run_until_complete(chain.abatch([_QUESTION] * 3))),
    "ainvoke": (1, lambda chain: LOOP.run_until_complete(chain.ainvoke(_QUESTION))),
    "stream": (1, lambda chain: list(chain.stream(_QUESTION))),
    "astream_events": (1, lambda chain: LOOP.run_until_complete(events(chain))),
    "thread pool": (2, in_threads),
    "parallel": (2, lambda chain: RunnableParallel(a=chain, b=chain).invoke(_QUESTION)),
}


@pytest.mark.parametrize("surface", SURFACES)
def test_each_call_of_a_chain_has_its_bill_on_the_chat_span(
    surface: str, chain: Any, traced: Callable[[], Trace]
) -> None:
    """One span a call, with joules per token and the server's timings; each step above has the sum."""
    calls, run = SURFACES[surface]
    run(chain)
    trace = traced()
    assert len(trace.calls) == calls
    for call in trace.calls:
        said = trace.said(call)
        assert call.instrumentation_scope is not None
        assert call.instrumentation_scope.name == _OFFICIAL
        assert said[names.JOULES] > 0
        assert said["gen_ai.usage.output_tokens"] == 8
        assert said[names.JOULES_PER_OUTPUT_TOKEN] == pytest.approx(said[names.JOULES] / 8, rel=1e-4)
        assert said["llm.server.decode_seconds"] > 0
    tops = [span for span in trace.spans if span.parent is None]
    total = sum(trace.said(span)[names.SUBTREE_JOULES] for span in tops)
    assert total == pytest.approx(trace.joules(), rel=1e-4)


def test_early_end_of_a_stream_still_has_its_bill(chain: Any, traced: Callable[[], Trace]) -> None:
    """The work until then."""
    stream = chain.stream(_QUESTION)
    next(stream)
    stream.close()
    (call,) = traced().calls
    assert names.QUALITY in (call.attributes or {})


def test_call_that_is_made_while_a_stream_is_read_has_a_span_of_its_own(
    recorded: tuple[ReplayServer, ChatOpenAI], traced: Callable[[], Trace]
) -> None:
    """The span of the stream is open all the while, but stands for its own call alone."""
    server, model = recorded
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="k", max_retries=0)
    server.reply = sse_reply(payloads.chunks())
    for number, _ in enumerate(model.stream("Hello")):
        if number == 0:
            server.reply = json_reply(payloads.chat())
            client.chat.completions.create(model="another", messages=payloads.MESSAGES)
    trace = traced()
    assert sorted(call.name for call in trace.calls) == ["chat another", "chat m"]
    for call in trace.calls:
        assert names.QUALITY in trace.said(call)


def test_agent_and_tool_get_totals_and_each_model_call_its_bill(
    recorded: tuple[ReplayServer, ChatOpenAI], traced: Callable[[], Trace]
) -> None:
    """Two calls with a tool between them, below one agent."""
    server, model = recorded

    @tool
    def answer_next() -> str:
        """Have the model answer from now on."""
        server.reply = json_reply(payloads.chat())
        return "done"

    call = {"id": "call_1", "type": "function", "function": {"name": "answer_next", "arguments": "{}"}}
    asks = {"index": 0, "finish_reason": "tool_calls", "message": {"role": "assistant", "tool_calls": [call]}}
    server.reply = json_reply(payloads.chat(choices=[asks]))
    agent = create_agent(model, [answer_next])
    agent.invoke({"messages": [{"role": "user", "content": "Go."}]})
    trace = traced()
    assert len(trace.calls) == 2
    (top,) = [span for span in trace.spans if span.parent is None]
    assert trace.said(top)[names.SUBTREE_JOULES] == pytest.approx(trace.joules(), rel=1e-4, abs=1e-6)
    (executed,) = trace.named("execute_tool")
    assert names.JOULES not in trace.said(executed)
    assert names.QUALITY not in trace.said(executed)


def test_thread_of_a_graph_is_the_conversation_of_its_calls(model: Model, traced: Callable[[], Trace]) -> None:
    """LangGraph's id over ours, also on what the official instrumentation leaves to the client."""
    embeddings = OpenAIEmbeddings(
        model="m", base_url=str(model().openai_api_base), api_key="k", check_embedding_ctx_length=False, max_retries=0
    )

    def node(state: MessagesState) -> dict[str, Any]:
        with pytest.raises(openai.OpenAIError):  # this server embeds nothing
            embeddings.embed_query("x")
        return {"messages": [model().invoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("answer", node)
    graph.add_edge(START, "answer")
    graph.add_edge("answer", END)
    with otel_llm_energy.conversation("ours"):
        graph.compile().invoke({"messages": [("user", "Hello")]}, {"configurable": {"thread_id": "thread-7"}})
    trace = traced()
    assert sorted(trace.said(call)["gen_ai.operation.name"] for call in trace.calls) == ["chat", "embeddings"]
    assert {trace.said(call)["gen_ai.conversation.id"] for call in trace.calls} == {"thread-7"}


def test_embeddings_are_the_clients_span_below_the_step(
    llama_server: LlamaServerFactory, energy: Instrumentation, traced: Callable[[], Trace]
) -> None:
    """LangChain tells nobody of embeddings; the client does, and the step has the total."""
    base_url = llama_server(embeddings=True).base_url
    embeddings = OpenAIEmbeddings(model="m", base_url=base_url, api_key="k", check_embedding_ctx_length=False)
    step = RunnableLambda(embeddings.embed_query) | RunnableLambda(len)
    step.invoke("The ocean is deep.")
    trace = traced()
    (call,) = trace.calls
    (top,) = [span for span in trace.spans if span.parent is None]
    assert trace.said(call)[names.JOULES] == trace.said(top)[names.SUBTREE_JOULES] > 0


def test_langchain_is_as_before_when_it_is_undone(
    provider: TracerProvider,  # noqa: F811
    powercap: PowercapTree,
    exporter: InMemorySpanExporter,  # noqa: F811
    llama_server: LlamaServerFactory,
) -> None:
    """No span any more; the same methods."""
    seams = [
        (BaseCallbackManager, "__init__"),
        (BaseChatModel, "_generate_with_cache"),
        (Pregel, "stream"),
        (openai.OpenAI, "request"),
    ]
    before = [vars(owner).get(name) for owner, name in seams]
    energy = otel_llm_energy.instrument(tracer_provider=provider, meters="rapl", powercap_root=powercap.root)
    assert all(vars(owner).get(name) is not old for (owner, name), old in zip(seams, before, strict=True))
    energy.uninstrument()
    assert [vars(owner).get(name) for owner, name in seams] == before
    ChatOpenAI(model="m", base_url=llama_server().base_url, api_key="k", max_tokens=2).invoke("Hello")
    assert exporter.get_finished_spans() == ()


@pytest.mark.parametrize(
    "first",
    [
        "import langgraph.pregel",
        "import langgraph.checkpoint.memory",
        "from langgraph.types import Command; from langchain_openai import ChatOpenAI",
        "from langgraph.graph import StateGraph",
        "from langchain_openai import ChatOpenAI",
    ],
)
def test_langchain_is_instrumented_whichever_of_it_is_imported_first(first: str) -> None:
    """After the one line, which imports none of it."""
    script = f"""
        import sys, warnings, logging
        logging.basicConfig(level=logging.WARNING)
        import otel_llm_energy
        energy = otel_llm_energy.instrument(meters="cpu-estimate")
        assert not [name for name in sys.modules if name.startswith(("langchain", "langgraph"))]
        {first}
        from langchain_core.callbacks import BaseCallbackManager
        assert hasattr(vars(BaseCallbackManager)["__init__"], "__wrapped__")
        from langgraph.pregel import Pregel
        assert hasattr(vars(Pregel)["stream"], "__wrapped__")
        energy.uninstrument()
        assert not hasattr(vars(BaseCallbackManager)["__init__"], "__wrapped__")
    """
    assert run_alone(script) == ""


def test_langgraph_is_instrumented_when_the_package_langchain_is_not_installed() -> None:
    """The official instrumentor asks for that package, of which it needs nothing; nothing is logged either."""
    script = """
        import importlib.metadata, logging, sys
        logging.basicConfig(level=logging.WARNING)
        real = importlib.metadata.version
        def version(name):
            if name == "langchain":
                raise importlib.metadata.PackageNotFoundError(name)
            return real(name)
        importlib.metadata.version = version
        sys.modules["langchain"] = None
        import otel_llm_energy
        energy = otel_llm_energy.instrument(meters="cpu-estimate")
        from langgraph.pregel import Pregel
        assert hasattr(vars(Pregel)["stream"], "__wrapped__")
        energy.uninstrument()
        assert not hasattr(vars(Pregel)["stream"], "__wrapped__")
    """
    assert run_alone(script) == ""


def test_langchain_stays_as_it_is_when_ours_was_undone_before_the_app_imports_it() -> None:
    """The hooks on its import outlive it."""
    script = """
        import otel_llm_energy
        otel_llm_energy.instrument(meters="cpu-estimate").uninstrument()
        from langgraph.pregel import Pregel
        from langchain_core.callbacks import BaseCallbackManager
        from langchain_openai import ChatOpenAI
        assert not hasattr(vars(BaseCallbackManager)["__init__"], "__wrapped__")
        assert not hasattr(vars(Pregel)["stream"], "__wrapped__")
    """
    assert run_alone(script) == ""


def test_official_instrumentation_is_the_apps_own_when_the_app_imports_it_first_and_turns_it_on() -> None:
    """As `opentelemetry-instrument` may: once, without a word, and it stays on when ours is undone."""
    script = """
        import logging
        logging.basicConfig(level=logging.WARNING)
        import otel_llm_energy
        energy = otel_llm_energy.instrument(meters="cpu-estimate")
        from opentelemetry.instrumentation.genai.langchain import LangChainInstrumentor
        LangChainInstrumentor().instrument()
        from langchain_core.callbacks import BaseCallbackManager
        from langgraph.pregel import Pregel
        def seams():
            return [vars(owner)[name] for owner, name in ((BaseCallbackManager, "__init__"), (Pregel, "stream"))]
        on = seams()
        energy.uninstrument()
        assert seams() == on
        LangChainInstrumentor().uninstrument()
        assert not any(hasattr(seam, "__wrapped__") for seam in seams())
    """
    assert run_alone(script) == ""


def test_official_instrumentation_is_tried_again_after_it_failed() -> None:
    """At the next import that it could hang on to; a failure may be that of two threads that import at once."""
    script = """
        import logging, sys
        logging.basicConfig(format="%(message)s")
        from opentelemetry.util.genai import completion_hook
        real = completion_hook.load_completion_hook
        def fails():
            completion_hook.load_completion_hook = real
            sys.modules["opentelemetry.instrumentation.genai.langchain"].load_completion_hook = real
            raise RuntimeError("only once")
        completion_hook.load_completion_hook = fails
        import otel_llm_energy
        energy = otel_llm_energy.instrument(meters="cpu-estimate")
        import langchain_core
        from langchain_core.callbacks import BaseCallbackManager
        assert not hasattr(vars(BaseCallbackManager)["__init__"], "__wrapped__")
        import langgraph.pregel
        wrapper = vars(BaseCallbackManager)["__init__"]
        assert hasattr(wrapper, "__wrapped__")
        energy.uninstrument()
        assert vars(BaseCallbackManager)["__init__"] is wrapper.__wrapped__
    """
    said = run_alone(script)
    assert said.startswith("LangChain is not instrumented")
    assert said.count("LangChain is not instrumented") == 1


def test_official_instrumentation_that_fails_half_way_leaves_nothing_behind(
    provider: TracerProvider,  # noqa: F811
    powercap: PowercapTree,
    exporter: InMemorySpanExporter,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What it had wrapped is as before, the client's own span has the bill, and ours can be undone."""

    def fails(_: object) -> None:
        raise RuntimeError("half way")

    before = vars(BaseCallbackManager)["__init__"]
    monkeypatch.setattr(f"{_OFFICIAL}._execution_context._ExecutionContext.instrument", fails)
    with measuring(provider, powercap) as energy, replaying() as server:
        assert vars(BaseCallbackManager)["__init__"] is before
        server.reply = json_reply(payloads.chat())
        ChatOpenAI(model="m", base_url=f"{server.url}/v1", api_key="k").invoke("Hello")
        energy.force_flush()
    assert not energy.active
    (call,) = Trace(exporter.get_finished_spans()).calls
    assert call.instrumentation_scope is not None
    assert call.instrumentation_scope.name == "otel_llm_instrumentation.openai"
    assert names.QUALITY in Trace.said(call)


@pytest.mark.parametrize("is_on", [True, False])
@pytest.mark.parametrize(
    ("library", "instrumentor"),
    [
        ("opentelemetry.instrumentation.langchain", "LangchainInstrumentor"),
        ("openinference.instrumentation.langchain", "LangChainInstrumentor"),
    ],
)
def test_official_instrumentation_is_turned_on_only_when_no_other_one_is(
    is_on: bool, library: str, instrumentor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which has been imported, at least."""
    another = ModuleType(library)
    instance = SimpleNamespace(is_instrumented_by_opentelemetry=is_on)
    setattr(another, instrumentor, SimpleNamespace(_instance=instance))
    monkeypatch.setitem(sys.modules, library, another)
    LangChainInstrumentor().instrument()
    is_wrapped = hasattr(vars(BaseCallbackManager)["__init__"], "__wrapped__")
    LangChainInstrumentor().uninstrument()
    assert is_wrapped is not is_on


def test_official_instrumentation_gives_way_at_the_first_span_of_another_one(
    recorded: tuple[ReplayServer, ChatOpenAI],
    provider: TracerProvider,  # noqa: F811
    traced: Callable[[], Trace],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It says so once. A call of which the other makes no span has the client's."""
    server, model = recorded
    another = provider.get_tracer("openinference.instrumentation.langchain")
    with caplog.at_level(logging.INFO, logger="otel_llm_instrumentation"):
        for name in ("first", "second"):
            another.start_span(name).end()
    (said,) = [record.getMessage() for record in caplog.records if record.name == "otel_llm_instrumentation"]
    assert said.startswith("openinference.instrumentation.langchain makes the spans of LangChain")
    assert not hasattr(vars(BaseCallbackManager)["__init__"], "__wrapped__")
    server.reply = json_reply(payloads.chat())
    model.invoke("Hello")
    (call,) = traced().calls
    assert call.instrumentation_scope is not None
    assert call.instrumentation_scope.name == "otel_llm_instrumentation.openai"


def test_langchain_is_left_alone_when_the_official_instrumentation_is_not_installed() -> None:
    """It comes with an extra; nothing is logged."""
    script = """
        import logging, sys
        logging.basicConfig(level=logging.WARNING)
        sys.modules["opentelemetry.instrumentation.genai"] = None
        import otel_llm_energy
        energy = otel_llm_energy.instrument(meters="cpu-estimate")
        from langchain_core.callbacks import BaseCallbackManager
        from langgraph.pregel import Pregel
        assert not hasattr(vars(BaseCallbackManager)["__init__"], "__wrapped__")
        energy.uninstrument()
    """
    assert run_alone(script) == ""


def test_clients_own_spans_carry_the_energy_when_langchain_is_not_instrumented(
    provider: TracerProvider,  # noqa: F811
    powercap: PowercapTree,
    exporter: InMemorySpanExporter,  # noqa: F811
    llama_server: LlamaServerFactory,
) -> None:
    """As without the extra: each below whatever is current."""
    options: dict[str, Any] = {"meters": "rapl", "powercap_root": powercap.root, "clients": ["openai", "ollama"]}
    energy = otel_llm_energy.instrument(tracer_provider=provider, **options)
    until(lambda: bool(energy.status().channels))
    model = ChatOpenAI(model="m", base_url=llama_server().base_url, api_key="k", max_tokens=4, max_retries=0)
    with provider.get_tracer("app").start_as_current_span("request") as request:
        (ChatPromptTemplate.from_template("{question}") | model).batch([_QUESTION] * 2)
    energy.uninstrument()
    trace = Trace(exporter.get_finished_spans())
    assert len(trace.calls) == 2
    for call in trace.calls:
        assert call.instrumentation_scope is not None
        assert call.instrumentation_scope.name == "otel_llm_instrumentation.openai"
        assert call.parent is not None
        assert call.parent.span_id == request.get_span_context().span_id
        assert names.JOULES in trace.said(call)

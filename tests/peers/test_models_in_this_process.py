"""LangChain's models that run in this process are calls of this process.

llama-cpp-python would have to be compiled, and torch is too large to be fetched for this: what LangChain asks for of
them is stood in for by what uses CPU time. LangChain's own classes are the real ones.
"""

from __future__ import annotations

import logging
import os
import queue
import sys
import time
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import otel_llm_energy
from otel_llm_energy import Instrumentation
from otel_llm_energy import conventions as names
from otel_llm_instrumentation.langchain import LangChainInstrumentor
from otel_llm_instrumentation.local import LocalModelInstrumentor
from tests.instrument.asking import measuring, said
from tests.instrument.conftest import exporter, provider  # noqa: F401 - fixtures
from tests.support.cpu_time import tree_cpu_ns
from tests.support.powercap import PowercapTree

_CPU_SECONDS = 0.5
_WATTS_PER_CPU = 66  # of the synthetic counters
_USAGE = {"prompt_tokens": 5, "completion_tokens": 8, "total_tokens": 13}


def burn() -> None:
    until_seconds = time.thread_time() + _CPU_SECONDS
    while time.thread_time() < until_seconds:
        sum(range(1000))


class BurningLlama:
    """Stands in for ``llama_cpp.Llama``: answers after half a CPU second."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def create_chat_completion(self, *_: object, stream: bool = False, **__: object) -> Any:
        burn()
        message = {"role": "assistant", "content": "Paris."}
        if not stream:
            return {"choices": [{"message": message, "finish_reason": "stop"}], "usage": _USAGE}
        return iter([{"choices": [{"delta": message, "finish_reason": None}]}])


class QuickLlama:
    """Stands in for ``llama_cpp.Llama`` where nobody looks at the joules."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def create_chat_completion(self, *_: object, **__: object) -> Any:
        return iter([{"choices": [{"delta": {"role": "assistant", "content": text}}]} for text in ("Par", "is.")])

    def __call__(self, *_: object, stream: bool = False, **__: object) -> Any:
        answer = {"choices": [{"text": "Paris."}], "usage": _USAGE}
        return iter([answer]) if stream else answer


class QuickGPT4All:
    """Stands in for ``gpt4all.GPT4All``."""

    model_type = "llama"

    def __init__(self, *_: object, **__: object) -> None:
        self.model = self

    def set_thread_count(self, _: int) -> None: ...

    def generate(self, *_: object, **__: object) -> Iterator[str]:
        yield "Paris."


class QuickPipeline:
    """Stands in for a pipeline of transformers, and for its model and tokenizer."""

    task = "text-generation"

    def __init__(self) -> None:
        self.model = self.tokenizer = self

    def __call__(self, prompts: Any, **_: object) -> Any:
        return [[{"generated_text": "Paris."}] for _ in prompts] if isinstance(prompts, list) else {}

    def generate(self, streamer: Streamer, **_: object) -> None:
        streamer.texts.put("Paris.")
        streamer.texts.put(None)


class Streamer:
    """Stands in for ``transformers.TextIteratorStreamer``."""

    def __init__(self, *_: object, **__: object) -> None:
        self.texts: queue.Queue[str | None] = queue.Queue()

    def __iter__(self) -> Iterator[str]:
        return iter(self.texts.get, None)  # type: ignore[arg-type]


class QuickHuggingFacePipeline:
    """Stands in for the class of langchain-huggingface, which would fetch torch."""

    model_id = "HuggingFaceTB/SmolLM2-135M"

    def _generate(self, _: list[str]) -> str:
        return "".join(self._stream())

    def _stream(self) -> Iterator[str]:
        yield "Paris."


def _pretend(patch: pytest.MonkeyPatch, name: str, **contents: object) -> None:
    """A module of this name is installed, and holds these."""
    module = ModuleType(name)
    vars(module).update(contents)
    patch.setitem(sys.modules, name, module)


@pytest.fixture
def llama_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    _pretend(monkeypatch, "llama_cpp", Llama=BurningLlama, LlamaGrammar=object)


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that LangChain's models of this process need; they answer at once."""
    _pretend(monkeypatch, "llama_cpp", Llama=QuickLlama, LlamaGrammar=object)
    _pretend(monkeypatch, "gpt4all", GPT4All=QuickGPT4All)
    _pretend(monkeypatch, "torch", LongTensor=object, FloatTensor=object)
    criteria = {"StoppingCriteria": object, "StoppingCriteriaList": list}
    _pretend(monkeypatch, "transformers", TextIteratorStreamer=Streamer, **criteria)
    pipelines = "langchain_huggingface.llms.huggingface_pipeline"
    _pretend(monkeypatch, pipelines, HuggingFacePipeline=QuickHuggingFacePipeline)


@pytest.fixture
def energy(provider: TracerProvider, powercap: PowercapTree) -> Iterator[Instrumentation]:  # noqa: F811
    with measuring(provider, powercap) as energy:
        yield energy


@pytest.mark.parametrize("streaming", [False, True])
def test_chat_of_a_model_in_this_process_is_billed_by_this_processs_work(
    streaming: bool,
    llama_cpp: None,
    energy: Instrumentation,
    exporter: InMemorySpanExporter,  # noqa: F811
) -> None:
    """One span, whether LangChain generates or streams; tokens where the library reports them."""
    from langchain_community.chat_models import ChatLlamaCpp

    model = ChatLlamaCpp(model_path="/models/smollm2.gguf", streaming=streaming)
    before_ns = tree_cpu_ns(os.getpid())
    model.invoke("What is the capital of France?")
    used_seconds = (tree_cpu_ns(os.getpid()) - before_ns) / 1e9
    energy.force_flush()
    span = said(exporter, "chat smollm2.gguf")
    assert span["gen_ai.provider.name"] == "llama.cpp"
    assert "server.address" not in span
    assert "gen_ai.request.stream" not in span
    assert span[names.ABOVE_IDLE_JOULES] == pytest.approx(_WATTS_PER_CPU * used_seconds, rel=0.4)
    assert span.get("gen_ai.usage.input_tokens") == (None if streaming else 5)
    assert span.get("gen_ai.usage.output_tokens") == (None if streaming else 8)


def test_measurement_around_it_keeps_only_the_rest(
    llama_cpp: None,
    energy: Instrumentation,
    exporter: InMemorySpanExporter,  # noqa: F811
) -> None:
    """Each joule is on one span."""
    from langchain_community.chat_models import ChatLlamaCpp

    with otel_llm_energy.measure("app"):
        ChatLlamaCpp(model_path="/models/smollm2.gguf", streaming=False).invoke("What is the capital of France?")
    energy.force_flush()
    app, call = said(exporter, "app"), said(exporter, "chat smollm2.gguf")
    assert app[names.JOULES] < call[names.JOULES] / 2
    assert app[names.SUBTREE_JOULES] == pytest.approx(app[names.JOULES] + call[names.JOULES], rel=1e-4)


def test_hugging_face_pipeline_is_billed_by_this_processs_work(
    energy: Instrumentation,
    exporter: InMemorySpanExporter,  # noqa: F811
) -> None:
    """Its class, with a pipeline that only burns."""
    from langchain_community.llms.huggingface_pipeline import HuggingFacePipeline

    def pipeline(prompts: list[str], **_: object) -> list[list[dict[str, str]]]:
        burn()
        return [[{"generated_text": f"{prompt} Paris."}] for prompt in prompts]

    pipeline.task = "text-generation"  # type: ignore[attr-defined]
    model = HuggingFacePipeline(pipeline=pipeline, model_id="HuggingFaceTB/SmolLM2-135M")
    assert "Paris." in model.invoke("The capital of France is")
    energy.force_flush()
    span = said(exporter, "text_completion SmolLM2-135M")
    assert span["gen_ai.provider.name"] == "huggingface"
    assert span[names.ABOVE_IDLE_JOULES] > 0.6 * _WATTS_PER_CPU * _CPU_SECONDS


def chat_llama_cpp() -> Any:
    from langchain_community.chat_models import ChatLlamaCpp

    return ChatLlamaCpp(model_path="/models/smollm2.gguf")


def llama_cpp_completion(streaming: bool) -> Any:
    from langchain_community.llms import LlamaCpp

    return LlamaCpp(model_path="/models/smollm2.gguf", streaming=streaming)


def gpt4all() -> Any:
    from langchain_community.llms import GPT4All

    return GPT4All(model="/models/orca-mini.gguf")


def pipeline_of_community() -> Any:
    from langchain_community.llms.huggingface_pipeline import HuggingFacePipeline

    return HuggingFacePipeline(pipeline=QuickPipeline(), model_id="HuggingFaceTB/SmolLM2-135M")


def pipeline_of_langchain_huggingface() -> Any:
    return sys.modules["langchain_huggingface.llms.huggingface_pipeline"].HuggingFacePipeline()


CHAT, COMPLETION = ("chat smollm2.gguf", "llama.cpp"), ("text_completion smollm2.gguf", "llama.cpp")
PIPELINE = ("text_completion SmolLM2-135M", "huggingface")
# What is called, and the span's name and provider.
GENERATIONS: dict[str, tuple[Callable[[], object], tuple[str, str]]] = {
    "chat, streamed": (lambda: list(chat_llama_cpp().stream("x")), CHAT),
    "completion": (lambda: llama_cpp_completion(False).invoke("x"), COMPLETION),
    "completion by a stream": (lambda: llama_cpp_completion(True).invoke("x"), COMPLETION),
    "completion, streamed": (lambda: list(llama_cpp_completion(True).stream("x")), COMPLETION),
    "gpt4all": (lambda: gpt4all().invoke("x"), ("text_completion orca-mini.gguf", "gpt4all")),
    "pipeline": (lambda: pipeline_of_community().invoke("x"), PIPELINE),
    "pipeline, streamed": (lambda: list(pipeline_of_community().stream("x")), PIPELINE),
    "langchain-huggingface": (lambda: pipeline_of_langchain_huggingface()._generate(["x"]), PIPELINE),
    "langchain-huggingface, streamed": (lambda: list(pipeline_of_langchain_huggingface()._stream()), PIPELINE),
}


@pytest.mark.parametrize("generation", GENERATIONS)
def test_each_generation_of_a_model_in_this_process_is_one_call(
    generation: str,
    libraries: None,
    energy: Instrumentation,
    exporter: InMemorySpanExporter,  # noqa: F811
) -> None:
    """By whichever of its methods LangChain has it generate; one that calls another is not two."""
    generate, (name, provider_name) = GENERATIONS[generation]
    assert generate()
    energy.force_flush()
    (span,) = exporter.get_finished_spans()
    attributes = dict(span.attributes or {})
    assert (span.name, attributes["gen_ai.provider.name"]) == (name, provider_name)
    assert names.QUALITY in attributes
    assert ("gen_ai.response.time_to_first_chunk" in attributes) is generation.endswith("streamed")


@pytest.mark.parametrize(
    "ask", [lambda model: model.invoke("x"), lambda model: list(model.stream("x"))], ids=["whole", "streamed"]
)
def test_failure_of_a_model_in_this_process_is_the_apps_and_ends_the_call(
    ask: Callable[[Any], object],
    libraries: None,
    energy: Instrumentation,
    exporter: InMemorySpanExporter,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The app gets what was raised, the span says it, and the log nothing: there was no answer to be read."""

    def fails(*_: object, **__: object) -> None:
        raise MemoryError("the prompt")

    monkeypatch.setattr(QuickLlama, "create_chat_completion", fails)
    model = chat_llama_cpp()
    with caplog.at_level(logging.DEBUG, logger="otel_llm_instrumentation"), pytest.raises(MemoryError):
        ask(model)
    energy.force_flush()
    (span,) = exporter.get_finished_spans()
    assert (span.attributes or {})["error.type"] == "MemoryError"
    assert not span.status.is_ok
    assert names.QUALITY in (span.attributes or {})
    assert [record for record in caplog.records if record.name.startswith("otel_llm")] == []


def test_instrumentors_of_langchain_work_by_themselves(
    libraries: None,
    provider: TracerProvider,  # noqa: F811
    exporter: InMemorySpanExporter,  # noqa: F811
) -> None:
    """Without the energy layer: the step's span, the model's below it, and none any more once they are undone."""
    from langchain_core.runnables import RunnableLambda

    step = RunnableLambda(lambda question: question) | llama_cpp_completion(False)
    instrumentors = (LangChainInstrumentor(), LocalModelInstrumentor())
    for instrumentor in instrumentors:
        instrumentor.instrument(tracer_provider=provider)
    step.invoke("x")
    for instrumentor in instrumentors:
        instrumentor.uninstrument()
    step.invoke("x")
    model, workflow = exporter.get_finished_spans()
    assert (model.name, workflow.name) == ("text_completion smollm2.gguf", "invoke_workflow RunnableSequence")
    assert model.parent == workflow.context

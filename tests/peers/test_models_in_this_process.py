"""LangChain's models that run in this process are calls of this process.

llama-cpp-python would have to be compiled, and torch is too large to be fetched for this: what LangChain asks for of
them is stood in for by what uses CPU time. LangChain's own classes are the real ones.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import otel_llm_energy
from otel_llm_energy import Instrumentation
from otel_llm_energy import conventions as names
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


@pytest.fixture
def llama_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = ModuleType("llama_cpp")
    module.Llama, module.LlamaGrammar = BurningLlama, object
    monkeypatch.setitem(sys.modules, "llama_cpp", module)


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
    assert span[names.ABOVE_IDLE_JOULES] == pytest.approx(_WATTS_PER_CPU * used_seconds, rel=0.4)
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

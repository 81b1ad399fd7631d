"""Models of LangChain that run in the app's own process: llama-cpp-python, GPT4All and Hugging Face pipelines.

There is no server to be called, so the seam is where LangChain has the model generate. The calls are marked as such.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from types import GeneratorType, ModuleType
from typing import ClassVar, Final, NamedTuple

from otel_llm_instrumentation import semconv
from otel_llm_instrumentation.call import Call, Lease, begin_call
from otel_llm_instrumentation.facts import Facts, Request, Route, as_count, as_text, fields
from otel_llm_instrumentation.instrumentor import ClientInstrumentor
from otel_llm_instrumentation.patching import Patch
from otel_llm_instrumentation.providers import GPT4ALL, LLAMA_CPP
from otel_llm_instrumentation.streams import watched
from otel_llm_instrumentation.watcher import Watcher, watch

HUGGING_FACE: Final = "huggingface"


class _Model(NamedTuple):
    """A class of models, its methods that generate, and the field that names its model."""

    class_name: str
    methods: tuple[str, ...]
    provider: str
    operation: str
    named_by: str


_MODELS: Final[Mapping[str, _Model]] = {
    "langchain_community.chat_models.llamacpp": _Model(
        "ChatLlamaCpp", ("_generate", "_stream"), LLAMA_CPP, semconv.CHAT, "model_path"
    ),
    "langchain_community.llms.llamacpp": _Model(
        "LlamaCpp", ("_call", "_stream"), LLAMA_CPP, semconv.TEXT_COMPLETION, "model_path"
    ),
    "langchain_community.llms.gpt4all": _Model("GPT4All", ("_call",), GPT4ALL, semconv.TEXT_COMPLETION, "model"),
    "langchain_community.llms.huggingface_pipeline": _Model(
        "HuggingFacePipeline", ("_generate", "_stream"), HUGGING_FACE, semconv.TEXT_COMPLETION, "model_id"
    ),
    "langchain_huggingface.llms.huggingface_pipeline": _Model(
        "HuggingFacePipeline", ("_generate", "_stream"), HUGGING_FACE, semconv.TEXT_COMPLETION, "model_id"
    ),
}


def read_result(payloads: Sequence[object]) -> Facts:
    """What LangChain's result of a generation, or the last of its chunks, tells of tokens."""
    last = fields(payloads[-1]) if payloads else {}
    usage = fields(fields(last.get("llm_output")).get("token_usage"))
    return Facts(
        input_tokens=as_count(usage.get("prompt_tokens")), output_tokens=as_count(usage.get("completion_tokens"))
    )


class LocalModelWatcher(Watcher):
    """Observes the methods of one class of models. One that calls another of them is one call."""

    _model: _Model

    def patches(self, module: ModuleType) -> tuple[Patch, ...]:
        self._model = _MODELS[module.__name__]
        owner = getattr(module, self._model.class_name)
        return tuple(Patch(owner, name, lambda original: watch(original, self)) for name in self._model.methods)

    def _begin(self, client: object, args: tuple[object, ...], kwargs: Mapping[str, object]) -> Call | None:
        named = as_text(getattr(client, self._model.named_by, None))
        model = None if named is None else PurePath(named).name
        route = Route(self._model.operation, {}, read_result)
        request = Request(route, self._model.provider, model, None, None, streaming=False, in_process=True)
        return begin_call(self.telemetry, request)

    def _deliver(self, call: Call, result: object) -> object:
        if isinstance(result, GeneratorType):
            return watched(Lease(call), result)
        call.see(result)
        call.end()
        return result


class LocalModelInstrumentor(ClientInstrumentor):
    """Puts a span on every generation of a LangChain model in this process. Never imports LangChain."""

    _watcher_types: ClassVar = dict.fromkeys(_MODELS, LocalModelWatcher)

    def instrumentation_dependencies(self) -> tuple[str, ...]:
        return ()

"""Spans of other instrumentations that stand for a call already: ours then steps aside.

Most of them make theirs the current span, marked as a call from its start. Some do not make it current; those are
found if a span processor, which hears of every span that starts, calls `note_started`.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import weakref
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, Final

from opentelemetry.context import Context, get_current
from opentelemetry.trace import Span, SpanKind, get_current_span

from otel_llm_instrumentation import semconv

_Marks = Mapping[str, frozenset[str]]

_GENERATION: Final[_Marks] = {
    "gen_ai.operation.name": frozenset({"chat", "text_completion", "generate_content"}),
    "openinference.span.kind": frozenset({"LLM"}),
    "llm.request.type": frozenset({"chat", "completion"}),
}
_EMBEDDINGS: Final[_Marks] = {
    "gen_ai.operation.name": frozenset({"embeddings"}),
    "openinference.span.kind": frozenset({"EMBEDDING"}),
    "llm.request.type": frozenset({"embedding"}),
}
_MARKS: Final = frozenset(_GENERATION)
_OPERATION_NAMES: Final = ("chat", "text_completion", "generate_content", "embeddings")
# Set by opentelemetry-util-genai while a span of its own stands for the call; ``None`` once that has ended.
_INFERENCE_KEY: Final = "opentelemetry.genai.client.inference.context"
_EMBEDDING_KEY: Final = "opentelemetry.genai.client.embedding.context"
# These say what a span is only after it was started, so all their spans are worth a second look.
_OPENINFERENCE_LANGCHAIN: Final = "openinference.instrumentation.langchain"
_OPENLLMETRY_LANGCHAIN: Final = "opentelemetry.instrumentation.langchain"
_SILENT_SCOPES: Final = frozenset({_OPENINFERENCE_LANGCHAIN, _OPENLLMETRY_LANGCHAIN})
_CHAT_ONLY_SCOPE: Final = "openinference.instrumentation.ollama"
# OpenLLMetry's for LangChain sets it below each span of a call, and cannot take it back in asynchronous code.
OPENLLMETRY_KEY: Final = "suppress_language_model_instrumentation"
# Where OpenInference's span keeps its kind until it ends, unless it got it as it started.
_KEPT_BACK: Final = "_self_important_attributes"
_OUR_SCOPES: Final = "otel_llm_instrumentation."
# On a span itself, so that it is known in every thread and task, and no longer than the span is.
_STANDS_ABOVE: Final = "_otel_llm_stands_above"


class _StartedSpan:
    """A span that was started in this context, for the one call that may be its own."""

    __slots__ = ("_key_left", "_span", "_untaken")

    def __init__(self, span: Span) -> None:
        self._span = weakref.ref(span)
        self._key_left = _is_key_left_by(span)
        self._untaken = threading.Lock()  # held from the time on when the span is taken, for good

    def take(self, operation: str, model: str | None) -> Span | None:
        """The span, if it is open, stands for a call of this operation and model, and was not taken yet."""
        span = self._open(operation)
        if span is None or _is_of_another(span, model):
            return None
        return span if self._untaken.acquire(blocking=False) else None

    def take_around(self, current: Span, operation: str) -> Span | None:
        """The span, if it is open, stands for a call of this operation, and ``current`` is in its trace."""
        span = self._open(operation)
        if span is None or span.get_span_context().trace_id != current.get_span_context().trace_id:
            return None
        self._untaken.acquire(blocking=False)
        return span

    @property
    def key_left(self) -> bool:
        """Whether this span, which is over then, or one before it left OpenLLMetry's key behind in this context."""
        if self._key_left is None:
            span = self._span()
            return span is None or not span.is_recording()
        return self._key_left

    def pass_by(self, span: Span) -> None:
        """The calls of ``span`` are found without this; if it is this one, let it be taken for no other."""
        if self._span() is span:
            self._untaken.acquire(blocking=False)

    def _open(self, operation: str) -> Span | None:
        span = self._span()
        return span if span is not None and stands_for(span, operation) else None


_started_span: ContextVar[_StartedSpan | None] = ContextVar("otel_llm_instrumentation.started_span", default=None)


def is_ours(span: Span) -> bool:
    """Whether one of our instrumentors made this span."""
    return _scope_of(span).startswith(_OUR_SCOPES)


def note_started(span: Span, parent_context: Context | None = None) -> bool:
    """Note a span that starts in this context; whether it is, or may turn out to be, another library's LLM span."""
    scope = _scope_of(span)
    if scope.startswith(_OUR_SCOPES):
        return False
    if scope not in _SILENT_SCOPES and not _marks_a_call(_attributes_of(span)):
        _note_current(get_current() if parent_context is None else parent_context)
        return False
    _started_span.set(_StartedSpan(span))
    return True


def is_key_left_behind() -> bool:
    """Whether OpenLLMetry's key, which is set in this context, is nobody's wish any more."""
    started = _started_span.get()
    return started is not None and started.key_left


def _is_key_left_by(span: Span) -> bool | None:
    """The same of the context in which ``span`` starts; ``None``: it will be, once the span is over."""
    if OPENLLMETRY_KEY in get_current():
        return is_key_left_behind()
    is_call = _scope_of(span) == _OPENLLMETRY_LANGCHAIN and getattr(span, "kind", None) is SpanKind.CLIENT
    return None if is_call and _is_asynchronous() else False


def _is_asynchronous() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _note_current(context: Context) -> None:
    """Some span starts, perhaps below util-genai's for a call, which then is the current one no more."""
    if context and (context.get(_INFERENCE_KEY) is not None or context.get(_EMBEDDING_KEY) is not None):
        current = get_current_span(context)
        if _marks_a_call(_attributes_of(current)):
            started = _StartedSpan(current)
            started.pass_by(current)
            _started_span.set(started)


def standing_span(operation: str, model: str | None, context: Context) -> Span | None:
    """The span of another instrumentation that stands for a call of this operation and model, made in this context."""
    started = _started_span.get()
    if context:
        key = _EMBEDDING_KEY if operation == semconv.EMBEDDINGS else _INFERENCE_KEY
        current = get_current_span(context)
        if stands_for(current, operation):
            if started is not None:  # it stays open while the app reads a stream, and may make other calls
                started.pass_by(current)
            return current
        if context.get(key) is not None:  # the app, or its HTTP client's instrumentation, made a span of its own below
            return (started.take_around(current, operation) if started is not None else None) or current
    return started.take(operation, model) if started is not None else None


def note_above(context: Context) -> None:
    """A call gets a span of its own here: the current one, if it says of no call, does not come to be one later.

    LiteLLM writes what it knows of each call that is over, its operation among it, on the span that the app has open.
    """
    if context:
        current = get_current_span(context)
        if current.is_recording() and not _marks_a_call(_attributes_of(current)):
            with contextlib.suppress(AttributeError):  # of a kind that takes none
                setattr(current, _STANDS_ABOVE, True)


def stands_for(span: Span, operation: str) -> bool:
    """Whether an open span says of itself that it is one call of this operation."""
    if not span.is_recording() or hasattr(span, _STANDS_ABOVE):
        return False
    if _is_marked(_attributes_of(span), _EMBEDDINGS if operation == semconv.EMBEDDINGS else _GENERATION):
        return True
    if getattr(span, "kind", None) is SpanKind.CLIENT and _is_named_for(span, operation):
        return True
    scope = _scope_of(span)
    if scope == _CHAT_ONLY_SCOPE:
        return operation == semconv.CHAT
    return scope == _OPENINFERENCE_LANGCHAIN and operation != semconv.EMBEDDINGS and _is_model_run(span)


def _attributes_of(span: Span) -> Mapping[str, object]:
    """As a plain dict: every look at the SDK's own view is a Python call."""
    attributes: Any = getattr(span, "_attributes", None)
    said = attributes.copy() if attributes is not None else {}
    kept_back: Any = getattr(span, _KEPT_BACK, None)
    return {**said, **kept_back} if kept_back else said


def _marks_a_call(attributes: Mapping[str, object]) -> bool:
    if _MARKS.isdisjoint(attributes):
        return False
    return _is_marked(attributes, _GENERATION) or _is_marked(attributes, _EMBEDDINGS)


def _is_marked(attributes: Mapping[str, object], marks: _Marks) -> bool:
    if marks.keys().isdisjoint(attributes):
        return False
    return any(attributes.get(mark) in values for mark, values in marks.items())


def _is_named_for(span: Span, operation: str) -> bool:
    """OpenLIT's spans have the conventional name and kind at once, and say more only when they end."""
    name = str(getattr(span, "name", "")).partition(" ")[0]
    return name in _OPERATION_NAMES and (name == semconv.EMBEDDINGS) == (operation == semconv.EMBEDDINGS)


def _is_of_another(span: Span, model: str | None) -> bool:
    """Whether a span says that it asks another model: calls of some libraries are not ours to see, their spans are."""
    asked = _attributes_of(span).get(semconv.REQUEST_MODEL)
    return model is not None and asked is not None and asked != model


def _scope_of(span: Span) -> str:
    return getattr(getattr(span, "instrumentation_scope", None), "name", None) or ""


def _is_model_run(span: Span) -> bool:
    """OpenInference's LangChain tracer knows a span's run from the start, and says its kind on it at the end."""
    module = sys.modules.get(_OPENINFERENCE_LANGCHAIN)
    instrumentor = getattr(getattr(module, "LangChainInstrumentor", None), "_instance", None)
    tracer: Any = getattr(instrumentor, "_tracer", None)
    if tracer is None:
        return False
    span_id = span.get_span_context().span_id
    for run_id, run in list(tracer.run_map.items()):
        known = tracer.get_span(run.id)
        if known is not None and known.get_span_context().span_id == span_id:
            return getattr(tracer.run_map.get(run_id), "run_type", None) in ("llm", "chat_model")
    return False

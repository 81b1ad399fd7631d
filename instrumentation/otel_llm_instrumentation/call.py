"""One LLM call from its start to its only end, whoever ends it."""

from __future__ import annotations

import functools
import json
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar

from opentelemetry.context import (
    _SUPPRESS_INSTRUMENTATION_KEY,
    Context,
    attach,
    create_key,
    detach,
    get_current,
)
from opentelemetry.trace import INVALID_SPAN, Span, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.util.types import AttributeValue

from otel_llm_instrumentation import semconv
from otel_llm_instrumentation.attributes import add_clean
from otel_llm_instrumentation.backlog import is_inside_sdk
from otel_llm_instrumentation.calls import CallObserver, CallView, ServerTimings, observers
from otel_llm_instrumentation.content import Asked, Content, as_json, as_structure, content_attributes
from otel_llm_instrumentation.conversations import conversation_in
from otel_llm_instrumentation.errors import is_no_connection
from otel_llm_instrumentation.facts import NS_PER_SECOND, Facts, Request
from otel_llm_instrumentation.standing import OPENLLMETRY_KEY, is_key_left_behind, note_above, standing_span
from otel_llm_instrumentation.telemetry import Telemetry

_T = TypeVar("_T")

_OUR_CALL = create_key("otel_llm_instrumentation.call")
# What says that a call is not to be observed: the keys of `is_instrumentation_enabled`, which looks them up one by
# one in the current context, and OpenLLMetry's. Libraries also set them below a span of theirs that stands for a call.
_SUPPRESSION_KEYS = (
    _SUPPRESS_INSTRUMENTATION_KEY,
    "suppress_instrumentation",
    OPENLLMETRY_KEY,
)

_NOTHING: Final[Mapping[str, Any]] = {}
_PAYLOADS_KEPT = 3
# A consumer that goes away, or a stream that runs out, is no failure of the call.
_ORDINARY_ENDINGS = (GeneratorExit, StopIteration, StopAsyncIteration)


def begin_call(telemetry: Telemetry, request: Request) -> Call | None:
    """Start a call, or say ``None`` where another call of ours, or the user's wish, leaves nothing to observe.

    Where a span of another instrumentation stands for the call, it is observed without a span of ours.
    """
    context = get_current()
    if _OUR_CALL in context:
        return None
    observed = is_observed(context)
    # Libraries that suppress what is below a span of theirs may not name the model on it as the request does.
    standing = standing_span(request.route.operation, request.model if observed else None, context)
    if standing is None:
        if not observed:
            return None
        note_above(context)
    return Call(telemetry, request, context, standing)


def is_below_a_call() -> bool:
    """Whether a call of ours goes on around the current context."""
    return _OUR_CALL in get_current()


def is_observed(context: Context | None = None) -> bool:
    """Whether a call that begins in ``context`` (default: the current one) would be a call of its own."""
    context = get_current() if context is None else context
    if context:  # most are empty
        if _OUR_CALL in context:
            return False
        for key in _SUPPRESSION_KEYS:
            if context.get(key) and not (key is OPENLLMETRY_KEY and is_key_left_behind()):
                return False
    return True


class Call:
    """The one owner of a call's span and of what observers are told. It satisfies `CallView`.

    It ends exactly once: `end` may be called from every place that can notice the end, in any thread, and the
    first one wins. Nothing here raises into the app.
    """

    __slots__ = (
        "__weakref__",
        "_asked",
        "_content",
        "_observers",
        "_once",
        "_outer_error",
        "_payloads",
        "_pid",
        "_read",
        "_telemetry",
        "cached_input_tokens",
        "context",
        "ended_ns",
        "error_type",
        "evident_provider",
        "first_chunk_ns",
        "in_process",
        "input_tokens",
        "operation",
        "output_tokens",
        "owns_span",
        "provider",
        "reached_server",
        "request_model",
        "response_id",
        "response_model",
        "see",
        "server_address",
        "server_port",
        "span",
        "started_ns",
        "streaming",
        "timings",
    )

    def __init__(self, telemetry: Telemetry, request: Request, context: Context, standing: Span | None = None) -> None:
        self.started_ns = time.monotonic_ns()
        self.first_chunk_ns: int | None = None
        self.ended_ns: int | None = None
        self.operation = request.route.operation
        self.provider = request.provider
        self.evident_provider: str | None = None  # who the headers of the answer show
        self.request_model = request.model
        self.response_model: str | None = None
        self.response_id: str | None = None
        self.server_address = request.address
        self.server_port = request.port
        self.in_process = request.in_process
        self.input_tokens: int | None = None
        self.output_tokens: int | None = None
        self.cached_input_tokens: int | None = None
        self.timings: ServerTimings | None = None
        self.error_type: str | None = None
        self.reached_server = True
        self.streaming = request.streaming
        self._telemetry = telemetry
        # `see` is the deque's own append, which runs in C: it is called for every chunk. The facts stand in the last
        # payloads of a stream: the last chunk, what Azure's filter found in it, and the usage. So a few are kept, of
        # which the memory is used again while it is in the CPU's caches; all of them only where content is captured, or
        # where there are several choices, each of which may end anywhere.
        self._content = request.route.content if standing is None and telemetry.capture.value else None
        self._asked: Asked | None = None
        kept = _PAYLOADS_KEPT if self._content is None and request.choices == 1 else None
        self._payloads: deque[object] = deque(maxlen=kept)
        self.see = self._payloads.append
        self._read = request.route.read
        self._outer_error = sys.exc_info()[1]
        self._once = threading.Lock()
        self._pid = os.getpid()
        self.owns_span = standing is None
        if self._content is not None:
            self._read_asked(self._content, request)
        if standing is None:
            self.span = self._start_span(request, context)
            context = set_span_in_context(self.span, context)
        else:
            self.span = standing
        self.context = Context({**context, _OUR_CALL: True})
        self._observers = observers()
        for observer in self._observers:
            self._tell(observer, "call_started", observer.call_started)

    @property
    def payloads_kept(self) -> int:
        """How many of the last payloads of a stream count."""
        return self._payloads.maxlen or sys.maxsize

    def run(self, function: Callable[..., _T], *args: object, **kwargs: object) -> _T:
        """Call ``function`` with this call's span as the current one."""
        token = attach(self.context)
        try:
            return function(*args, **kwargs)
        finally:
            detach(token)

    async def run_async(self, function: Callable[..., Awaitable[_T]], *args: object, **kwargs: object) -> _T:
        """Await ``function`` with this call's span as the current one."""
        token = attach(self.context)
        try:
            result = await function(*args, **kwargs)
        except GeneratorExit:
            raise  # a coroutine thrown away may be closed in another context, where the token means nothing
        except BaseException:
            detach(token)
            raise
        detach(token)
        return result

    def see_body(self, body: bytes) -> None:
        """Look at a whole answer in JSON."""
        try:
            self.see(json.loads(body))
        except ValueError:
            self._telemetry.complain(f"reading the JSON of {self.operation}", logging.DEBUG)

    def see_first_chunk(self) -> None:
        """The answer begins to arrive."""
        self.first_chunk_ns = time.monotonic_ns()
        for observer in self._observers:
            self._tell(observer, "first_chunk", observer.first_chunk)

    def end_by_the_exit(self) -> None:
        """Its answer is the app's to read, which may never do so."""
        self._telemetry.unread.add(self)

    def end_with_error_in_flight(self) -> None:
        """End at a close, with the exception that is being handled, unless it was when the call began."""
        error = sys.exc_info()[1]
        self.end(None if error is self._outer_error else error)

    def end(self, error: BaseException | None = None, *, collected: bool = False) -> None:
        """End the call; later ends do nothing.

        Args:
            error: what broke it off, ``None`` if nothing did.
            collected: it ends with what is deleted, so that a garbage collection may be the caller, or a forked child
                that lets go of its copy: the call is its parent's.
        """
        collected = collected or isinstance(error, GeneratorExit)
        if collected and os.getpid() != self._pid:
            return
        if not self._once.acquire(blocking=False):  # never released; never waited for, since collection ends calls too
            return
        self.ended_ns = time.monotonic_ns()
        ended_unix_ns = time.time_ns()
        outer_error, self._outer_error = self._outer_error, None
        if error is not None and not isinstance(error, _ORDINARY_ENDINGS):
            self.error_type = type(error).__qualname__
            self.reached_server = not is_no_connection(error, outer_error)
        inside_sdk = collected and is_inside_sdk()
        content = _NOTHING if self._content is None else self._read_content(self._content)
        try:
            self._note(self._read_facts(), inside_sdk)
        except Exception:  # noqa: BLE001 - the span must end and observers must hear of it
            self._telemetry.complain("writing a call's attributes")
        for observer in self._observers:
            self._tell(observer, "call_ended", observer.call_ended)
        backlog = self._telemetry.backlog
        if inside_sdk:
            backlog.add(functools.partial(self._report, content, ended_unix_ns))
            return
        if backlog:
            backlog.make_up()
        self._report(content, ended_unix_ns)

    def _start_span(self, request: Request, context: Context) -> Span:
        attributes = request.attributes
        attributes[semconv.OPERATION_NAME] = self.operation
        attributes[semconv.PROVIDER_NAME] = self.provider
        name = self.operation
        if self.request_model is not None:
            attributes[semconv.REQUEST_MODEL] = self.request_model
            name = f"{name} {self.request_model}"
        if self.server_address is not None:
            attributes[semconv.SERVER_ADDRESS] = self.server_address
            if self.server_port is not None:
                attributes[semconv.SERVER_PORT] = self.server_port
        if self.streaming:
            attributes[semconv.REQUEST_STREAM] = True
        if semconv.CONVERSATION_ID not in attributes and (conversation := conversation_in(context)) is not None:
            attributes[semconv.CONVERSATION_ID] = conversation
        try:
            return self._telemetry.tracer.start_span(name, context, SpanKind.CLIENT, attributes)
        except Exception:  # noqa: BLE001 - a sampler or processor that raises must not cost the app its call
            self._telemetry.complain("starting a span")
            return INVALID_SPAN

    def _tell(self, observer: CallObserver, what: str, method: Callable[[CallView], None]) -> None:
        try:
            method(self)
        except Exception:  # noqa: BLE001 - an observer's failure is its own
            self._telemetry.complain(f"{type(observer).__qualname__}.{what}")

    def _read_asked(self, content: Content, request: Request) -> None:
        try:
            self._asked = content.asked(request.body or {})
        except Exception:  # noqa: BLE001 - an odd request is the server's to refuse
            self._telemetry.complain(f"reading the content of a request of {self.operation}", logging.DEBUG)

    def _read_content(self, wanted: Content) -> Mapping[str, Any]:
        """Before the facts are read: they are the last to need the payloads."""
        try:
            content = content_attributes(self._asked, wanted.answered(self._payloads))
            if self._telemetry.capture.on_span:
                self.span.set_attributes({key: as_json(value) for key, value in content.items()})
        except Exception:  # noqa: BLE001 - content is the least of what the span says
            self._telemetry.complain(f"reading the content of {self.operation}")
            return _NOTHING
        finally:
            self._asked = None
        return content

    def _read_facts(self) -> Facts:
        try:
            return self._read(self._payloads)
        except Exception:  # noqa: BLE001 - an odd payload is the server's doing, not the app's
            self._telemetry.complain(f"reading an answer to {self.operation}", logging.DEBUG)
            return Facts()
        finally:
            self._payloads.clear()

    def _note(self, facts: Facts, inside_sdk: bool) -> None:
        self.provider = self.evident_provider or facts.provider or self.provider
        self.response_model = facts.response_model
        self.response_id = facts.response_id
        self.input_tokens = facts.input_tokens
        self.output_tokens = facts.output_tokens
        self.cached_input_tokens = facts.cached_input_tokens
        self.timings = facts.timings
        self.error_type = self.error_type or facts.error_type
        if self.span.is_recording():
            attributes = _timing_attributes(facts.timings) if facts.timings is not None else {}
            if self.owns_span:
                self._add_answer_attributes(facts, attributes)
                add_clean(self.span, attributes)
            elif not inside_sdk:  # which may be at work on this very span, of another library, and hold its lock
                self.span.set_attributes(attributes)

    def _add_answer_attributes(self, facts: Facts, attributes: dict[str, AttributeValue]) -> None:
        if facts.provider is not None or self.evident_provider is not None:
            attributes[semconv.PROVIDER_NAME] = self.provider
        if facts.response_model is not None:
            attributes[semconv.RESPONSE_MODEL] = facts.response_model
        if facts.response_id is not None:
            attributes[semconv.RESPONSE_ID] = facts.response_id
        if facts.finish_reasons:
            attributes[semconv.RESPONSE_FINISH_REASONS] = tuple(facts.finish_reasons)
        if facts.input_tokens is not None:
            attributes[semconv.USAGE_INPUT_TOKENS] = facts.input_tokens
        if facts.output_tokens is not None:
            attributes[semconv.USAGE_OUTPUT_TOKENS] = facts.output_tokens
        if facts.cached_input_tokens is not None:
            attributes[semconv.USAGE_CACHE_READ_INPUT_TOKENS] = facts.cached_input_tokens
        if facts.reasoning_output_tokens is not None:
            attributes[semconv.USAGE_REASONING_OUTPUT_TOKENS] = facts.reasoning_output_tokens
        if self.first_chunk_ns is not None:
            waited_ns = self.first_chunk_ns - self.started_ns
            attributes[semconv.RESPONSE_TIME_TO_FIRST_CHUNK] = waited_ns / NS_PER_SECOND
        if self.error_type is not None:
            attributes[semconv.ERROR_TYPE] = self.error_type

    def _report(self, content: Mapping[str, Any], ended_unix_ns: int) -> None:
        """Tell the SDK of a call that is over."""
        if not self.owns_span:
            return
        try:
            if content and self._telemetry.capture.in_event:
                structured = {key: as_structure(value) for key, value in content.items()}
                self._telemetry.emit_details({**self._metric_attributes(), **structured}, self.context)
            if self._telemetry.records_metrics:
                self._record_metrics()
        except Exception:  # noqa: BLE001 - the span must end
            self._telemetry.complain("recording a call's metrics")
        self._end_span(ended_unix_ns)

    def _end_span(self, ended_unix_ns: int) -> None:
        try:
            if self.error_type is not None:
                # Without a description: an error's text may quote the prompt.
                self.span.set_status(Status(StatusCode.ERROR))
            self.span.end(ended_unix_ns)
        except Exception:  # noqa: BLE001 - a span processor's failure must not reach the app
            self._telemetry.complain("ending a span")

    def _record_metrics(self) -> None:
        attributes = self._metric_attributes()
        for count, token_type in ((self.input_tokens, "input"), (self.output_tokens, "output")):
            if count is not None:
                self._telemetry.token_usage.record(count, {**attributes, semconv.TOKEN_TYPE: token_type}, self.context)
        if self.first_chunk_ns is not None:
            waited_seconds = (self.first_chunk_ns - self.started_ns) / NS_PER_SECOND
            self._telemetry.first_chunk.record(waited_seconds, dict(attributes), self.context)
        if self.error_type is not None:
            attributes[semconv.ERROR_TYPE] = self.error_type
        if self.ended_ns is not None:
            seconds = (self.ended_ns - self.started_ns) / NS_PER_SECOND
            self._telemetry.duration.record(seconds, attributes, self.context)

    def _metric_attributes(self) -> dict[str, AttributeValue]:
        known: dict[str, AttributeValue | None] = {
            semconv.OPERATION_NAME: self.operation,
            semconv.PROVIDER_NAME: self.provider,
            semconv.REQUEST_MODEL: self.request_model,
            semconv.RESPONSE_MODEL: self.response_model,
            semconv.SERVER_ADDRESS: self.server_address,
            semconv.SERVER_PORT: self.server_port,
        }
        return {key: value for key, value in known.items() if value is not None}


class Lease:
    """Ends its call when nobody can read its answer any more: held by a stream's parts and by nothing else."""

    __slots__ = ("call",)

    def __init__(self, call: Call) -> None:
        self.call = call
        call.end_by_the_exit()

    def __del__(self) -> None:
        self.call.end(collected=True)


def _timing_attributes(timings: ServerTimings) -> dict[str, AttributeValue]:
    attributes: dict[str, AttributeValue] = {}
    if timings.load_seconds is not None:
        attributes[semconv.SERVER_LOAD_SECONDS] = timings.load_seconds
    if timings.prefill_seconds is not None:
        attributes[semconv.SERVER_PREFILL_SECONDS] = timings.prefill_seconds
    if timings.decode_seconds is not None:
        attributes[semconv.SERVER_DECODE_SECONDS] = timings.decode_seconds
    if timings.end_unix_ns is not None:
        attributes[semconv.SERVER_END_TIME] = timings.end_unix_ns / NS_PER_SECOND
    return attributes


if TYPE_CHECKING:

    def _satisfies_call_view(call: Call) -> CallView:
        return call

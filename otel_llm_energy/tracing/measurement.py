"""Work of this process that the app marks by hand: a span, and a claim on this process's own energy."""

from __future__ import annotations

import operator
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final, Protocol, SupportsIndex, TypeVar

from opentelemetry import trace
from opentelemetry.context import Context, attach, create_key, get_current, set_value
from opentelemetry.trace import Status, StatusCode
from opentelemetry.util.types import AttributeValue

from otel_llm_energy.tracing.claims import Claim, Whole
from otel_llm_energy.tracing.gate import Gate
from otel_llm_energy.tracing.measured_functions import measured, undo

_Function = TypeVar("_Function", bound=Callable[..., Any])

_KEY: Final = create_key("otel_llm_energy.measurement")
_INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
_OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"


class MeasuringRuntime(Protocol):
    """What settles a measurement (`otel_llm_energy.runtime.Runtime`)."""

    @property
    def gates(self) -> Sequence[Gate]: ...

    @property
    def tracer(self) -> trace.Tracer: ...

    def open_here(self, claim: Claim) -> None:
        """Work of this process begins."""

    def close_here(self, claim: Claim) -> None:
        """It has ended."""

    def ended_here(self, whole: Whole) -> None:
        """Work in several parts has ended of which all claims were settled before."""


class Measurement:
    """A stretch of work; see `otel_llm_energy.measure`. Serves ``with``, ``async with`` and as a decorator.

    It is paused while a measurement or a model call within it is at work in this process: each joule is on one span.

    Attributes:
        span: of the stretch, from its begin on.
        context: the one in which it is the current span.
    """

    def __init__(
        self, name: str, attributes: Mapping[str, AttributeValue] | None, runtime: Callable[[], MeasuringRuntime | None]
    ) -> None:
        self.span: trace.Span = trace.INVALID_SPAN
        self._input_tokens: int | None = None
        self._output_tokens: int | None = None
        self._used = False
        self._name = name
        self._attributes = dict(attributes or {})
        self._find_runtime = runtime
        self._runtime: MeasuringRuntime | None = None
        self.context = Context()
        self._outside = Context()
        self._outer: Measurement | None = None
        self._token: Any = None
        self._lock = threading.RLock()  # an abandoned stream within may end, and resume us, at any allocation
        self._claim: Claim | None = None
        self._within = 0
        self._parts = 0
        self._whole = Whole()

    @property
    def input_tokens(self) -> int | None:
        """For joules per token; to be set before the end. What is no number of tokens warns and is left out."""
        return self._input_tokens

    @input_tokens.setter
    def input_tokens(self, count: SupportsIndex | None) -> None:
        self._input_tokens = _counted(count)

    @property
    def output_tokens(self) -> int | None:
        """The same of what was generated."""
        return self._output_tokens

    @output_tokens.setter
    def output_tokens(self, count: SupportsIndex | None) -> None:
        self._output_tokens = _counted(count)

    def __enter__(self) -> Measurement:
        """Begin. Raises `RuntimeError` if it has begun before: it stands for one span."""
        self._begin()
        self._token = attach(self.context)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        undo(self._token)
        self._end(error)

    async def __aenter__(self) -> Measurement:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, traceback)

    def __call__(self, function: _Function) -> _Function:
        """Measure every call of a function or coroutine function, or each run of a generator function.

        A generator is measured from its first step to its end, with what its consumer does in between.
        """
        return measured(function, self._again)

    def pause(self) -> None:
        """Something within is at work in this process, and has a claim of its own."""
        with self._lock:
            self._within += 1
            if self._within == 1:
                self._close()

    def resume(self) -> None:
        """It has ended."""
        with self._lock:
            self._within -= 1
            if self._within == 0:
                self._open()

    @contextmanager
    def apart_from_context(self) -> Iterator[None]:
        """From its begin to its end; who wants its span to be the current one attaches `context` meanwhile."""
        self._begin()
        try:
            yield
        except BaseException as error:
            self._end(error)
            raise
        self._end(None)

    def _begin(self) -> None:
        if self._used:
            raise RuntimeError("This measurement was begun before: call measure() anew, or use it as a decorator.")
        self._used = True
        self._runtime = self._find_runtime()
        tracer = trace.get_tracer("otel_llm_energy") if self._runtime is None else self._runtime.tracer
        self._outside = get_current()
        self.span = tracer.start_span(self._name, self._outside, attributes=self._attributes)
        self.context = set_value(_KEY, self, trace.set_span_in_context(self.span, self._outside))
        self._outer = measurement_in(self._outside)
        if self._outer is not None:
            self._outer.pause()
        self._open()

    def _end(self, error: BaseException | None) -> None:
        with self._lock:
            self._within += 1  # never resumed
            self._close(last=True)
        if self._outer is not None:
            self._outer.resume()
        self._end_span(error)

    def _again(self) -> Measurement:
        return Measurement(self._name, self._attributes, self._find_runtime)

    def _open(self) -> None:
        if self._runtime is None:
            return
        claim = self._claim = Claim(self.span.get_span_context())
        claim.own_attributes = {key: value for key, value in self._attributes.items() if isinstance(value, (str, int))}
        for gate in self._runtime.gates:
            gate.bind(self.span, claim, self._outside)
        self._runtime.open_here(claim)

    def _close(self, *, last: bool = False) -> None:
        claim, self._claim = self._claim, None
        if self._runtime is None:
            return
        if claim is not None:
            self._parts += 1
            if self._parts > 1 or not last:
                claim.whole = self._whole
            else:
                claim.input_tokens, claim.output_tokens = self.input_tokens, self.output_tokens
        if last and self._whole.end(self._parts, self.input_tokens, self.output_tokens):
            self._runtime.ended_here(self._whole)
        if claim is not None:
            self._runtime.close_here(claim)

    def _end_span(self, error: BaseException | None) -> None:
        if self.input_tokens is not None:
            self.span.set_attribute(_INPUT_TOKENS, self.input_tokens)
        if self.output_tokens is not None:
            self.span.set_attribute(_OUTPUT_TOKENS, self.output_tokens)
        if error is not None and not isinstance(error, GeneratorExit):  # a consumer that goes away is no failure
            self.span.set_attribute("error.type", type(error).__qualname__)
            self.span.set_status(Status(StatusCode.ERROR))
        self.span.end()


def _counted(count: SupportsIndex | None) -> int | None:
    """A number of tokens as an integer that OTLP can carry."""
    if count is None:
        return None
    try:
        number = operator.index(count)
    except TypeError:
        number = -1
    if 0 <= number < 2**63:
        return number
    warnings.warn(f"A number of tokens is a whole number from 0 on, not {count!r}; it is left out.", stacklevel=3)
    return None


def measurement_in(context: Context) -> Measurement | None:
    """The innermost measurement of a context."""
    found = context.get(_KEY)
    return found if isinstance(found, Measurement) else None

"""Functions that are measured whenever they run, as `otel_llm_energy.measure` makes them where it decorates one.

These wrappers alone stand around the program's own code: a signal that meets it there meets no work of ours.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AbstractContextManager, suppress
from types import TracebackType
from typing import Any, Protocol, TypeVar

from opentelemetry.context import Context, attach, detach

_Function = TypeVar("_Function", bound=Callable[..., Any])


class Measuring(Protocol):
    """A measurement that has not begun (`otel_llm_energy.tracing.measurement.Measurement`)."""

    context: Context

    def __enter__(self) -> object: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def apart_from_context(self) -> AbstractContextManager[None]:
        """From its begin to its end, without making its span the current one."""


def measured(function: _Function, anew: Callable[[], Measuring]) -> _Function:
    """The function, with a measurement made ``anew`` around each call, or around each run if it is a generator's."""
    if inspect.isasyncgenfunction(function):
        return _around_steps_async(function, anew)
    if inspect.isgeneratorfunction(function):
        return _around_steps(function, anew)
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def measured_coroutine(*args: Any, **kwargs: Any) -> Any:
            with anew():
                return await function(*args, **kwargs)

        return measured_coroutine  # type: ignore[return-value]  # the same signature

    @functools.wraps(function)
    def measured_call(*args: Any, **kwargs: Any) -> Any:
        with anew():
            return function(*args, **kwargs)

    return measured_call  # type: ignore[return-value]


def _around_steps(function: _Function, anew: Callable[[], Measuring]) -> _Function:
    """A consumer, which may run others in between, never has our span as the current one."""

    @functools.wraps(function)
    def measured_steps(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        measurement, steps = anew(), function(*args, **kwargs)
        with measurement.apart_from_context():
            advance, value = steps.send, None
            while True:
                token = attach(measurement.context)
                try:
                    step = advance(value)
                except StopIteration as end:
                    return end.value
                finally:
                    detach(token)
                try:
                    advance, value = steps.send, (yield step)
                except BaseException as error:  # noqa: BLE001 - the generator's to handle, a close among them
                    advance, value = steps.throw, error

    return measured_steps  # type: ignore[return-value]


def _around_steps_async(function: _Function, anew: Callable[[], Measuring]) -> _Function:
    @functools.wraps(function)
    async def measured_steps(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        measurement, steps = anew(), function(*args, **kwargs)
        with measurement.apart_from_context():
            advance, value = steps.asend, None
            while True:
                token = attach(measurement.context)
                try:
                    step = await advance(value)
                except StopAsyncIteration:
                    return
                finally:
                    undo(token)
                try:
                    advance, value = steps.asend, (yield step)
                except GeneratorExit:
                    # When an event loop ends it closes both, in any order. What is closed already does not raise
                    # what is thrown into it; what is being closed cannot be closed twice.
                    if not steps.ag_running:
                        await steps.aclose()
                    raise
                except BaseException as error:  # noqa: BLE001
                    advance, value = steps.athrow, error

    return measured_steps  # type: ignore[return-value]


def undo(token: Any) -> None:
    """Undo an `attach`.

    Where each step of a generator runs in a context of its own, or what was thrown away is closed in another one, there
    is nothing to undo, and OpenTelemetry's `detach` would log an error.
    """
    with suppress(ValueError):
        token.var.reset(token)

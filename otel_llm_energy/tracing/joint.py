"""Stand before all the span processors of a tracer provider that is there, by public names only."""

from __future__ import annotations

from collections.abc import Callable

from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor

from otel_llm_energy.tracing.forward import Downstream
from otel_llm_energy.tracing.gate import Gate

_HOOKS = ("on_start", "on_end", "force_flush", "shutdown")


class CannotJoinError(Exception):
    """This tracer provider cannot be joined.

    Attributes:
        reason: ``"no-provider"``: tracing is not set up yet; ``"disabled"``: it is switched off
            (``OTEL_SDK_DISABLED``); ``"not-sdk"``: the provider is not of the OpenTelemetry SDK;
            ``"joined-already"``: someone stands there already.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def pipeline_of(provider: trace.TracerProvider) -> SpanProcessor:
    """The object through which all spans of ``provider`` go. Raises `CannotJoinError`."""
    tracer = provider.get_tracer("otel_llm_energy")
    processor = _shown_by(tracer)
    if processor is not None:
        return processor
    if isinstance(tracer, trace.NoOpTracer):
        raise CannotJoinError("disabled", f"{_name(provider)} makes no spans: is OTEL_SDK_DISABLED set?")
    if isinstance(tracer, trace.ProxyTracer):
        raise CannotJoinError("no-provider", "No tracer provider is set yet.")
    raise CannotJoinError("not-sdk", f"{_name(provider)} shows no span processor: not of the OpenTelemetry SDK.")


def _shown_by(tracer: trace.Tracer) -> SpanProcessor | None:
    shown: object = tracer
    while shown is not None:
        processor = getattr(shown, "span_processor", None)
        if isinstance(processor, SpanProcessor):
            return processor
        shown = getattr(shown, "tracer", None)  # logfire's tracer wraps the SDK's
    return None


def members_of(pipeline: SpanProcessor) -> tuple[SpanProcessor, ...]:
    """The processors that were added to a provider, as far as its pipeline shows them."""
    return tuple(getattr(pipeline, "_span_processors", ()))


def _name(provider: trace.TracerProvider) -> str:
    return f"{type(provider).__module__}.{type(provider).__qualname__}"


class Joint:
    """A gate that stands before a provider's processors, also those added later, for tracers old and new.

    Args:
        provider: an SDK tracer provider, or logfire's.
        make_gate: makes the gate before what is there now.

    Raises:
        CannotJoinError: says why.

    Attributes:
        pipeline: the object through which all spans of the provider go.
    """

    def __init__(self, provider: trace.TracerProvider, make_gate: Callable[[Downstream], Gate]) -> None:
        self.pipeline = pipeline_of(provider)
        if isinstance(getattr(vars(self.pipeline).get("on_end"), "__self__", None), Gate):
            raise CannotJoinError("joined-already", f"{_name(provider)} is joined already.")
        self._before = {name: vars(self.pipeline).get(name) for name in _HOOKS}
        self.gate = make_gate(Downstream(self.pipeline))
        self._ours = {name: getattr(self.gate, name) for name in _HOOKS}
        for name, hook in self._ours.items():
            setattr(self.pipeline, name, hook)

    def joins(self, provider: trace.TracerProvider) -> bool:
        """Whether the spans of ``provider``, as it is now, come through this gate.

        They do not after a second set-up of tracing. If a library has put its own hook on top of ours, they do.
        """
        try:
            return pipeline_of(provider) is self.pipeline
        except CannotJoinError:
            return False

    def stands_before(self, tracer: trace.Tracer) -> bool:
        """Whether the spans of ``tracer`` come through this gate. Costs less than `joins`."""
        return _shown_by(tracer) is self.pipeline

    def leave(self) -> bool:
        """Hand on what is held and stand aside; False if that took too long.

        Hooks that another library has put on top stay, and what they call passes straight through.
        """
        released = self.gate.deactivate("uninstrument")
        for name, hook in self._ours.items():
            if vars(self.pipeline).get(name) is not hook:
                continue
            before = self._before[name]
            if before is None:
                delattr(self.pipeline, name)
            else:
                setattr(self.pipeline, name, before)
        return released

"""Whose spans get energy: the tracer provider of now, whenever it is set up, and processors that were wired by hand."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from opentelemetry import trace

from otel_llm_energy.tracing.arrival import Arrival
from otel_llm_energy.tracing.claims import Desk
from otel_llm_energy.tracing.forward import Downstream
from otel_llm_energy.tracing.gate import Gate
from otel_llm_energy.tracing.health import Health
from otel_llm_energy.tracing.joint import CannotJoinError, Joint, members_of, pipeline_of
from otel_llm_energy.tracing.own_provider import set_up_tracing
from otel_llm_energy.tracing.processor import NoDesk, wired_processors

_logger = logging.getLogger(__name__)


class Joining:
    """Has a gate stand before the processors of the tracer provider, from `start` to `leave`, whichever it is by then.

    Args:
        tracer_provider: ``None`` for the global one.
        make_gate: a gate before what comes after it.
        equip: lends a gate that was wired by hand a desk and a watch.
        on_left: told, with a lock held, that a gate is no longer the right one: have `leave_the_left` called soon.

    Attributes:
        gates: all that hold spans.
        state: ``"joined"``, ``"wired by hand"``, or why no tracer provider is joined.
    """

    def __init__(
        self,
        tracer_provider: trace.TracerProvider | None,
        make_gate: Callable[[Downstream], Gate],
        equip: Callable[[Gate], None],
        on_left: Callable[[], None],
    ) -> None:
        self.gates: tuple[Gate, ...] = ()
        self.state = "waiting for a tracer provider"
        self._tracer_provider = tracer_provider
        self._make_gate = make_gate
        self._equip = equip
        self._on_left = on_left
        self._lock = threading.RLock()  # setting up tracing of our own arrives while it is held
        self._joint: Joint | None = None
        self._left: list[Joint] = []
        self._arrival: Arrival | None = None
        self._past_health = Health()  # of the gates that were left: what is counted never goes down

    def start(self) -> None:
        """Join tracing if it is set up, or as soon as it is."""
        if self._tracer_provider is None and isinstance(self.provider(), trace.ProxyTracerProvider):
            self._arrival = Arrival(self.join)
        self.join()

    def leave(self, desk: Desk) -> None:
        """Hand on what is held and stand aside; processors that were wired by hand are no more to use ``desk``."""
        with self._lock:
            if self._arrival is not None:
                self._arrival.leave()
            if self._joint is not None:
                self._left.append(self._joint)
        self.leave_the_left()
        for gate in [processor.gate for processor in wired_processors()]:
            if gate.desk is desk:
                gate.force_flush()
                gate.desk, gate.watch = NoDesk(), None
                with self._lock:
                    self.gates = tuple(each for each in self.gates if each is not gate)
                    self._past_health.add(gate.take_health())  # it lives on, and is adopted again

    def start_afresh(self, desk: Desk) -> None:
        """In a forked child: locks may be held for ever, and what is held is the parent's."""
        self._lock = threading.RLock()
        self._past_health.held = 0
        for gate in self.gates:
            gate.desk = desk

    def provider(self) -> trace.TracerProvider:
        """The tracer provider that is right now; the API's proxy if there is none."""
        return self._tracer_provider or trace.get_tracer_provider()

    def provider_for_call(self) -> trace.TracerProvider:
        """The provider for a call that starts now: if there is none yet, one is made. Joined."""
        provider = self.provider()
        if isinstance(provider, trace.ProxyTracerProvider):
            with self._lock:
                provider = self.provider()
                if isinstance(provider, trace.ProxyTracerProvider):
                    provider = set_up_tracing()
        if self._joint is None:
            self._join(provider)
        return provider

    def is_joined(self, provider: trace.TracerProvider, tracer: trace.Tracer) -> bool:
        """Whether ``provider`` is that of now, and the spans of its ``tracer`` come through our gate for certain.

        Asked for every call. Of a tracer that wraps the SDK's (logfire's) it is not certain.
        """
        joint = self._joint
        return (
            joint is not None
            and provider is self.provider()
            and getattr(tracer, "span_processor", None) is joint.pipeline
        )

    def check_tracer(self, tracer: trace.Tracer) -> None:
        """Tracing may have been set up anew since the last call."""
        if self._joint is not None and not self._joint.stands_before(tracer):
            self.join()

    def join(self) -> None:
        """See that a gate stands before the provider of now: tracing may be set up late, or again."""
        self._join(self.provider())

    def leave_the_left(self) -> None:
        """Handing on what a gate holds may take long, so not in the app's thread."""
        while self._left:
            joint = self._left.pop()
            joint.leave()
            with self._lock:
                self.gates = tuple(gate for gate in self.gates if gate is not joint.gate)
                self._past_health.add(joint.gate.health)

    def health(self) -> Sequence[Health]:
        """What all gates did, those that were left among them."""
        return [self._past_health, *(gate.health for gate in self.gates)]

    def _join(self, provider: trace.TracerProvider) -> None:
        with self._lock:
            if self._joint is not None and self._joint.joins(provider):
                return
            if self._adopt(provider):
                self.state = "wired by hand"
                return
            if self._joint is not None:
                self._left.append(self._joint)
                self._joint = None
                self._on_left()
            try:
                self._joint = Joint(provider, self._new_gate)
                self.state = "joined"
            except CannotJoinError as error:
                if self.state != str(error):
                    _logger.debug("%s", error)
                self.state = str(error)
            if self._joint is not None and self._arrival is not None:
                self._arrival.leave()
                self._arrival = None

    def _new_gate(self, downstream: Downstream) -> Gate:
        """It is among the others before the first span comes to it."""
        gate = self._make_gate(downstream)
        self.gates = (*self.gates, gate)
        return gate

    def _adopt(self, provider: trace.TracerProvider) -> bool:
        """Measure for processors that were wired by hand, too; whether one of them is the provider's own."""
        processors = wired_processors()
        for processor in processors:
            gate = processor.gate
            if isinstance(gate.desk, NoDesk) and gate not in self.gates:
                self._equip(gate)
                self.gates = (*self.gates, gate)
        try:
            members = members_of(pipeline_of(provider)) if processors else ()
        except CannotJoinError:
            return False
        return any(processor in members for processor in processors)

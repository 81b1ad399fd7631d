"""Where the client wrappers and the energy layer meet: from each call that is observed to its claim."""

from __future__ import annotations

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span

from otel_llm_energy.runtime import Runtime
from otel_llm_energy.tracing.claims import CallFacts, Claim
from otel_llm_energy.tracing.gate import Gate
from otel_llm_energy.tracing.measurement import measurement_in
from otel_llm_instrumentation import CallView
from otel_llm_instrumentation.conversations import conversation_in
from otel_llm_instrumentation.langchain import LangChainInstrumentor
from otel_llm_instrumentation.semconv import CONVERSATION_ID
from otel_llm_instrumentation.standing import note_started


class CallMeter:
    """Opens a claim for every call that the client instrumentors observe, sampled or not.

    It also looks at the spans that other libraries start: the instrumentors step aside for those that stand for a call.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._joining = runtime.joining
        # By id of the call, which lives until it has ended; with its span, see `SpanTree.bind`.
        self._claims: dict[int, tuple[Claim, trace.Span]] = {}
        self._facts = CallFacts()  # of the last call; most are of calls like the one before

    def call_started(self, call: CallView) -> None:
        self._runtime.before_call()
        span_context = call.span.get_span_context()
        for gate in self._joining.gates:
            self._runtime.unobserved.give_up_above(gate, span_context, call.operation)
        stands_aside = not (call.owns_span or call.in_process)
        adopted = self._runtime.unobserved.adopt(span_context.span_id) if stands_aside else None
        claim = adopted or Claim(span_context)
        self._claims[id(call)] = claim, call.span  # closed at its end also if it does not open
        if adopted is not None:
            return
        claim.opened_ns = call.started_ns
        for gate in self._joining.gates:
            gate.bind(call.span, claim)  # the context of now is that around the call
        self._open(claim, call)

    def _open(self, claim: Claim, call: CallView) -> None:
        if not call.in_process:
            self._runtime.desk.open(claim, call.server_address, call.server_port, call.provider, call.operation)
            return
        outer = measurement_in(call.context)
        if outer is not None:
            outer.pause()
        self._runtime.desk.open_here(claim)

    def first_chunk(self, call: CallView) -> None:
        known = self._claims.get(id(call))
        if known is not None:
            self._runtime.desk.first_chunk(known[0])

    def call_ended(self, call: CallView) -> None:
        known = self._claims.pop(id(call), None)
        if known is None:
            return
        claim, _ = known
        claim.input_tokens, claim.output_tokens = call.input_tokens, call.output_tokens
        claim.cached_input_tokens = call.cached_input_tokens
        claim.facts = self._facts_of(call)
        claim.reached_server = call.reached_server
        claim.response_id, claim.ended_ns = call.response_id, call.ended_ns
        self._runtime.desk.close(claim, call.timings)
        outer = measurement_in(call.context) if call.in_process else None
        if outer is not None:
            outer.resume()
        if call.ended_ns is not None:
            self._runtime.unobserved.note_ended(claim)

    def _facts_of(self, call: CallView) -> CallFacts:
        facts = CallFacts(
            call.operation,
            call.provider,
            call.request_model,
            call.response_model,
            call.server_address,
            call.server_port,
            call.error_type,
        )
        last = self._facts  # once: other threads' calls end, too
        if facts == last:
            return last
        self._facts = facts
        return facts

    # What the gates tell of spans

    def started(self, gate: Gate, span: Span, parent_context: Context | None) -> None:
        if not note_started(span, parent_context):
            return
        LangChainInstrumentor().give_way_to(span.instrumentation_scope.name if span.instrumentation_scope else "")
        conversation = conversation_in(parent_context)
        if conversation is not None and CONVERSATION_ID not in (span.attributes or {}):
            span.set_attribute(CONVERSATION_ID, conversation)
        self._runtime.unobserved.started(gate, span, parent_context)

    def ended(self, span: ReadableSpan) -> None:
        self._runtime.unobserved.ended(span)

    def billed_elsewhere(self, span: ReadableSpan) -> bool:
        return self._runtime.unobserved.billed_elsewhere(span)

    def claim_late(self, span: ReadableSpan) -> None:
        self._runtime.unobserved.claim_late(self._joining.gates, span)

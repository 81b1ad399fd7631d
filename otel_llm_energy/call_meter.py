"""Where the client wrappers and the energy layer meet: from each call that is observed to its claim."""

from __future__ import annotations

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from otel_llm_energy.runtime import Runtime
from otel_llm_energy.tracing.claims import CallFacts, Claim
from otel_llm_energy.tracing.gate import Gate
from otel_llm_energy.tracing.measurement import measurement_in
from otel_llm_instrumentation import CallView
from otel_llm_instrumentation.conversations import conversation_in
from otel_llm_instrumentation.langchain import LangChainInstrumentor
from otel_llm_instrumentation.semconv import CONVERSATION_ID
from otel_llm_instrumentation.standing import is_ours, note_started


class CallMeter:
    """Opens a claim for every call that the client instrumentors observe, sampled or not.

    It also looks at the spans that other libraries start: the instrumentors step aside for those that stand for a call.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._joining = runtime.joining
        # By id of the call, which lives until it has ended; with its span, see `SpanTree.bind`.
        self._claims: dict[int, tuple[Claim, trace.Span]] = {}
        # Of the last call; most are of calls like the one before.
        self._facts = CallFacts()
        self._own_scope: InstrumentationScope | None = None

    # Each function that is called here costs a call as much as some ten lines would: what it needs has left the CPU's
    # caches by then. So what is seldom to be done is asked about before.

    def call_started(self, call: CallView) -> None:
        runtime = self._runtime
        if not runtime.is_ready:
            runtime.before_call()
        span_context = call.span.get_span_context()
        adopted = self._take_over(call, span_context) if runtime.unobserved.open else None
        claim = adopted or Claim(span_context)
        self._claims[id(call)] = claim, call.span  # closed at its end also if it does not open
        if adopted is not None:
            return
        claim.opened_ns = call.started_ns
        for gate in self._joining.gates:
            gate.bind(call.span, claim)  # the context of now is that around the call
        if call.in_process:
            self._open_here(claim, call)
        else:
            runtime.desk.open(claim, call.server_address, call.server_port, call.provider, call.operation)

    def _take_over(self, call: CallView, span_context: trace.SpanContext) -> Claim | None:
        """The claim of another library's span that stands for the call; those of spans above it are given up."""
        unobserved = self._runtime.unobserved
        for gate in self._joining.gates:
            unobserved.give_up_above(gate, span_context, call.operation)
        stands_aside = not (call.owns_span or call.in_process)
        return unobserved.adopt(span_context.span_id) if stands_aside else None

    def _open_here(self, claim: Claim, call: CallView) -> None:
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
        scope = span.instrumentation_scope
        if scope is self._own_scope and scope is not None:
            return
        if is_ours(span):
            self._own_scope = scope
            return
        if not note_started(span, parent_context):
            return
        LangChainInstrumentor().give_way_to(span.instrumentation_scope.name if span.instrumentation_scope else "")
        conversation = conversation_in(parent_context)
        if conversation is not None and CONVERSATION_ID not in (span.attributes or {}):
            span.set_attribute(CONVERSATION_ID, conversation)
        self._runtime.unobserved.started(gate, span, parent_context)

    def ended(self, span: ReadableSpan) -> None:
        if self._runtime.unobserved.open:
            self._runtime.unobserved.ended(span)

    def billed_elsewhere(self, span: ReadableSpan) -> bool:
        return self._runtime.unobserved.billed_elsewhere(span)

    def claim_late(self, span: ReadableSpan) -> None:
        self._runtime.unobserved.claim_late(self._joining.gates, span)

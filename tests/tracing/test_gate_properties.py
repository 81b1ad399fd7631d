"""Any tree of spans, any order of ends and bills: all leave once, in order, and the totals hold."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.trace import Span

from otel_llm_energy import conventions
from otel_llm_energy.ledger.bill import unavailable
from otel_llm_energy.tracing.claims import Claim
from tests.tracing.fakes import Pipeline, bill_of


@dataclass(eq=False)
class SpanModel:
    """What the test remembers of one span."""

    name: str
    span: Span
    parent: SpanModel | None
    ended_at: int | None = None
    left_at: int | None = None

    def chain(self) -> list[SpanModel]:
        return [self, *(self.parent.chain() if self.parent else [])]


@dataclass(eq=False)
class CallModel:
    """What the test remembers of one call; ``seat`` is the span for which it counts first."""

    claim: Claim
    seat: SpanModel
    shown: bool
    bound_at: int
    bound_below: SpanModel
    settled_at: int | None = None
    joules: int | None = None


@dataclass
class World:
    """The gate, and the slow and obvious account of what should come out of it."""

    line: Pipeline = field(default_factory=Pipeline)
    spans: list[SpanModel] = field(default_factory=list)
    calls: list[CallModel] = field(default_factory=list)
    unseated: list[tuple[int, SpanModel]] = field(default_factory=list)
    now: int = 0

    def start(self, choice: int) -> None:
        parent = self.spans[choice % len(self.spans)] if self.spans and choice % 5 else None
        context = trace.set_span_in_context(parent.span) if parent else None
        name = f"span {len(self.spans)}"
        self.spans.append(SpanModel(name, self.line.tracer.start_span(name, context), parent))

    def bind(self, choice: int) -> None:
        if not self.spans:
            return
        target = self.spans[choice % len(self.spans)]
        seat = next((span for span in target.chain() if span.ended_at is None), None)
        claim = Claim(target.span.get_span_context())
        claim.closed = True  # those that go on when a span above them ends: see `test_gate`
        self.line.gate.bind(target.span, claim)
        if seat is None:
            self.unseated.append((self.now, target))
        else:
            self.calls.append(CallModel(claim, seat, seat is target, self.now, target))

    def end(self, choice: int) -> None:
        still_open = [span for span in self.spans if span.ended_at is None]
        if still_open:
            span = still_open[choice % len(still_open)]
            span.ended_at = self.now
            span.span.end()

    def settle(self, choice: int, joules: int | None) -> None:
        unsettled = [call for call in self.calls if call.settled_at is None]
        if unsettled:
            call = unsettled[choice % len(unsettled)]
            call.settled_at, call.joules = self.now, joules
            call.claim.bill = unavailable("no-reading") if joules is None else bill_of(joules)
            self.line.gate.settled([call.claim])

    def look(self) -> None:
        """Note which spans have left since."""
        names = set(self.line.sent())
        for span in self.spans:
            if span.left_at is None and span.name in names:
                span.left_at = self.now
        self.now += 1


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["start", "start", "bind", "bind", "end", "end", "settle"]),
        st.integers(0, 1000),
        st.one_of(st.integers(1, 1000), st.integers(1, 1000), st.none()),
    ),
    max_size=40,
)


@settings(max_examples=300)
@given(STEPS)
def test_all_leave_once_in_order_with_true_totals_when_spans_and_bills_come_in_any_order(
    steps: list[tuple[str, int, int | None]],
) -> None:
    """Every span leaves exactly once, children before parents, and no joule is shown twice."""
    world = World()
    for action, choice, joules in steps:
        if action == "settle":
            world.settle(choice, joules)
        else:
            getattr(world, action)(choice)
        world.look()
    for _ in world.spans:
        world.end(0)
        world.look()
    for _ in world.calls:
        world.settle(0, 1)
        world.look()
    try:
        _check_all_left_in_order(world)
        _check_own_shares(world)
        for span in world.spans:
            _check_total(world, span)
    finally:
        world.line.gate.deactivate()


def _check_all_left_in_order(world: World) -> None:
    names = world.line.out.names
    assert sorted(names) == sorted(span.name for span in world.spans)
    for span in world.spans:
        for ancestor in span.chain()[1:]:
            if span.ended_at < ancestor.ended_at:
                assert names.index(span.name) < names.index(ancestor.name)
        waits_for = [
            call
            for call in world.calls
            if span in call.seat.chain()
            and call.bound_at < span.ended_at
            and call.seat.ended_at <= span.ended_at
            and call.settled_at > span.ended_at
        ]
        assert span.left_at == max([call.settled_at for call in waits_for], default=span.ended_at)


def _check_own_shares(world: World) -> None:
    shown_in_all = 0.0
    for span in world.spans:
        own = [call for call in world.calls if call.shown and call.seat is span]
        known = [call.joules for call in own if call.joules is not None]
        attributes = world.line.out.attributes(span.name)
        assert (conventions.QUALITY in attributes) == bool(own)
        assert attributes.get(conventions.JOULES) == (sum(known) if known else None)
        shown_in_all += sum(known)
    exclusive = sum(
        world.line.out.attributes(span.name).get(conventions.JOULES, 0)  # type: ignore[misc]
        for span in world.spans
    )
    assert exclusive == shown_in_all


def _check_total(world: World, span: SpanModel) -> None:
    attributes = world.line.out.attributes(span.name)
    assert span.left_at is not None
    counted = [call for call in world.calls if span in call.seat.chain() and call.bound_at <= span.left_at]
    if not any(call.seat is not span or not call.shown for call in counted):
        assert conventions.SUBTREE_JOULES not in attributes
        return
    known = [call.joules for call in counted if call.settled_at <= span.left_at and call.joules is not None]
    assert attributes.get(conventions.SUBTREE_JOULES) == (sum(known) if known else None)
    bound = [(call.bound_at, call.bound_below) for call in world.calls] + world.unseated
    late = [at for at, below in bound if span in below.chain() and span.ended_at < at <= span.left_at]
    missing = [call for call in counted if call.settled_at > span.left_at or call.joules is None]
    if late or missing:
        assert attributes[conventions.SUBTREE_INCOMPLETE] is True
    else:
        was_open = [c for c in counted if c.seat.ended_at > span.ended_at and c.settled_at > span.ended_at]
        assert (conventions.SUBTREE_INCOMPLETE in attributes) == bool(was_open)

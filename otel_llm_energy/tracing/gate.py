"""Hold the span of a call until its energy is known, and see that every span leaves exactly once."""

from __future__ import annotations

import atexit
import logging
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple, Protocol

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span

from otel_llm_energy.ledger.bill import Bill, Quality, unavailable
from otel_llm_energy.quantities import NS_PER_SECOND
from otel_llm_energy.tracing import enrich, span_facts
from otel_llm_energy.tracing.claims import Claim, Desk, Tokens
from otel_llm_energy.tracing.forks import after_fork_in_child, at_exit_of_worker, while_alive
from otel_llm_energy.tracing.forward import Downstream, Forwarder
from otel_llm_energy.tracing.health import Health
from otel_llm_energy.tracing.mailbox import Mailbox
from otel_llm_energy.tracing.outgoing import Outgoing
from otel_llm_energy.tracing.tree import Node, SpanTree
from otel_llm_energy.troubles import Troubles

DEFAULT_MAX_HOLD_SECONDS: Final = 30.0
DEFAULT_MAX_HELD: Final = 4096
_SHUTDOWN_SECONDS: Final = 30.0  # as long as the SDK's own batch processor may take
_SHORTEST_WAIT_SECONDS: Final = 0.01
_LOOK_SECONDS: Final = 1.0

_logger = logging.getLogger(__name__)


class SpanWatch(Protocol):
    """Told of every span that starts and ends, in the app's thread; must not block."""

    def started(self, gate: Gate, span: Span, parent_context: Context | None) -> None: ...

    def ended(self, span: ReadableSpan) -> None:
        """The span is about to be held or handed on."""

    def billed_elsewhere(self, span: ReadableSpan) -> bool:
        """Whether the bill of this LLM span's call stands on another span."""

    def claim_late(self, span: ReadableSpan) -> None:
        """Bind a claim to this LLM span, of whose call nobody knew, if the span says who answered."""


class _Held:
    """A finished span that waits for bills."""

    __slots__ = ("deadline_ns", "node", "span")

    def __init__(self, node: Node, span: ReadableSpan, deadline_ns: int) -> None:
        self.node = node
        self.span = span
        self.deadline_ns = deadline_ns


class _ForcedBatch(NamedTuple):
    """Claims that the desk is to settle now, and the held spans that leave then, whatever comes of it."""

    claims: Sequence[Claim]
    reason: str
    held: Sequence[_Held] = ()


class Gate:
    """Stands before a span processor. Spans of calls, and their ancestors, wait for their energy; others pass.

    A span leaves with its energy, or at a bound, marked by the reason:

    - ``max-hold``: held for ``max_hold_seconds`` since its end; with 0 no span is ever held (``not-held``);
    - ``hold-limit``: more than ``max_held`` are held, the oldest leaves; the forwarder sees to it, and whoever ends
      one more span helps once there are half as many again;
    - ``queue-full``: twice ``max_held`` wait for the next processor, which is too slow. The thread that ends one more
      span hands it on itself, as it would without us: nothing is lost and memory stays bounded, at the price of the
      wait that the next processor causes;
    - ``flush``, ``shutdown``. What ends after our exit hook, in hooks that run later, is not held: nobody may come to
      let it go. It waits for readings in the thread that ends it, all of it together for one meter period.

    An ancestor waits for the calls below it whose spans ended before its own, never for open ones.
    ``on_end`` takes no lock, does no I/O (but see ``hold-limit`` and ``queue-full``) and raises nothing of ours.
    Everything that changes the books runs through one mailbox, one action at a time. The app's threads only note there
    what happened; the threads that settle and forward enter it.

    Args:
        downstream: what comes after.
        desk: settles claims; it must be told to call `settled` of this gate.
        style: how much the spans say.
        max_hold_seconds: see above.
        max_held: see above.
        meter_period_seconds: `force_flush` waits at most so long for readings; the time between two of the meter.
        clock_ns: monotonic, nanoseconds.

    Attributes:
        style: see above.
        keeps_max_hold, keeps_style: these are this gate's own, whatever `instrument()` says.
    """

    def __init__(
        self,
        downstream: Downstream,
        desk: Desk,
        *,
        style: enrich.Style | None = None,
        max_hold_seconds: float = DEFAULT_MAX_HOLD_SECONDS,
        max_held: int = DEFAULT_MAX_HELD,
        meter_period_seconds: float = 2.5,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._health = Health()
        self.desk = desk
        self.meter_period_seconds = meter_period_seconds
        self.keeps_max_hold = self.keeps_style = False
        self.watch: SpanWatch | None = None
        self._next = downstream
        self.style = style or enrich.Style()
        self._max_hold_ns = int(max_hold_seconds * NS_PER_SECOND)
        self._max_held = max_held
        self._most_noted = max_held // 2
        self._clock_ns = clock_ns
        self._troubles = Troubles(_logger, clock_ns=clock_ns)
        self._tree = SpanTree()
        self._mailbox = Mailbox(self._action_failed, self._most_noted)
        self._forwarder: Forwarder[Outgoing] = Forwarder(self._deliver, self.tick, 2 * max_held)
        # In the order of their ends, by the identity of their nodes, as ids are one trace's; for the mailbox alone.
        self._held: dict[int, _Held] = {}
        self._forced: deque[_ForcedBatch] = deque()
        self._first_deadline_ns: int | None = None
        self._active = True
        self._shut = False
        self._exit_hook: Callable[[], None] | None = None
        self._exit_patience_ns: int | None = None  # until when to wait for readings; None before the exit
        after_fork_in_child(weakref.WeakMethod(self._start_afresh))

    @property
    def health(self) -> Health:
        """What was done up to now."""
        self._mailbox.work()
        return self._health

    def take_health(self) -> Health:
        """The same, for whoever counts it from now on: the gate begins anew."""
        health, self._health = self.health, Health()
        self._health.held, health.held = health.held, 0
        return health

    @property
    def max_hold_seconds(self) -> float:
        """How long a span waits for its energy at most; a change holds for spans that end from now on."""
        return self._max_hold_ns / NS_PER_SECOND

    @max_hold_seconds.setter
    def max_hold_seconds(self, seconds: float) -> None:
        self._max_hold_ns = int(seconds * NS_PER_SECOND)

    # What the tracer provider calls

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        if self._active:
            try:
                self._tree.started(span)
                if self.watch is not None:
                    self.watch.started(self, span, parent_context)
            except Exception:  # noqa: BLE001 - nothing of ours raises into the app
                self._failed("start", "A span's start was not noted.")
        self._next.on_start(span, parent_context)

    def on_ending(self, span: Span) -> None:
        self._next.on_ending(span)

    def on_end(self, span: ReadableSpan) -> None:
        passing = self._sift(span) if self._active else span
        if passing is not None:
            self._next.on_end(passing)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Hand on all that is held; waits at most one meter period for readings. False if the timeout was exceeded."""
        deadline_ns = self._clock_ns() + timeout_millis * 1_000_000
        released = self._release_all("flush", deadline_ns)
        remaining_millis = (deadline_ns - self._clock_ns()) // 1_000_000
        if not released or remaining_millis <= 0:
            return False
        return self._next.force_flush(remaining_millis)

    def shutdown(self) -> None:
        """Hand on all that is held, then shut the next processor down. A repeat does nothing."""
        if self._shut:
            return
        self._shut = True
        self.deactivate("shutdown")
        self._next.shutdown()

    # What the instrument layer and the desk call

    def bind(
        self,
        span: trace.Span | ReadableSpan,
        claim: Claim,
        parent_context: Context | None = None,
        *,
        ends_for_certain: bool = True,
    ) -> bool:
        """A call starts, and ``span`` is to display its bill. Returns whether it can.

        ``ends_for_certain`` says that the span is ended also when everybody has let go of it.

        A span that was not sampled or has ended displays nothing: the call then counts only for the ancestors, found
        through ``parent_context``, the context around the call; ``None``: the one of now.
        """
        if not self._active:
            return False
        own = self._tree.find(span.get_span_context())
        node = own or self._tree.find(trace.get_current_span(parent_context).get_span_context())
        if node is None:
            return False
        # At once, since the span may end before the mailbox comes to it.
        self._tree.mark(node)
        self._mailbox.note(SpanTree.bind, self._tree, node, claim, own is not None, span if ends_for_certain else None)
        return own is not None and not own.left

    def above(self, context: trace.SpanContext) -> Iterable[int]:
        """The ids of the local spans above that of ``context``, the nearest first."""
        node = self._tree.find(context)
        return () if node is None else self._tree.above(node)

    def settled(self, claims: Iterable[Claim]) -> None:
        """The desk has the bills of these claims."""
        self._mailbox.post(self._settle, tuple(claims))

    def tick(self) -> float:
        """Enter what was noted and let go what is held for too long; returns the seconds until this is due again.

        The forwarder calls it.
        """
        self._mailbox.work()
        now_ns = self._clock_ns()
        first_ns = self._first_deadline_ns
        if first_ns is not None and now_ns >= first_ns:
            self._mailbox.post(self._force_overdue, now_ns)
            first_ns = self._first_deadline_ns
        self._settle_forced()
        # What ends from now on is entered while most of its time is left.
        wait_seconds = min(_LOOK_SECONDS, self.max_hold_seconds / 4)
        if first_ns is not None:
            wait_seconds = min(wait_seconds, (first_ns - now_ns) / NS_PER_SECOND)
        return max(_SHORTEST_WAIT_SECONDS, wait_seconds)

    def deactivate(self, reason: str = "shutdown") -> bool:
        """From now on let everything pass, and hand on what is held; False if that took too long."""
        self._active = False
        return self._hand_on_all(reason)

    def _hand_on_all(self, reason: str) -> bool:
        """Nothing is held from now on; False if that took too long."""
        deadline_ns = self._clock_ns() + int(_SHUTDOWN_SECONDS * NS_PER_SECOND)
        released = self._release_all(reason, deadline_ns)
        stopped = self._forwarder.stop(self._seconds_until(deadline_ns))
        # A span that was on its way in when that was decided has been held after all.
        self._release_all(reason, deadline_ns)
        if len(self._forwarder):
            self._troubles.warn("late", "%d spans are not handed on yet: the next is too slow.", len(self._forwarder))
        self._unhook_exit()
        return released and stopped

    # The way of one span

    def _sift(self, span: ReadableSpan) -> ReadableSpan | None:
        """Take the span in, or return what is to be handed on at once: the span or an enriched copy."""
        try:
            if self.watch is not None:
                self.watch.ended(span)
            node = self._tree.find(span.get_span_context())
            if node is not None and node.marked:
                return self._admit(node, span)
            passing = self._explained(node, span) if span_facts.is_call_of_another_library(span) else span
            if node is not None and passing is not None:
                node.left = True
            return passing
        except Exception:  # noqa: BLE001 - nothing of ours raises into the app
            self._failed("end", "A span goes on without its energy.")
            return span

    def _admit(self, node: Node, span: ReadableSpan) -> ReadableSpan | None:
        if not self._max_hold_ns:
            return self._at_once(node, span, "not-held")
        if self._exit_patience_ns is not None:
            self._hasten(self._seconds_until(self._exit_patience_ns))
            return self._at_once(node, span, "shutdown")
        if self._forwarder.is_full:
            self._troubles.warn("queue-full", "The next span processor is too slow; spans are handed on directly.")
            return self._at_once(node, span, "queue-full")
        if self._exit_hook is None:
            self._mailbox.post(self._begin_to_hold)
        self._mailbox.note(Gate._ended, self, node, span, self._clock_ns())
        if len(self._forced) > self._most_noted:  # our threads do not keep up
            self._settle_forced()
        return None

    def _explained(self, node: Node | None, span: ReadableSpan) -> ReadableSpan | None:
        """What to do with an LLM span of another library that no call was bound to."""
        if self.watch is not None:
            if self.watch.billed_elsewhere(span):
                return span
            if node is not None:
                self.watch.claim_late(span)
                if node.marked:
                    return self._admit(node, span)
        return self._without_server(span)

    def _without_server(self, span: ReadableSpan) -> ReadableSpan:
        """A call of another library that nobody observed: nothing says what answered it."""
        bill = unavailable("server_unknown")
        self._mailbox.post(self._count_bill, bill)
        return enrich.enriched_copy(span, enrich.call_attributes(bill, Tokens(), self.style))

    def _at_once(self, node: Node, span: ReadableSpan, reason: str) -> ReadableSpan:
        self._mailbox.post(self._tree.ended, node)
        self._mailbox.wait()
        if node.subtree is not None and node.subtree.claims:
            self._settle_batch(_ForcedBatch(tuple(node.subtree.claims), reason))
            self._mailbox.wait()
        node.left = True
        outgoing = Outgoing(span, node.subtree)
        self._mailbox.post(self._count_passed, outgoing.bills)
        return outgoing.enriched(self.style)

    def _deliver(self, outgoing: Outgoing) -> None:
        """In the forwarding thread: enrich and hand on."""
        try:
            span = outgoing.enriched(self.style)
        except Exception:  # noqa: BLE001 - the span itself must not be lost
            self._failed("enrich", "A span goes on without its energy.")
            span = outgoing.span
        try:
            self._next.on_end(span)
        except Exception:  # noqa: BLE001 - in the app's thread it would have raised into the app
            self._failed("next", "The next span processor refused a span.")
            self._health.dropped += 1
        else:
            self._health.forwarded += 1

    # Actions of the mailbox: one at a time

    def _ended(self, node: Node, span: ReadableSpan, ended_ns: int) -> None:
        if self._tree.ended(node):
            self._hold(node, span, ended_ns + self._max_hold_ns)
        else:
            self._send(node, span)

    def _hold(self, node: Node, span: ReadableSpan, deadline_ns: int) -> None:
        earlier = self._held.get(id(node))
        if earlier is not None:  # of two open spans with one id
            self._release(earlier)
        self._held[id(node)] = _Held(node, span, deadline_ns)
        self._health.held += 1
        if self._first_deadline_ns is None:
            self._first_deadline_ns = deadline_ns
        if len(self._held) > self._max_held:
            self._force_out([next(iter(self._held.values()))], "hold-limit")
            if len(self._forced) == 1:  # else the forwarder is at it
                self._forwarder.look_soon()

    def _settle(self, claims: Sequence[Claim], forced_for: str | None = None) -> None:
        for claim in claims:
            bill = claim.bill
            if bill is None:
                if forced_for is None:
                    continue
                bill = unavailable(forced_for)  # the call goes on, or the desk failed; the span must leave
            for node in self._tree.settle(claim, bill):
                held = self._held.get(id(node))
                if held is not None:
                    self._release(held)

    def _release(self, held: _Held) -> None:
        del self._held[id(held.node)]
        self._health.held -= 1
        self._send(held.node, held.span)

    def _send(self, node: Node, span: ReadableSpan) -> None:
        node.left = True
        outgoing = Outgoing(span, node.subtree)
        self._count(outgoing.bills)
        self._forwarder.put(outgoing)

    def _force_overdue(self, now_ns: int) -> None:
        overdue: list[_Held] = []
        self._first_deadline_ns = None
        for held in self._held.values():
            if held.deadline_ns > now_ns:
                self._first_deadline_ns = held.deadline_ns
                break
            overdue.append(held)
        self._force_out(overdue, "max-hold")

    def _force_all(self, reason: str) -> None:
        self._force_out(list(self._held.values()), reason)

    def _force_out(self, overdue: Sequence[_Held], reason: str) -> None:
        """Have these leave; they stay held until their batch is settled, should that come to nothing.

        An ancestor has no claims of its own: those that it waits for ended before it, so they are here, too.
        """
        claims: list[Claim] = []
        for held in overdue:
            self._held[id(held.node)] = self._held.pop(id(held.node))
            held.deadline_ns = self._clock_ns() + self._max_hold_ns
            if held.node.subtree is not None:
                claims += held.node.subtree.claims
        if overdue:
            self._forced.append(_ForcedBatch(claims, reason, overdue))

    def _let_go(self, leaving: Sequence[_Held]) -> None:
        for held in leaving:
            if self._held.get(id(held.node)) is held:
                self._release(held)

    def _count_passed(self, bills: Iterable[tuple[object, Bill]]) -> None:
        self._health.passed += 1
        self._count(bills)

    def _count(self, bills: Iterable[tuple[object, Bill]]) -> None:
        for _, bill in bills:
            self._count_bill(bill)

    def _count_bill(self, bill: Bill) -> None:
        if bill.quality is Quality.DEGRADED or bill.quality is Quality.UNAVAILABLE:
            self._health.degraded[bill.reason or "unknown"] += 1

    # Outside the mailbox: these call the desk, which may call back

    def _settle_forced(self) -> None:
        """All that leave for one reason at once: each time may take half a second, where another process bills them."""
        waiting: dict[str, tuple[list[Claim], list[_Held]]] = {}
        while self._forced:
            try:
                batch = self._forced.popleft()
            except IndexError:  # another thread was faster
                break
            claims, held = waiting.setdefault(batch.reason, ([], []))
            claims += batch.claims
            held += batch.held
        for reason, (claims, held) in waiting.items():
            self._settle_batch(_ForcedBatch(claims, reason, held))

    def _settle_batch(self, batch: _ForcedBatch) -> None:
        if batch.claims:
            try:
                self.desk.force(batch.claims, batch.reason)
            except Exception:  # noqa: BLE001 - the spans must leave all the same
                self._failed("force", "Calls could not be settled.")
        self._mailbox.post(self._settle, batch.claims, batch.reason)
        self._mailbox.post(self._let_go, batch.held)

    def _release_all(self, reason: str, deadline_ns: int) -> bool:
        self._mailbox.wait()
        if self._held:
            self._hasten(min(self._seconds_until(deadline_ns), self.meter_period_seconds))
        self._mailbox.post(self._force_all, reason)
        self._mailbox.wait()
        self._settle_forced()
        self._mailbox.wait()
        return self._forwarder.flush(self._seconds_until(deadline_ns))

    def _hasten(self, timeout_seconds: float) -> None:
        if timeout_seconds <= 0:
            return
        try:
            self.desk.hasten(timeout_seconds)
        except Exception:  # noqa: BLE001 - the spans must leave all the same
            self._failed("hasten", "The meters could not be asked for a reading.")

    def _seconds_until(self, deadline_ns: int) -> float:
        return max(0.0, (deadline_ns - self._clock_ns()) / NS_PER_SECOND)

    # Exit, fork, failure

    def _begin_to_hold(self) -> None:
        """The first span is to be held. An action of the mailbox, since two threads may have a first one at once.

        The hook is registered so late that it runs before the tracer provider's own, which ends the next processor.
        """
        if self._exit_hook is not None:
            return
        self._forwarder.start()
        at_exit = self._exit_hook = while_alive(weakref.WeakMethod(self._at_exit))
        atexit.register(at_exit)
        at_exit_of_worker(at_exit)

    def _at_exit(self) -> None:
        self._exit_patience_ns = self._clock_ns() + int(self.meter_period_seconds * NS_PER_SECOND)
        self._hand_on_all("shutdown")

    def _unhook_exit(self) -> None:
        if self._exit_hook is not None:
            atexit.unregister(self._exit_hook)
            self._exit_hook = None

    def _start_afresh(self) -> None:
        """In a forked child: the parent hands on what is held there, and its threads are not here."""
        self._unhook_exit()
        self._exit_patience_ns = None
        self._mailbox.renew()
        self._forwarder.renew()
        self._held.clear()
        self._forced.clear()
        self._first_deadline_ns = None
        self._tree.forget_claims()
        self._health.held = 0  # all else stays: the SDK's counters go on in the child, and none may go down

    def _action_failed(self) -> None:
        self._failed("action", "The energy of some spans is not accounted for.")

    def _failed(self, kind: str, message: str) -> None:
        self._troubles.warn(kind, message, exc_info=True)

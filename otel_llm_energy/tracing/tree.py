"""The tree of this process's spans, and what was billed below each of them."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence

from opentelemetry.sdk.trace import Span
from opentelemetry.trace import SpanContext

from otel_llm_energy.ledger.bill import Bill, Quality
from otel_llm_energy.tracing.claims import Claim, Whole
from otel_llm_energy.tracing.combining import CombinedBill


class Node(weakref.ref[Span]):
    """A local span's place in the tree: the weak reference to its span, so that it costs one object a span.

    Attributes:
        span_id: of the span.
        parent: the nearest local ancestor that had not left when the span started; ``None`` for a local root.
        marked: a call was made in this span or below; only such spans concern us.
        left: the span ended and was handed on.
        subtree: the books of a marked span, made at the first call.
    """

    __slots__ = ("left", "marked", "parent", "span_id", "subtree")

    span_id: int
    parent: Node | None
    marked: bool
    left: bool
    subtree: Subtree | None


class Subtree:
    """What was called and billed in a span and below it.

    Attributes:
        claims: unsettled calls of the span itself, in the order of their start.
        bills: of those that are settled.
        wholes: of those that are parts of an operation and are settled, the sum; made at the first of them.
        has_calls_below: there are calls in descendants, too.
        open: unsettled calls, here and below, that go on: their spans have not ended.
        waiting: unsettled calls, here and below, whose spans ended no later than this one.
        energy_nj: sum of the bills here and below; ``None`` if none has any energy.
        estimated: some of that energy is estimated.
        incomplete: a call here or below is missing from the sum, for good.
        ended_at: its place in the order of all ends; 0 while the span is open.
    """

    __slots__ = (
        "bills",
        "claims",
        "ended_at",
        "energy_nj",
        "estimated",
        "has_calls_below",
        "incomplete",
        "open",
        "waiting",
        "wholes",
    )

    def __init__(self) -> None:
        self.bills: list[tuple[Claim, Bill]] = []
        self.wholes: dict[Whole, CombinedBill] | None = None
        self.claims: list[Claim] = []
        self.has_calls_below = False
        self.open = 0
        self.waiting = 0
        self.energy_nj: int | None = None
        self.estimated = False
        self.incomplete = False
        self.ended_at = 0

    def show(self, claim: Claim, bill: Bill) -> None:
        """The span displays this bill."""
        if claim.whole is None:
            self.bills.append((claim, bill))
            return
        self.wholes = self.wholes or {}
        parts = self.wholes.get(claim.whole)
        if parts is None:
            self.wholes[claim.whole] = CombinedBill(bill)
        else:
            parts.add(bill)

    def add(self, bill: Bill) -> None:
        """Take in the bill of a call here or below."""
        if bill.energy_nj is None:
            self.incomplete = True
            return
        self.energy_nj = (self.energy_nj or 0) + bill.energy_nj
        self.estimated |= bill.quality is Quality.ESTIMATED


class _Binding:
    """Where a claim sits: at which node, shown by its span or only counted, and since when it is waited for.

    Attributes:
        kept_alive: not collected before the bill is there; see `SpanTree.bind`.
        waiting_since: the place of its span's end in the order of all ends; 0 while the span is open.
    """

    __slots__ = ("kept_alive", "node", "shown", "waiting_since")

    def __init__(self, node: Node, shown: bool, kept_alive: object) -> None:
        self.node = node
        self.shown = shown
        self.kept_alive = kept_alive
        self.waiting_since = 0


class SpanTree:
    """Knows which spans have calls below them and what these were billed.

    `started`, `find`, `above` and `mark` may be called from any thread; all else by one thread at a time.
    A node lives as long as its Span object, its children's nodes or whoever holds it: a background child that starts
    after its parent ended still finds it, and nothing is left of a span that was dropped without an end.
    """

    def __init__(self) -> None:
        self._nodes: dict[int, Node] = {}
        self._bindings: dict[Claim, _Binding] = {}
        self._ends = 0
        nodes = self._nodes

        def forget(reference: weakref.ref[Span]) -> None:
            # A test's id generator may have given the id again.
            if isinstance(reference, Node) and nodes.get(reference.span_id) is reference:
                del nodes[reference.span_id]

        self._forget = forget

    def started(self, span: Span) -> None:
        """Give ``span`` its place below its local parent."""
        node = Node(span, self._forget)
        node.marked = node.left = False
        node.subtree = None
        parent = span.parent
        node.parent = None if parent is None or parent.is_remote else self._ancestor(parent.span_id)
        node.span_id = span.get_span_context().span_id
        self._nodes[node.span_id] = node

    def _ancestor(self, span_id: int) -> Node | None:
        """The nearest one that has not left; and those above it are let go, lest an endless chain keep them all."""
        node = _remaining(self._nodes.get(span_id))
        if node is not None and node.parent is not None and node.parent.left:
            node.parent = _remaining(node.parent)
        return node

    def find(self, context: SpanContext | None) -> Node | None:
        """The node of a local span that is still referenced by someone, else ``None``."""
        return None if context is None or context.is_remote else self._nodes.get(context.span_id)

    def above(self, node: Node) -> Iterator[int]:
        """The ids of the spans above a node, the nearest first."""
        return (each.span_id for each in _chain(node.parent))

    def mark(self, node: Node) -> None:
        """From now on ``node`` and its ancestors concern us."""
        above: Node | None = node
        while above is not None:  # not by `_chain`: this is done for each call, in its thread
            above.marked = True
            above = above.parent

    def bind(self, node: Node, claim: Claim, shown: bool, kept_alive: object) -> None:
        """A call starts at ``node``. If ``shown``, its span displays the bill; otherwise it only counts.

        ``kept_alive`` is not collected before the bill is there: the span, for a call that ends it for certain, else
        ``None``. A stream that is thrown away in a reference cycle ends its span while it is collected, and of what
        nobody holds the weak references, such as nodes, are cleared before that.

        Where the span has ended already the call counts for the nearest ancestor that is still open.
        """
        binding = self._open_binding(node, shown, kept_alive)
        if binding is None or claim in self._bindings:
            return
        self._bindings[claim] = binding
        _subtree(binding.node).claims.append(claim)
        for each in _chain(binding.node):
            subtree = _subtree(each)
            subtree.open += 1
            subtree.incomplete |= subtree.ended_at > 0
            subtree.has_calls_below |= each is not binding.node or not binding.shown

    def _open_binding(self, node: Node, shown: bool, kept_alive: object) -> _Binding | None:
        for each in _chain(node):
            if not each.left and not _subtree(each).ended_at:
                return _Binding(each, shown and each is node, kept_alive)
            _subtree(each).incomplete = True
        return None

    def ended(self, node: Node) -> bool:
        """The span of ``node`` ends; returns whether there is a bill, here or below, worth waiting for."""
        self._ends += 1
        subtree = _subtree(node)
        subtree.ended_at = self._ends
        for claim in [each for each in subtree.claims if not (each.closed or self._bindings[each].shown)]:
            self._hand_up(claim, node)
        if subtree.claims:
            self._wait_for(subtree.claims, node)
        subtree.incomplete |= subtree.open > 0
        return subtree.waiting > 0

    def _hand_up(self, claim: Claim, node: Node) -> None:
        """The span ends before a call that it does not show: from now on that counts for one above, as in `bind`."""
        _subtree(node).claims.remove(claim)
        binding = self._open_binding(node, False, self._bindings.pop(claim).kept_alive)
        if binding is not None:
            self._bindings[claim] = binding
            _subtree(binding.node).claims.append(claim)

    def _wait_for(self, claims: Sequence[Claim], node: Node) -> None:
        for claim in claims:
            self._bindings[claim].waiting_since = self._ends
        for each in _chain(node):
            subtree = _subtree(each)
            subtree.open -= len(claims)
            if not subtree.ended_at or each is node:
                subtree.waiting += len(claims)

    def settle(self, claim: Claim, bill: Bill) -> list[Node]:
        """Add the bill at its node and above; returns the ended nodes that wait for nothing more, children first."""
        binding = self._bindings.pop(claim, None)
        if binding is None:
            return []
        own = _subtree(binding.node)
        own.claims.remove(claim)
        if binding.shown and not claim.withdrawn:
            own.show(claim, bill)
        added = None if claim.withdrawn else bill
        return [node for node in _chain(binding.node) if _settle_at(_subtree(node), binding, added)]

    def forget_claims(self) -> None:
        """A forked child waits for none of its parent's calls: their bills come in the parent."""
        self._bindings.clear()
        for node in list(self._nodes.values()):
            if node.subtree is not None:
                node.subtree.claims.clear()
                node.subtree.incomplete |= node.subtree.open + node.subtree.waiting > 0
                node.subtree.open = node.subtree.waiting = 0

    def __len__(self) -> int:
        return len(self._nodes)


def _settle_at(subtree: Subtree, binding: _Binding, bill: Bill | None) -> bool:
    """Enter the bill, if any, in the books of one node; returns whether an ended node waits for nothing more."""
    if not binding.waiting_since:
        subtree.open -= 1
    elif not subtree.ended_at or subtree.ended_at >= binding.waiting_since:
        subtree.waiting -= 1
    if bill is not None:
        subtree.add(bill)
    return subtree.ended_at > 0 and subtree.waiting == 0


def _chain(node: Node | None) -> Iterator[Node]:
    """A node and its ancestors, upwards."""
    while node is not None:
        yield node
        node = node.parent


def _remaining(node: Node | None) -> Node | None:
    """The node, or its nearest ancestor, that has not left."""
    while node is not None and node.left:
        node = node.parent
    return node


def _subtree(node: Node) -> Subtree:
    if node.subtree is None:
        node.subtree = Subtree()
    return node.subtree

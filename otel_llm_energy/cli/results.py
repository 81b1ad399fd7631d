"""What the demo found, from spans and the status: a tree, a balance, the meters; and the same as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.util.types import AttributeValue

from otel_llm_energy import conventions
from otel_llm_energy.cli.metering import measured, missing
from otel_llm_energy.quantities import NJ_PER_JOULE, NS_PER_SECOND
from otel_llm_energy.status import ChannelStatus, Status

_ENERGY_PREFIX: Final = "llm.energy."
_OTHER_FACTS: Final = {
    "provider": "gen_ai.provider.name",
    "model": "gen_ai.response.model",
    "input_tokens": "gen_ai.usage.input_tokens",
    "output_tokens": "gen_ai.usage.output_tokens",
}


@dataclass(frozen=True, slots=True)
class Node:
    """A span and those below it, in the order of their starts.

    Attributes:
        label: the question, where the span is a call; else the span's name.
        depth: 0 for the root.
    """

    span: ReadableSpan
    label: str
    depth: int
    children: Sequence[Node]

    @property
    def attributes(self) -> Mapping[str, AttributeValue]:
        return self.span.attributes or {}

    @property
    def is_call(self) -> bool:
        """Whether it shows energy of its own, or why there is none."""
        return "gen_ai.operation.name" in self.attributes

    def joules(self, key: str) -> float | None:
        """An attribute in joules; ``None`` if it is not there."""
        value = self.attributes.get(key)
        return float(value) if isinstance(value, (int, float)) else None

    def text(self, key: str) -> str:
        """An attribute as text; empty if it is not there."""
        return str(self.attributes.get(key, ""))

    def walk(self) -> Iterator[Node]:
        """Itself and all below it."""
        yield self
        for child in self.children:
            yield from child.walk()


@dataclass(frozen=True, slots=True)
class ChannelBalance:
    """Where the energy of one counter went since `instrument()`.

    ``metered_joules = attributed_joules + pending_joules + sum(unattributed_joules)``.
    """

    channel: str
    component: str
    meter: str
    estimated: bool
    metered_joules: float
    attributed_joules: float
    pending_joules: float
    unattributed_joules: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Results:
    """All that the demo shows."""

    tree: Node
    balance: Sequence[ChannelBalance]
    status: Status

    @property
    def measured(self) -> bool:
        """A meter was read."""
        return measured(self.status)

    @property
    def estimated(self) -> bool:
        """There are joules, and none of them is measured."""
        return bool(self.balance) and not self.measured

    def calls(self) -> list[Node]:
        """The LLM calls, in the order of the tree."""
        return [node for node in self.tree.walk() if node.is_call]

    def as_json(self) -> dict[str, Any]:
        """One object: ``calls``, ``balance`` and ``meters``; joules and watts, ``null`` where unknown."""
        return {
            "calls": [_call_json(node) for node in self.calls()],
            "balance": [_balance_json(one) for one in self.balance],
            "meters": {
                "read": [_meter_json(each) for each in self.status.channels],
                "left_out": [
                    {"name": one.name, "reason": one.reason, "message": one.message} for one in missing(self.status)
                ],
            },
        }


def tree_of(spans: Sequence[ReadableSpan], root_name: str, questions: Mapping[str, str]) -> Node | None:
    """The tree below the span of that name; ``None`` while it is not there.

    Args:
        spans: finished ones, in any order.
        root_name: name of the root.
        questions: the question of each answer, by the answer's id.
    """
    below: dict[int | None, list[ReadableSpan]] = {}
    for span in sorted(spans, key=lambda each: each.start_time or 0):
        below.setdefault(span.parent.span_id if span.parent else None, []).append(span)

    def node(span: ReadableSpan, depth: int) -> Node:
        answer_id = str((span.attributes or {}).get("gen_ai.response.id", ""))
        context = span.get_span_context()
        children = [node(child, depth + 1) for child in below.get(context.span_id if context else None, ())]
        return Node(span, questions.get(answer_id, span.name), depth, children)

    root = next((span for span in below.get(None, ()) if span.name == root_name), None)
    return None if root is None else node(root, 0)


def balance_of(status: Status) -> list[ChannelBalance]:
    """Where the energy of each counter went."""
    return [_channel_balance(each) for each in status.channels]


def _channel_balance(each: ChannelStatus) -> ChannelBalance:
    channel, balance = each.channel, each.balance
    return ChannelBalance(
        channel.id,
        channel.component,
        channel.meter,
        channel.estimated,
        metered_joules=balance.metered_nj / NJ_PER_JOULE,
        attributed_joules=balance.billed_nj / NJ_PER_JOULE,
        pending_joules=balance.pending_nj / NJ_PER_JOULE,
        unattributed_joules={reason: energy_nj / NJ_PER_JOULE for reason, energy_nj in balance.unattributed_nj.items()},
    )


def _call_json(node: Node) -> dict[str, Any]:
    context = node.span.get_span_context()
    facts: dict[str, Any] = {"question": node.label, "span": node.span.name}
    if context is not None:
        facts |= {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}
    facts |= {name: node.attributes.get(key) for name, key in _OTHER_FACTS.items()}
    start_ns, end_ns = node.span.start_time or 0, node.span.end_time or 0
    facts["seconds"] = (end_ns - start_ns) / NS_PER_SECOND
    facts |= {one.key.removeprefix(_ENERGY_PREFIX): node.attributes.get(one.key) for one in conventions.ATTRIBUTES}
    return facts


def _balance_json(one: ChannelBalance) -> dict[str, Any]:
    return {
        "channel": one.channel,
        "component": one.component,
        "meter": one.meter,
        "estimated": one.estimated,
        "metered_joules": one.metered_joules,
        "attributed_joules": one.attributed_joules,
        "pending_joules": one.pending_joules,
        "unattributed_joules": dict(one.unattributed_joules),
    }


def _meter_json(each: ChannelStatus) -> dict[str, Any]:
    channel = each.channel
    return {
        "name": channel.meter,
        "channel": channel.id,
        "component": channel.component,
        "estimated": channel.estimated,
        "idle_watts": each.idle_watts,
        "problem": each.problem,
    }

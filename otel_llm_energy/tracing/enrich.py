"""From bills to attributes, and from a finished span to an enriched copy of it. Pure functions."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from opentelemetry.attributes import BoundedAttributes
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.util.types import AttributeValue

from otel_llm_energy import conventions
from otel_llm_energy.conventions import Tier
from otel_llm_energy.ledger.bill import Bill, Phase, Quality
from otel_llm_energy.quantities import JOULES_PER_KWH, NJ_PER_JOULE, NS_PER_SECOND
from otel_llm_energy.tracing.claims import Claim, Tokens, Whole
from otel_llm_energy.tracing.span_facts import raw_attributes

Value = str | bool | int | float

_NJ_PER_MJ: Final = 1_000_000
_PHASE_KEYS: Final[Mapping[Phase, str]] = {
    "prefill": conventions.PREFILL_JOULES,
    "decode": conventions.DECODE_JOULES,
    "load": conventions.LOAD_JOULES,
}
_COMPONENT_KEYS: Final[Mapping[str, str]] = {
    "cpu": conventions.CPU_JOULES,
    "memory": conventions.MEMORY_JOULES,
    "gpu": conventions.GPU_JOULES,
    "host": conventions.HOST_JOULES,
}
_CLASS_EDGES: Final = (0.001, 0.01, 0.1, 1, 10, 100, 1_000, 10_000, 100_000)
_CLASS_NAMES: Final = (
    f"<{_CLASS_EDGES[0]:g} J",
    *(f"{low:g}-{high:g} J" for low, high in pairwise(_CLASS_EDGES)),
    f">={_CLASS_EDGES[-1]:g} J",
)
_KEYS_IN_ORDER: Final = tuple(attribute.key for attribute in conventions.ATTRIBUTES)


@dataclass(frozen=True, slots=True)
class Style:
    """How much a span says.

    Attributes:
        detail: the tiers of attributes that are written.
        grid_grams_per_kwh: carbon intensity of the electricity, g of CO2 equivalent per kWh; ``None`` to leave
            emissions out.
    """

    detail: Tier = "standard"
    grid_grams_per_kwh: float | None = None


@dataclass(frozen=True, slots=True)
class Total:
    """The sum over an ancestor's subtree, nanojoules; ``None`` if nothing below has any energy."""

    energy_nj: int | None
    incomplete: bool = False
    estimated: bool = False


def call_attributes(bill: Bill, tokens: Tokens, style: Style) -> dict[str, Value]:
    """What the span of a call says of its bill, in no order."""
    values: dict[str, Value] = {conventions.QUALITY: bill.quality.value}
    if bill.reason is not None:
        values[conventions.REASON] = bill.reason
    if bill.energy_nj is None:
        return values
    joules = bill.energy_nj / NJ_PER_JOULE
    shown_joules = values[conventions.JOULES] = rounded(joules)
    if style.detail != "minimal":
        _add_standard(values, bill, bill.energy_nj, tokens)
        values[conventions.CLASS] = energy_class(shown_joules)
    if style.detail == "full":
        _add_full(values, bill, joules, tokens, style)
    return values


def _add_standard(values: dict[str, Value], bill: Bill, energy_nj: int, tokens: Tokens) -> None:
    joules = energy_nj / NJ_PER_JOULE
    if tokens.output:
        values[conventions.JOULES_PER_OUTPUT_TOKEN] = rounded(joules / tokens.output)
    if bill.above_idle_nj is not None:
        values[conventions.ABOVE_IDLE_JOULES] = rounded(bill.above_idle_nj / NJ_PER_JOULE)
    if bill.lower_nj is not None:
        values[conventions.LOWER_JOULES] = rounded(bill.lower_nj / NJ_PER_JOULE)
    if bill.upper_nj is not None:
        values[conventions.UPPER_JOULES] = rounded(bill.upper_nj / NJ_PER_JOULE)
    for phase, phase_nj in bill.phases_nj.items():
        if phase in _PHASE_KEYS:
            values[_PHASE_KEYS[phase]] = rounded(phase_nj / NJ_PER_JOULE)
    values[conventions.METER] = bill.meter
    values[conventions.SCOPE] = bill.scope
    values[conventions.MILLIJOULES] = round(energy_nj / _NJ_PER_MJ)


def _add_full(values: dict[str, Value], bill: Bill, joules: float, tokens: Tokens, style: Style) -> None:
    for component, part_nj in bill.components_nj.items():
        if component in _COMPONENT_KEYS:
            values[_COMPONENT_KEYS[component]] = rounded(part_nj / NJ_PER_JOULE)
    values[conventions.METHOD] = bill.method
    values[conventions.COVERAGE] = rounded(bill.coverage)
    values[conventions.CONCURRENCY] = rounded(bill.concurrency)
    if tokens.input is not None and tokens.output is not None and tokens.input + tokens.output:
        values[conventions.JOULES_PER_TOKEN] = rounded(joules / (tokens.input + tokens.output))
    if bill.work_ns:
        values[conventions.MEAN_WATTS] = rounded(joules * NS_PER_SECOND / bill.work_ns)
    values[conventions.QUEUE_SECONDS] = rounded(bill.queue_ns / NS_PER_SECOND)
    if style.grid_grams_per_kwh is not None:
        values[conventions.CO2E_GRAMS] = rounded(joules / JOULES_PER_KWH * style.grid_grams_per_kwh)


def total_attributes(total: Total, style: Style) -> dict[str, Value]:
    """What an ancestor says of its subtree. A total with an estimate in it is labelled as one."""
    values: dict[str, Value] = {}
    if style.detail == "minimal":
        return values
    if total.energy_nj is not None:
        values[conventions.SUBTREE_JOULES] = rounded(total.energy_nj / NJ_PER_JOULE)
    if total.incomplete:
        values[conventions.SUBTREE_INCOMPLETE] = True
    if total.estimated:
        values[conventions.QUALITY] = Quality.ESTIMATED.value
    return values


def rounded(value: float) -> float:
    """To six significant digits."""
    return float(f"{value:.6g}")


def energy_class(shown_joules: float) -> str:
    """The decade of joules as they are displayed (`rounded`), lower edge included: ``"1-10 J"``."""
    return _CLASS_NAMES[bisect_right(_CLASS_EDGES, shown_joules)]


def combined_tokens(counted: Iterable[Claim | Whole]) -> Tokens:
    """The token counts of all the calls that one span displays."""
    counted = list(counted)
    return Tokens(_sum(each.input_tokens for each in counted), _sum(each.output_tokens for each in counted))


def _sum(counts: Iterable[int | None]) -> int | None:
    """The sum, unless one is unknown."""
    total = 0
    for count in counts:
        if count is None:
            return None
        total += count
    return total


def enriched_copy(span: ReadableSpan, values: Mapping[str, Value]) -> ReadableSpan:
    """A copy of a finished span with ``values`` added; the span itself is shared with other processors.

    The user's attributes all stay, as do the counts of dropped ones; of ours those are left out that exceed the
    provider's limit, the last ones in the order of `conventions.ATTRIBUTES`.
    """
    attributes = raw_attributes(span)
    bounds = span._attributes
    limit = bounds.maxlen if isinstance(bounds, BoundedAttributes) else None
    value_limit = bounds.max_value_len if isinstance(bounds, BoundedAttributes) else None
    if value_limit is not None:
        values = {key: _cut(value, value_limit) for key, value in values.items()}
    if limit is None or len(attributes) + len(values) <= limit:
        for key, value in values.items():
            attributes.setdefault(key, value)
    else:
        for key in _KEYS_IN_ORDER:
            if key in values and key not in attributes and len(attributes) < limit:
                attributes[key] = values[key]
    clone = object.__new__(type(span))
    vars(clone).update(vars(span))
    clone._attributes = _frozen(attributes, limit, value_limit, span.dropped_attributes)
    return clone


def _frozen(
    attributes: dict[str, AttributeValue], limit: int | None, value_limit: int | None, dropped: int
) -> BoundedAttributes:
    # Made without limits, since at its limit the class drops the oldest attribute: a user's.
    frozen = BoundedAttributes(None, None, immutable=True)
    # The values are clean, so the SDK's own way of copying (its __deepcopy__) saves cleaning them again: 10 us.
    frozen._dict = attributes
    if len(frozen) != len(attributes):
        frozen = BoundedAttributes(None, attributes, immutable=True)
    frozen.maxlen = limit
    frozen.max_value_len = value_limit
    frozen.dropped = dropped
    return frozen


def _cut(value: Value, length: int) -> Value:
    return value[:length] if isinstance(value, str) else value

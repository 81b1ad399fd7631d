"""Several bills as one, added up one by one, so that none of them need be kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, TypeVar

from otel_llm_energy.ledger.bill import Bill, Phase, Quality, Scope

_Key = TypeVar("_Key", bound=str)

_WORST_FIRST: Final = tuple(Quality)
_NARROWEST_FIRST: Final[tuple[Scope, ...]] = ("process", "device", "host")


class CombinedBill:
    """The bill of an operation, or a span, that has several: parts, or a retry or a fallback within one span.

    Args:
        first: the others are added to it.
    """

    def __init__(self, first: Bill) -> None:
        self._first = self._worst = first
        self._count = 1
        self._first_known: Bill | None = None
        self._energy_nj = self._work_ns = self._queue_ns = 0
        self._above_idle_nj: int | None = 0
        self._lower_nj: int | None = 0
        self._upper_nj: int | None = 0
        self._phases_nj: dict[Phase, int] = {}
        self._components_nj: dict[str, int] = {}
        self._meters: dict[str, None] = {}
        self._scope: Scope = "process"
        self._coverages, self._concurrencies = _Mean(), _Mean()
        self._add_if_known(first)

    def add(self, bill: Bill) -> None:
        """Take in one more."""
        self._count += 1
        if _WORST_FIRST.index(bill.quality) < _WORST_FIRST.index(self._worst.quality):
            self._worst = bill
        self._add_if_known(bill)

    def _add_if_known(self, bill: Bill) -> None:
        if bill.energy_nj is None:
            return
        if self._first_known is None:
            self._first_known = bill
            self._phases_nj, self._components_nj = dict(bill.phases_nj), dict(bill.components_nj)
        else:
            self._phases_nj = _sums(self._phases_nj, bill.phases_nj)
            self._components_nj = _sums(self._components_nj, bill.components_nj)
        self._energy_nj += bill.energy_nj
        self._above_idle_nj = _sum(self._above_idle_nj, bill.above_idle_nj)
        self._lower_nj = _sum(self._lower_nj, bill.lower_nj)
        self._upper_nj = _sum(self._upper_nj, bill.upper_nj)
        self._meters.update(dict.fromkeys(bill.meter.split("+")))
        self._scope = max(self._scope, bill.scope, key=_NARROWEST_FIRST.index)
        self._coverages.add(bill.coverage, bill.work_ns)
        self._concurrencies.add(bill.concurrency, bill.work_ns)
        self._work_ns += bill.work_ns
        self._queue_ns += bill.queue_ns

    @property
    def bill(self) -> Bill:
        """Of all of them together."""
        if self._count == 1 or self._first_known is None:
            return self._first
        missing = self._worst.quality is Quality.UNAVAILABLE
        return Bill(
            energy_nj=self._energy_nj,
            quality=Quality.DEGRADED if missing else self._worst.quality,
            reason=self._worst.reason,
            above_idle_nj=self._above_idle_nj,
            lower_nj=self._lower_nj,
            upper_nj=None if missing else self._upper_nj,
            phases_nj=self._phases_nj.copy(),
            components_nj=self._components_nj.copy(),
            meter="+".join(self._meters),
            scope=self._scope,
            method=self._first_known.method,
            coverage=self._coverages.value,
            concurrency=self._concurrencies.value,
            work_ns=self._work_ns,
            queue_ns=self._queue_ns,
        )


class _Mean:
    """By work, or where there was none, by bills."""

    def __init__(self) -> None:
        self._sum = self._by_work = 0.0
        self._count = self._work_ns = 0

    def add(self, value: float, work_ns: int) -> None:
        self._sum += value
        self._count += 1
        self._by_work += value * work_ns
        self._work_ns += work_ns

    @property
    def value(self) -> float:
        return self._by_work / self._work_ns if self._work_ns else self._sum / self._count


def combined(bills: Sequence[Bill]) -> Bill:
    """All of them as one."""
    total = CombinedBill(bills[0])
    for bill in bills[1:]:
        total.add(bill)
    return total.bill


def _sum(one: int | None, other: int | None) -> int | None:
    """The sum, unless a part is unknown."""
    return None if one is None or other is None else one + other


def _sums(one: Mapping[_Key, int], other: Mapping[_Key, int]) -> dict[_Key, int]:
    """The sums of the keys that both have: a phase that one call did not part is unknown for all of them."""
    return {key: part_nj + other[key] for key, part_nj in one.items() if key in other}

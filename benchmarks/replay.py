"""What would other rules have said on the very same readings? A ledger that keeps what it was told, told again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from otel_llm_energy.ledger.bill import Window
from otel_llm_energy.ledger.entry import Entry
from otel_llm_energy.ledger.ledger import Ledger
from otel_llm_energy.quantities import NJ_PER_JOULE

_KEPT_AS_THEY_ARE = ("add_channel", "read", "sample", "add_server")


@dataclass(frozen=True, slots=True)
class Told:
    """One thing that a ledger was told: the method and its arguments; calls by their number."""

    method: str
    arguments: tuple[Any, ...]
    options: dict[str, Any]


class KeepingLedger:
    """A ledger, and what it is told written down. Made where the runtime would make its own.

    Not a subclass: there is none of a compiled class.
    """

    def __init__(self, start_ns: int, **options: Any) -> None:
        self._ledger = Ledger(start_ns, **options)
        self.made_with = (start_ns, options)
        self.told: list[Told] = []
        self._numbers: dict[Entry, int] = {}

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._ledger, name)
        return partial(self._tell, name, method) if name in _KEPT_AS_THEY_ARE else method

    @property
    def caution(self) -> str | None:
        return self._ledger.caution

    @caution.setter
    def caution(self, reason: str | None) -> None:
        self._ledger.caution = reason

    def open(self, *arguments: Any, **options: Any) -> Entry:
        self._keep("open", *arguments, **options)
        entry = self._ledger.open(*arguments, **options)
        self._numbers[entry] = len(self._numbers)
        return entry

    def close(self, entry: Entry, *arguments: Any, **options: Any) -> None:
        self._keep("close", self._numbers[entry], *arguments, **options)
        self._ledger.close(entry, *arguments, **options)

    def settle(self, now_ns: int, *others: Any) -> list[Entry]:
        self._keep("settle", now_ns)
        return self._ledger.settle(now_ns, *others)

    def _tell(self, name: str, method: Callable[..., None], *arguments: Any, **options: Any) -> None:
        self._keep(name, *arguments, **options)
        method(*arguments, **options)

    def _keep(self, method: str, *arguments: Any, **options: Any) -> None:
        self.told.append(Told(method, arguments, options))


Change = Callable[[Told, Sequence[Entry]], Told]


def replayed(kept: KeepingLedger, change: Change | None = None, **options: Any) -> list[float | None]:
    """Each call's joules, in the order of their start, by a new ledger that is told ``change`` of it all.

    ``options`` are for the new ledger, where it is to differ from the one that kept.
    """
    start_ns, made_with = kept.made_with
    ledger = Ledger(start_ns, **{**made_with, **options})
    entries: list[Entry] = []
    for original in kept.told:
        told = change(original, entries) if change is not None else original
        arguments = list(told.arguments)
        if told.method == "close":
            arguments[0] = entries[arguments[0]]
        result = getattr(ledger, told.method)(*arguments, **told.options)
        if told.method == "open":
            entries.append(result)
    return [_joules(entry) for entry in entries]


def without_activity(told: Told, entries: Sequence[Entry]) -> Told:
    """u_s = 1: all energy above idle is the calls'."""
    if told.method != "sample":
        return told
    return replace(told, arguments=(replace(told.arguments[0], by_server_ns={}),))


def without_windows(told: Told, entries: Sequence[Entry]) -> Told:
    """A call is at work from its start to its end, as its client sees it."""
    if told.method != "close" or not told.arguments[1]:
        return told
    number, windows = told.arguments
    span = Window(entries[number].opened_ns, windows[-1].end_ns)
    return Told("close", (number, (span,)), {"reported": False})


def _joules(entry: Entry) -> float | None:
    if entry.bill is None or entry.bill.energy_nj is None:
        return None
    return entry.bill.energy_nj / NJ_PER_JOULE

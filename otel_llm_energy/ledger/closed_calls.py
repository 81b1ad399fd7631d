"""Closed calls that wait for their bills."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from otel_llm_energy.ledger.entry import Entry

_ByEnd = tuple[int, int, Entry]
"""(end of what it is charged for, ns; a number that grows with each closing; the entry)"""


class ClosedCalls:
    """Closed entries in the order in which they can be billed.

    Nearly all come in that order: to sort them now and then takes less than a heap does for each.
    """

    def __init__(self) -> None:
        self._in_order: deque[_ByEnd] = deque()
        self._new: list[_ByEnd] = []
        self._count = 0

    def __bool__(self) -> bool:
        return bool(self._in_order or self._new)

    def __iter__(self) -> Iterator[Entry]:
        """All of them, in order."""
        return iter([entry for _, _, entry in sorted([*self._in_order, *self._new])])

    def add(self, entry: Entry) -> None:
        """A call was closed."""
        self._count += 1
        self._new.append((entry.last_charged_ns, self._count, entry))

    def take(self, swept_ns: int | None) -> Iterator[Entry]:
        """Take out, one by one, those that nothing is charged to after ``swept_ns``; all if that is ``None``."""
        if self._new:
            self._in_order = deque(sorted([*self._in_order, *self._new]))
            self._new = []
        waiting = self._in_order
        while waiting and (swept_ns is None or waiting[0][0] <= swept_ns):
            yield waiting.popleft()[2]

"""One call in the ledger's books."""

from __future__ import annotations

from otel_llm_energy.ledger.bill import Bill, Window


class Entry:
    """A call that was opened, and what became of it.

    Attributes:
        server: the server that it is aimed at.
        route: calls of one route either all report timings or none does.
        opened_ns: when it was opened.
        windows: its work windows, once it is closed.
        counted_from_ns: it was taken to be at work from here on before its windows were known; ``None`` if not.
        charged: the stretches of time in which the timeline counts it, once it is closed. They are the windows
            unless some of them was swept before it was known.
        caution: a reason that its server is not what it seems, e.g. ``"relay"``.
        bill: what it was billed, once it was.
    """

    __slots__ = ("bill", "caution", "charged", "counted_from_ns", "opened_ns", "route", "server", "windows")

    def __init__(self, server: str, route: str, opened_ns: int) -> None:
        self.server = server
        self.route = route
        self.opened_ns = opened_ns
        self.windows: tuple[Window, ...] = ()
        self.counted_from_ns: int | None = None
        self.charged: tuple[tuple[int, int], ...] = ()
        self.caution: str | None = None
        self.bill: Bill | None = None

    @property
    def start_ns(self) -> int:
        """Nothing before this matters to the call's bill."""
        return min([self.opened_ns, *(start_ns for start_ns, _ in self.charged)])

    @property
    def last_charged_ns(self) -> int:
        """Nothing after this matters to the call's bill."""
        ends_ns = [end_ns for _, end_ns in self.charged]
        ends_ns.extend(window.end_ns for window in self.windows)
        return max(ends_ns, default=self.opened_ns)

    @property
    def work_ns(self) -> int:
        return sum(window.end_ns - window.start_ns for window in self.windows)

    def charged_within(self, window: Window) -> list[tuple[int, int]]:
        """The parts of a window for which the call is charged."""
        parts = ((max(s, window.start_ns), min(e, window.end_ns)) for s, e in self.charged)
        return [(start_ns, end_ns) for start_ns, end_ns in parts if end_ns > start_ns]

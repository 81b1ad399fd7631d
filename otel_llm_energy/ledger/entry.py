"""One call in the ledger's books."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from otel_llm_energy.ledger.bill import Bill, Window

Charged = tuple[int, int, int]  # start, end, weight


class Entry:
    """A call that was opened, and what became of it.

    Attributes:
        server: the server that it is aimed at.
        route: calls of one route either all report timings or none does.
        opened_ns: when it was opened.
        closed: the call has ended.
        windows: its work windows, once it is closed.
        counted_from_ns: it was taken to be at work from here on before its windows were known; ``None`` if not.
        charged: the stretches of time in which the timeline counts it, and its weight there, once it is closed. They
            are the windows unless some of them was swept before it was known.
        stretches: the parts of the windows for which the call is charged, adjoining ones together.
        work_ns, charged_ns, within_ns: lengths of the windows, of ``charged`` and of ``stretches``.
        caution: a reason that its server is not what it seems, e.g. ``"relay"``.
        bill: what it was billed, once it was.
    """

    __slots__ = (
        "bill",
        "caution",
        "charged",
        "charged_ns",
        "closed",
        "counted_from_ns",
        "opened_ns",
        "route",
        "server",
        "stretches",
        "windows",
        "within_ns",
        "work_ns",
    )

    def __init__(self, server: str, route: str, opened_ns: int) -> None:
        self.server = server
        self.route = route
        self.opened_ns = opened_ns
        self.closed = False
        self.windows: tuple[Window, ...] = ()
        self.counted_from_ns: int | None = None
        self.charged: tuple[Charged, ...] = ()
        self.stretches: list[list[Window]] = []
        self.work_ns = self.charged_ns = self.within_ns = 0
        self.caution: str | None = None
        self.bill: Bill | None = None

    @property
    def reported(self) -> bool:
        """Its windows are those that the server, or a first chunk, told; else its one window is the call."""
        return any(window.phase != "work" for window in self.windows)

    def close(self, windows: tuple[Window, ...], charged: tuple[Charged, ...]) -> None:
        """The call has ended; see `windows` and `charged`."""
        self.closed = True
        self.windows = windows
        self.charged = charged
        self.stretches = _stretches(windows, charged)
        self.work_ns = sum([window.end_ns - window.start_ns for window in windows])
        self.charged_ns = sum([end_ns - start_ns for start_ns, end_ns, _ in charged])
        self.within_ns = sum([stretch[-1].end_ns - stretch[0].start_ns for stretch in self.stretches])

    @property
    def start_ns(self) -> int:
        """Nothing before this matters to the call's bill."""
        return min(self.opened_ns, self.charged[0][0]) if self.charged else self.opened_ns

    @property
    def last_charged_ns(self) -> int:
        """Nothing after this matters to the call's bill."""
        end_ns = max(self.opened_ns, self.windows[-1].end_ns) if self.windows else self.opened_ns
        return max(end_ns, self.charged[-1][1]) if self.charged else end_ns

    @property
    def charged_exactly(self) -> bool:
        """The call is charged for its windows and for nothing else."""
        return self.charged_ns == self.within_ns == self.work_ns


def _stretches(windows: Sequence[Window], charged: Sequence[Charged]) -> list[list[Window]]:
    """The parts of the windows for which the call is charged; adjoining ones make one stretch."""
    stretches: list[list[Window]] = []
    for window in windows:
        for part in _charged_within(window, charged):
            if stretches and stretches[-1][-1].end_ns == part.start_ns:
                stretches[-1].append(part)
            else:
                stretches.append([part])
    return stretches


def _charged_within(window: Window, charged: Sequence[Charged]) -> Iterator[Window]:
    for charged_start_ns, charged_end_ns, _ in charged:
        if charged_start_ns <= window.start_ns and window.end_ns <= charged_end_ns:
            yield window
            continue
        start_ns, end_ns = max(charged_start_ns, window.start_ns), min(charged_end_ns, window.end_ns)
        if end_ns > start_ns:
            yield window._replace(start_ns=start_ns, end_ns=end_ns)

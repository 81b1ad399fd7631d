"""One call in the ledger's books."""

from __future__ import annotations

from collections.abc import Sequence

from otel_llm_energy.ledger.bill import Bill, Window

Charged = tuple[int, int, int]
"""A stretch of time for which a call is charged: (start and end in ns, weight)."""
Stretch = tuple[int, int, Sequence[Window]]
"""Parts of a call's windows for which it is charged, and which adjoin: (start and end in ns, those parts)."""


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
        work_ns, charged_ns: lengths of the windows and of ``charged``.
        within_ns: for how much of its windows the call is charged.
        caution: a reason that its server is not what it seems, e.g. ``"relay"``.
        abandoned: it was closed because it was open for so long.
        bill: what it was billed, once it was.
    """

    __slots__ = (
        "abandoned",
        "bill",
        "caution",
        "charged",
        "charged_ns",
        "closed",
        "counted_from_ns",
        "opened_ns",
        "route",
        "server",
        "windows",
        "within_ns",
        "work_ns",
    )

    def __init__(self, server: str, route: str, opened_ns: int) -> None:
        self.server = server
        self.route = route
        self.opened_ns = opened_ns
        self.closed = self.abandoned = False
        self.windows: tuple[Window, ...] = ()
        self.counted_from_ns: int | None = None
        self.charged: tuple[Charged, ...] = ()
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
        for start_ns, end_ns, _, _ in windows:
            self.work_ns += end_ns - start_ns
        for start_ns, end_ns, _ in charged:
            self.charged_ns += end_ns - start_ns
        for start_ns, end_ns, _, _ in self._charged_windows():
            self.within_ns += end_ns - start_ns

    @property
    def start_ns(self) -> int:
        """Nothing before this matters to the call's bill."""
        return min(self.opened_ns, self.charged[0][0]) if self.charged else self.opened_ns

    @property
    def last_charged_ns(self) -> int:
        """Nothing after this matters to the call's bill."""
        end_ns = max(self.opened_ns, self.windows[-1].end_ns) if self.windows else self.opened_ns
        return max(end_ns, self.charged[-1][1]) if self.charged else end_ns

    def stretches(self) -> Sequence[Stretch]:
        """The parts of the windows for which the call is charged, adjoining ones together.

        Not kept: whatever a call keeps until it is billed, Python's garbage collection looks at time and again.
        """
        parts = self._charged_windows()
        if not parts:
            return ()
        start_ns, end_ns = parts[0].start_ns, parts[-1].end_ns
        if end_ns - start_ns == self.within_ns:
            return ((start_ns, end_ns, parts),)
        adjoining: list[list[Window]] = []
        for part in parts:
            if adjoining and adjoining[-1][-1].end_ns == part.start_ns:
                adjoining[-1].append(part)
            else:
                adjoining.append([part])
        return [(each[0].start_ns, each[-1].end_ns, each) for each in adjoining]

    @property
    def charged_exactly(self) -> bool:
        """The call is charged for its windows and for nothing else."""
        return self.charged_ns == self.work_ns == self.within_ns

    def _charged_windows(self) -> Sequence[Window]:
        """The parts of the windows for which the call is charged, in order."""
        windows, charged = self.windows, self.charged
        if not windows or (len(charged) == 1 and _encloses(charged[0], windows)):
            return windows
        parts: list[Window] = []
        for window in windows:
            for charged_start_ns, charged_end_ns, _ in charged:
                start_ns, end_ns = max(charged_start_ns, window.start_ns), min(charged_end_ns, window.end_ns)
                if end_ns > start_ns:
                    parts.append(window._replace(start_ns=start_ns, end_ns=end_ns))
        return parts


def length_ns(stretches: Sequence[Stretch]) -> int:
    """Of all of them."""
    total_ns = 0
    for start_ns, end_ns, _ in stretches:
        total_ns += end_ns - start_ns
    return total_ns


def _encloses(charged: Charged, windows: Sequence[Window]) -> bool:
    return charged[0] <= windows[0].start_ns and windows[-1].end_ns <= charged[1]

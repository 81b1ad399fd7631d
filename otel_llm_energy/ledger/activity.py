"""Which part of a machine's activity was whose: cells of busy time between samples."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from otel_llm_energy.ledger.timeline import Timeline
from otel_llm_energy.ledger.tracks import DROPPED_AT_ONCE
from otel_llm_energy.quantities import NS_PER_SECOND, ActivitySample

# Shorter cells drown in the 10 ms ticks of the kernel's counters (u_s 16 % low at 5 ms).
_SHORTEST_CELL_NS = NS_PER_SECOND // 4
_LEAST_BUSY_NS = NS_PER_SECOND // 5
_LONGEST_WAIT_NS = NS_PER_SECOND * 9 // 10
# A server that was found in mid-work is taken to have worked no less before, if that was not long.
_FOUND_LATE = 0.25
_FOUND_SOON_NS = NS_PER_SECOND
# Who keeps less of a CPU busy than this while at work passes calls on: what runs models on CPUs takes one or more.
_LEAST_CPUS = 0.05
# So many times its error is busy time that tells of work, in however short a time.
_TELLS_TIMES = 2


@dataclass(frozen=True, slots=True)
class Cell:
    """Busy time between two samples, ns. A server that is missing in ``by_server_ns`` has an unknown part."""

    start_ns: int
    end_ns: int
    total_ns: int
    by_server_ns: Mapping[str, int]
    capacity: int
    resolution_ns: int
    total_resolution_ns: int
    absent: frozenset[str] = frozenset()

    @property
    def others_ns(self) -> int:
        """Busy time of everything that is not a known server."""
        return max(self.total_ns - sum(self.by_server_ns.values()), 0)


@dataclass(slots=True)
class Parts:
    """Busy time inside one bucket, ns: of each known server, and of all others together.

    Attributes:
        absent: servers that are known to draw nothing from the resource in the whole bucket.
        known: no stretch of the bucket lies outside all cells.
        worked: servers that are known to have worked themselves, or of which that is not known.
        portions_of_run: the known servers' parts of the busy time in all buckets of the cell together, 0 to 1, where
            there are several (`otel_llm_energy.ledger.runs`).
    """

    by_server_ns: dict[str, int] = field(default_factory=dict)
    others_ns: int = 0
    resolution_ns: int = 0
    total_resolution_ns: int = 0
    known: bool = True
    absent: frozenset[str] = frozenset()
    worked: set[str] = field(default_factory=set)
    portions_of_run: Mapping[str, float] = field(default_factory=dict)

    @property
    def total_ns(self) -> int:
        return self.others_ns + sum(self.by_server_ns.values())


class ActivityLog:
    """The cells of one resource, in order.

    Attributes:
        ever_sampled: its activity can be known; not so on machines that cannot be looked into.
    """

    def __init__(self) -> None:
        self.ever_sampled = False
        self._last: ActivitySample | None = None
        self._cells: list[Cell] = []
        self._ends_ns: list[int] = []

    def add(self, sample: ActivitySample, *, final: bool = False) -> None:
        """Take a sample; it closes a cell if enough time or work lies between it and the last one kept.

        A ``final`` one (somebody cannot wait any longer) closes a cell in any case.
        """
        self.ever_sampled = True
        last = self._last
        if last is not None:
            length_ns, total_ns = sample.at_ns - last.at_ns, sample.total_ns - last.total_ns
            if length_ns <= 0 or (not final and _too_short(length_ns, total_ns)):
                return
            self._cells.append(_cell(last, sample, max(total_ns, 0)))
            self._ends_ns.append(sample.at_ns)
        self._last = sample

    @property
    def last(self) -> ActivitySample | None:
        """The sample that the next cell begins with."""
        return self._last

    @property
    def capacity(self) -> int | None:
        """How many CPUs (or GPU engines) can be busy at once; ``None`` before the first sample."""
        return self._last.capacity if self._last is not None else None

    def interrupt(self) -> None:
        """Samples come from another sampler now, whose sums begin elsewhere: no cell joins the last one to the next."""
        self._last = None

    def cells(self, start_ns: int, end_ns: int) -> list[Cell]:
        """The cells that overlap [start_ns, end_ns]."""
        index = bisect_right(self._ends_ns, start_ns)
        found: list[Cell] = []
        while index < len(self._cells) and self._cells[index].start_ns < end_ns:
            found.append(self._cells[index])
            index += 1
        return found

    def needed_until(self, end_ns: int) -> int | None:
        """End of the cell that a bucket ending at ``end_ns`` reaches into, or its own; ``None`` while that is open."""
        index = bisect_left(self._ends_ns, end_ns)
        if index < len(self._cells):
            return self._ends_ns[index] if self._cells[index].start_ns < end_ns else end_ns
        return end_ns if self._last is None or end_ns <= self._last.at_ns else None

    def forget_before(self, time_ns: int) -> None:
        keep = bisect_right(self._ends_ns, time_ns)
        if keep > DROPPED_AT_ONCE:
            del self._cells[:keep]
            del self._ends_ns[:keep]

    def busy_ns(self, start_ns: int, end_ns: int) -> int | None:
        """Busy time of the whole resource inside [start_ns, end_ns]; ``None`` where cells do not cover it."""
        busy_ns = covered_ns = 0
        for cell in self.cells(start_ns, end_ns):
            length_ns = min(cell.end_ns, end_ns) - max(cell.start_ns, start_ns)
            busy_ns += cell.total_ns * length_ns // (cell.end_ns - cell.start_ns)
            covered_ns += length_ns
        return busy_ns if covered_ns == end_ns - start_ns else None

    def parts(self, start_ns: int, end_ns: int, timelines: Mapping[str, Timeline]) -> Parts:
        """Busy time inside [start_ns, end_ns], of each server at work there and of the others."""
        cells = self.cells(start_ns, end_ns)
        parts = Parts(absent=_absent(cells, end_ns))
        timelines = without(timelines, parts.absent)
        covered_ns = 0
        hidden_ns: dict[str, int] = {}
        for sampled in cells:
            cell = self._completed(sampled, timelines)
            first, last = max(cell.start_ns, start_ns), min(cell.end_ns, end_ns)
            covered_ns += last - first
            parts.resolution_ns = max(parts.resolution_ns, cell.resolution_ns)
            parts.total_resolution_ns = max(parts.total_resolution_ns, cell.total_resolution_ns)
            found: list[_Inside] = []
            for server, timeline in timelines.items():
                if server in cell.by_server_ns:
                    inside = _busy_inside(cell, cell.by_server_ns[server], timeline, first, last)
                    parts.by_server_ns[server] = parts.by_server_ns.get(server, 0) + inside.busy_ns
                    if inside.worked or server not in sampled.by_server_ns:
                        parts.worked.add(server)
                    found.append(inside)
                else:
                    parts.worked.add(server)
                    hidden_ns[server] = hidden_ns.get(server, 0) + timeline.busy.between(first, last)
            parts.others_ns += _others_inside(cell, found, last - first)
        for server, at_work_ns in hidden_ns.items():
            work_ns = timelines[server].busy.between(start_ns, end_ns)
            if not _reveal(parts, server, at_work_ns, work_ns):
                parts.others_ns += parts.by_server_ns.pop(server, 0)
        parts.known = covered_ns == end_ns - start_ns
        if not parts.known:
            parts.worked.update(timelines)
            _extend(parts, cells, timelines, start_ns, end_ns)
        return parts

    def _completed(self, cell: Cell, timelines: Mapping[str, Timeline]) -> Cell:
        """With the servers that were found soon after: what they did as soon as they were known they did before."""
        found: dict[str, int] = {}
        others_ns = cell.others_ns
        for server, timeline in timelines.items():
            if server not in cell.by_server_ns:
                at_work_ns = timeline.busy.between(cell.start_ns, cell.end_ns)
                rate = self._rate_soon(server, cell.end_ns, timeline) if at_work_ns else 0.0
                if rate:
                    found[server] = min(int(rate * at_work_ns), others_ns)
                    others_ns -= found[server]
        return replace(cell, by_server_ns={**cell.by_server_ns, **found}) if found else cell

    def _rate_soon(self, server: str, after_ns: int, timeline: Timeline) -> float:
        """How busy the server was while at work in the first cell that knows it, if that comes soon; else 0.

        Calls of a server that is new are waited for until they end, and by then it has been found.
        """
        for cell in self.cells(after_ns, after_ns + _FOUND_SOON_NS):
            at_work_ns = timeline.busy.between(cell.start_ns, cell.end_ns)
            if server in cell.by_server_ns and at_work_ns and cell.end_ns <= timeline.frozen_ns:
                return min(cell.by_server_ns[server] / at_work_ns, float(cell.capacity))
        return 0.0


def without(timelines: Mapping[str, Timeline], absent: frozenset[str]) -> Mapping[str, Timeline]:
    """Those of other servers."""
    return {server: line for server, line in timelines.items() if server not in absent} if absent else timelines


def _absent(cells: Sequence[Cell], end_ns: int) -> frozenset[str]:
    """Servers that are known to draw nothing from the resource in all of these cells, if they reach to ``end_ns``.

    Who was not there when it was first looked for was not there before.
    """
    if not cells or cells[-1].end_ns < end_ns:
        return frozenset()
    return cells[0].absent.intersection(*[cell.absent for cell in cells[1:]])


def _reveal(parts: Parts, server: str, hidden_ns: int, at_work_ns: int) -> bool:
    """A server whose part is not known for some of its time at work: whether what is known could be extended."""
    if not hidden_ns:
        return True
    if hidden_ns > _FOUND_LATE * at_work_ns:
        return False
    before_ns = min(parts.by_server_ns.get(server, 0) * hidden_ns // (at_work_ns - hidden_ns), parts.others_ns)
    parts.by_server_ns[server] = parts.by_server_ns.get(server, 0) + before_ns
    parts.others_ns -= before_ns
    return True


def _extend(parts: Parts, cells: Sequence[Cell], timelines: Mapping[str, Timeline], start_ns: int, end_ns: int) -> None:
    """Not all of the bucket was sampled: the rest is taken to be alike, unless a server did much of its work there.

    Then it is not known how busy all were in the bucket together, and so nobody's part of that.
    """
    sampled = [(max(cell.start_ns, start_ns), min(cell.end_ns, end_ns)) for cell in cells]
    length_ns, sampled_ns = end_ns - start_ns, sum([last - first for first, last in sampled])
    busy_ns: dict[str, int] = {}
    for server, timeline in timelines.items():
        work_ns = timeline.busy.between(start_ns, end_ns)
        sampled_work_ns = sum([timeline.busy.between(first, last) for first, last in sampled])
        if work_ns - sampled_work_ns > _FOUND_LATE * work_ns:
            parts.others_ns += sum(parts.by_server_ns.values())
            parts.by_server_ns = {}
            return
        if server in parts.by_server_ns:
            times = (work_ns, sampled_work_ns) if work_ns else (length_ns, sampled_ns)
            busy_ns[server] = parts.by_server_ns[server] * times[0] // times[1]
    parts.by_server_ns = busy_ns
    parts.others_ns = parts.others_ns * length_ns // sampled_ns if sampled_ns else parts.others_ns


def _too_short(length_ns: int, total_ns: int) -> bool:
    return length_ns < _SHORTEST_CELL_NS or (total_ns < _LEAST_BUSY_NS and length_ns < _LONGEST_WAIT_NS)


def _cell(last: ActivitySample, sample: ActivitySample, total_ns: int) -> Cell:
    return Cell(
        start_ns=last.at_ns,
        end_ns=sample.at_ns,
        total_ns=total_ns,
        by_server_ns=dict(_differences(last.by_server_ns, sample.by_server_ns)),
        capacity=sample.capacity,
        resolution_ns=sample.resolution_ns,
        total_resolution_ns=sample.total_resolution_ns,
        absent=frozenset(s for s in sample.absent if s in last.absent or s not in last.by_server_ns),
    )


def _differences(before: Mapping[str, int | None], after: Mapping[str, int | None]) -> Iterable[tuple[str, int]]:
    for server, now_ns in after.items():
        then_ns = before.get(server)
        if now_ns is not None and then_ns is not None and now_ns >= then_ns:
            yield server, now_ns - then_ns


class _Inside(NamedTuple):
    """A server's busy time inside a part of a cell and in the whole of it, and how many CPUs it had while at work.

    ``worked``: these were enough for it to have worked itself, or that is not known.
    """

    busy_ns: int
    cell_busy_ns: int
    cpus_at_work: float
    worked: bool


def _busy_inside(cell: Cell, busy_ns: int, timeline: Timeline, start_ns: int, end_ns: int) -> _Inside:
    """A server's busy time in [start_ns, end_ns] of a cell.

    It was busy while it was at work, as far as its CPUs allow, and only the rest at other times. Sharing a cell by its
    mean would bill short calls too little: the cell also holds time in which the server slept.
    """
    at_work_ns = timeline.busy.between(cell.start_ns, cell.end_ns)
    within_ns = timeline.busy.between(start_ns, end_ns)
    asleep_ns = cell.end_ns - cell.start_ns - at_work_ns
    at_work_busy_ns = min(busy_ns, cell.capacity * at_work_ns)
    inside_ns = at_work_busy_ns * within_ns // at_work_ns if at_work_ns else 0
    if asleep_ns:
        inside_ns += (busy_ns - at_work_busy_ns) * (end_ns - start_ns - within_ns) // asleep_ns
    # Of a machine whose CPUs are not counted, busy time is a part of all of them.
    worked = cell.capacity == 1 or at_work_busy_ns > max(_LEAST_CPUS * at_work_ns, _TELLS_TIMES * cell.resolution_ns)
    return _Inside(inside_ns, busy_ns, at_work_busy_ns / at_work_ns if at_work_ns else 0.0, worked)


def _others_inside(cell: Cell, servers: Sequence[_Inside], length_ns: int) -> int:
    """Busy time of everyone else in a part of a cell that is so long.

    They were busy evenly, as far as the servers at work left them CPUs. If that was too few for it, they were the more
    busy where servers left more: on a machine that is always full, with just what servers left.

    Between these two lies a mean of both: of n CPUs that they used evenly, and of the part u that they used of what was
    left. Its weight w is the least with which they fit beside all servers at work, who leave m CPUs: with
    (1 - w) n + w u m = m, so w = (n - m) / (n - u m).
    """
    cell_ns, others_ns = cell.end_ns - cell.start_ns, cell.others_ns
    evenly_ns = others_ns * length_ns // cell_ns
    cpus = others_ns / cell_ns
    cpus_left = max(cell.capacity - sum([server.cpus_at_work for server in servers], 0.0), 0.0)
    if cpus <= cpus_left:
        return evenly_ns
    left_ns = cell.capacity * cell_ns - sum([server.cell_busy_ns for server in servers])
    if left_ns <= 0:
        return evenly_ns
    used_part = others_ns / left_ns
    weight = min((cpus - cpus_left) / (cpus - cpus_left * used_part), 1.0) if used_part < 1 else 1.0
    left_here_ns = max(cell.capacity * length_ns - sum([server.busy_ns for server in servers]), 0)
    return int((1 - weight) * evenly_ns + weight * used_part * left_here_ns)

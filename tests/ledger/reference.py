"""The sharing rule again, slow and obvious: exact fractions, one elementary interval at a time.

It knows the whole past and future, has no clocks, no carried remainders and no waiting. The ledger must agree
with it to within the rounding of its integers.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction


@dataclass(frozen=True)
class Call:
    name: str
    server: str
    start_ns: int
    end_ns: int
    turn_ns: int | None = None
    weights: tuple[int, int] = (0, 0)

    def at_work(self, time_ns: Fraction) -> bool:
        return self.start_ns < time_ns < self.end_ns

    def weight_at(self, time_ns: Fraction) -> int:
        """What the call weighs, by its phase; 0 if that is not known."""
        return 0 if self.turn_ns is None else self.weights[time_ns > self.turn_ns]


@dataclass(frozen=True)
class RefBucket:
    start_ns: int
    end_ns: int
    energy_nj: int


@dataclass(frozen=True)
class RefCell:
    start_ns: int
    end_ns: int
    total_ns: int
    by_server_ns: Mapping[str, int | None]
    capacity: int
    absent: frozenset[str] = frozenset()


@dataclass
class Shares:
    calls_nj: dict[str, Fraction] = field(default_factory=lambda: defaultdict(Fraction))
    unattributed_nj: dict[str, Fraction] = field(default_factory=lambda: defaultdict(Fraction))


def share(
    buckets: Sequence[RefBucket],
    cells: Sequence[RefCell],
    calls: Sequence[Call],
    idle_nw: int,
    *,
    by_weight: bool = False,
) -> Shares:
    """Share every bucket; ``idle_nw`` is P0 in nJ per ns."""
    shares = Shares()
    for bucket in buckets:
        run = [each for each in buckets if _cell_end(each, cells) == _cell_end(bucket, cells)]
        factors = _factors(run, cells, calls, idle_nw, by_weight)
        _share_bucket(shares, bucket, cells, calls, idle_nw, by_weight, factors)
    return shares


def _cell_end(bucket: RefBucket, cells: Sequence[RefCell]) -> int:
    """End of the cell in which the bucket ends; its own end outside of all cells."""
    if not cells or bucket.end_ns <= cells[0].start_ns:
        return bucket.end_ns
    return min((cell.end_ns for cell in cells if cell.end_ns >= bucket.end_ns), default=bucket.end_ns)


def _factors(
    run: Sequence[RefBucket], cells: Sequence[RefCell], calls: Sequence[Call], idle_nw: int, by_weight: bool
) -> dict[str, Fraction]:
    """By which each server's parts of these buckets' energy above idle miss its part of their busy time."""
    busy_sums: dict[str, Fraction] = defaultdict(Fraction)
    share_sums: dict[str, Fraction] = defaultdict(Fraction)
    total_sum = dyn_sum = Fraction(0)
    for bucket in run:
        dyn = bucket.energy_nj - min(idle_nw * (bucket.end_ns - bucket.start_ns), bucket.energy_nj)
        busy, others, _ = _activity(bucket, cells, _present(bucket, cells, calls))
        total = others + sum(busy.values())
        total_sum, dyn_sum = total_sum + total, dyn_sum + dyn
        for server in busy:
            busy_sums[server] += busy[server]
            share_sums[server] += dyn * busy[server] / total if total else 0
    misses = {
        server: dyn_sum * busy_sums[server] / total_sum / share_sums[server]
        for server in share_sums
        if share_sums[server]
    }
    most = Fraction(11, 10)  # what a busy second may cost more
    present = _present(run[0], cells, calls)
    steps = sum(
        _steps(run[0].start_ns, run[-1].end_ns, [call for call in present if call.server == server], by_weight)
        for server in {call.server for call in present}
    )
    least = 1 if steps >= 4 else 1 / most
    return {
        server: Fraction(1) if least <= miss <= most else min(max(miss, Fraction(1, 2)), Fraction(2))
        for server, miss in misses.items()
    }


def _steps(start_ns: int, end_ns: int, calls: Sequence[Call], by_weight: bool) -> int:
    """Stretches with the same calls of one server at work, or calls of the same weight."""
    found: list[tuple[int, int]] = [(0, 0)]
    for start, end in _intervals(start_ns, end_ns, calls):
        middle = Fraction(start + end, 2)
        weights = [call.weight_at(middle) for call in calls if call.at_work(middle)]
        weighed = by_weight and len(weights) > 1 and all(weights)
        found.append((len(weights), sum(weights) if weighed else 0))
    return sum(after != before and after[0] > 0 for before, after in itertools.pairwise(found))


def _present(bucket: RefBucket, cells: Sequence[RefCell], calls: Sequence[Call]) -> list[Call]:
    absent = _absent(bucket, cells)
    return [call for call in calls if call.server not in absent]


def _absent(bucket: RefBucket, cells: Sequence[RefCell]) -> frozenset[str]:
    """Servers that draw nothing from the resource in the whole bucket, as far as cells say so."""
    inside = [cell for cell in cells if cell.start_ns < bucket.end_ns and bucket.start_ns < cell.end_ns]
    if not inside or inside[-1].end_ns < bucket.end_ns:
        return frozenset()
    return frozenset.intersection(*[cell.absent for cell in inside])


def _share_bucket(
    shares: Shares,
    bucket: RefBucket,
    cells: Sequence[RefCell],
    calls: Sequence[Call],
    idle_nw: int,
    by_weight: bool,
    factors: Mapping[str, Fraction],
) -> None:
    calls = _present(bucket, cells, calls)
    length = bucket.end_ns - bucket.start_ns
    idle = min(idle_nw * length, bucket.energy_nj)
    dyn = bucket.energy_nj - idle
    shares.unattributed_nj["idle"] += idle
    for start, end in _intervals(bucket.start_ns, bucket.end_ns, calls):
        working = [call for call in calls if call.at_work(Fraction(start + end, 2))]
        for call in working:
            portion = Fraction(idle * (end - start), length * len(working))
            shares.calls_nj[call.name] += portion
            shares.unattributed_nj["idle"] -= portion
    busy, others, known = _activity(bucket, cells, calls)
    total = others + sum(busy.values())
    busy = {server: factors.get(server, Fraction(1)) * its_busy for server, its_busy in busy.items()}
    others = max(total - sum(busy.values()), Fraction(0))
    total = others + sum(busy.values())
    shares.unattributed_nj["other"] += dyn
    groups = [({server}, dyn * busy[server] / total) for server in known if busy[server]]
    pool = {call.server for call in calls if _overlaps(call, bucket)} - known
    if pool:
        groups.append((pool, dyn * others / total if total else Fraction(dyn)))
    for servers, energy in groups:
        _share_group(shares, bucket, [c for c in calls if c.server in servers], energy, by_weight)


def _share_group(shares: Shares, bucket: RefBucket, calls: Sequence[Call], energy: Fraction, by_weight: bool) -> None:
    shares.unattributed_nj["other"] -= energy
    at_work = _time_at_work(bucket.start_ns, bucket.end_ns, calls)
    if not at_work:
        shares.unattributed_nj["outside"] += energy
        return
    for start, end in _intervals(bucket.start_ns, bucket.end_ns, calls):
        middle = Fraction(start + end, 2)
        working = [call for call in calls if call.at_work(middle)]
        weights = {call.name: call.weight_at(middle) if by_weight else 0 for call in working}
        # Weights of calls of different servers cannot be compared.
        if not all(weights.values()) or len({c.server for c in calls if _overlaps(c, bucket)}) > 1:
            weights = dict.fromkeys(weights, 1)
        for name, weight in weights.items():
            part = Fraction(weight, sum(weights.values()))
            shares.calls_nj[name] += energy * Fraction(end - start, at_work) * part


def _activity(
    bucket: RefBucket, cells: Sequence[RefCell], calls: Sequence[Call]
) -> tuple[dict[str, Fraction], Fraction, set[str]]:
    """Busy time of each known server inside the bucket, of all others, and which servers are known."""
    servers = {server for cell in cells for server in cell.by_server_ns}
    unknown: set[str] = set()
    busy: dict[str, Fraction] = defaultdict(Fraction)
    others = Fraction(0)
    seen: set[str] = set()
    for cell in cells:
        start, end = max(cell.start_ns, bucket.start_ns), min(cell.end_ns, bucket.end_ns)
        if end <= start:
            continue
        known = {server: ns for server, ns in cell.by_server_ns.items() if ns is not None}
        rest = max(cell.total_ns - sum(known.values()), 0)
        inside = {
            server: _busy_inside(cell, ns, [c for c in calls if c.server == server], start, end)
            for server, ns in known.items()
        }
        for server in known:
            busy[server] += inside[server]
            seen.add(server)
        others += _others_inside(cell, rest, known, calls, end - start, sum(inside.values(), Fraction(0)))
        for server in servers - set(known):
            if _time_at_work(start, end, [c for c in calls if c.server == server]):
                unknown.add(server)
    for server in unknown:
        others += busy.pop(server, Fraction(0))
    return busy, others, seen - unknown


def _busy_inside(cell: RefCell, ns: int, calls: Sequence[Call], start: int, end: int) -> Fraction:
    at_work = _time_at_work(cell.start_ns, cell.end_ns, calls)
    within = _time_at_work(start, end, calls)
    asleep = cell.end_ns - cell.start_ns - at_work
    while_at_work = min(ns, cell.capacity * at_work)
    result = Fraction(0)
    if at_work:
        result += Fraction(while_at_work * within, at_work)
    if asleep:
        result += Fraction((ns - while_at_work) * (end - start - within), asleep)
    return result


def _others_inside(
    cell: RefCell, rest: int, known: Mapping[str, int], calls: Sequence[Call], length: int, servers: Fraction
) -> Fraction:
    """Evenly, unless servers that are all at work leave too few CPUs; then the more, the more CPU time is left."""
    cell_length = cell.end_ns - cell.start_ns
    at_work = {
        server: _time_at_work(cell.start_ns, cell.end_ns, [c for c in calls if c.server == server]) for server in known
    }
    rates = [min(Fraction(known[s], at_work[s]), Fraction(cell.capacity)) for s in known if at_work[s]]
    cpus, cpus_left = Fraction(rest, cell_length), max(cell.capacity - sum(rates, Fraction(0)), Fraction(0))
    left = cell.capacity * cell_length - sum(known.values())
    if cpus <= cpus_left or left <= 0:
        return cpus * length
    used = Fraction(rest, left)
    weight = min((cpus - cpus_left) / (cpus - cpus_left * used), Fraction(1)) if used < 1 else Fraction(1)
    return (1 - weight) * cpus * length + weight * used * max(cell.capacity * length - servers, Fraction(0))


def _overlaps(call: Call, bucket: RefBucket) -> bool:
    return max(call.start_ns, bucket.start_ns) < min(call.end_ns, bucket.end_ns)


def _time_at_work(start_ns: int, end_ns: int, calls: Sequence[Call]) -> int:
    return sum(
        end - start
        for start, end in _intervals(start_ns, end_ns, calls)
        if any(call.at_work(Fraction(start + end, 2)) for call in calls)
    )


def _intervals(start_ns: int, end_ns: int, calls: Sequence[Call]) -> list[tuple[int, int]]:
    cuts = {start_ns, end_ns}
    for call in calls:
        turn_ns = call.start_ns if call.turn_ns is None else call.turn_ns
        cuts.update(t for t in (call.start_ns, turn_ns, call.end_ns) if start_ns < t < end_ns)
    ordered = sorted(cuts)
    return list(itertools.pairwise(ordered))

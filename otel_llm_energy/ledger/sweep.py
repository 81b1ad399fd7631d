"""The rule that shares one bucket of energy, and the clocks that remember it.

For a bucket of energy D and length T, with n_s(t) calls at work on server s, n(t) on all, u_s the server's part of
the activity and A_s the time in which it was at work:

    idle = min(P0 * T, D);  dyn = D - idle
    a call of server s gets  dyn * u_s / A_s * integral of [at work] / n_s(t) dt   above idle
                        and  idle / T        * integral of [at work] / n(t) dt     of idle

Both integrals are differences of clocks that the sweep advances, so a bill costs two look-ups, however many
buckets and other calls lie in between. Where calls share by weight there is a third clock, of energy per unit of
weight: it advances where the second one stands still.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter as Tally
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from otel_llm_energy.ledger.activity import ActivityLog, Parts, without
from otel_llm_energy.ledger.bounds import equal_bounds_nj, idle_doubt_nj, weighed_bounds_nj
from otel_llm_energy.ledger.clocks import ClockReading, ServerClocks
from otel_llm_energy.ledger.counter import Bucket
from otel_llm_energy.ledger.idle import Baseline
from otel_llm_energy.ledger.idle_states import IdleStates
from otel_llm_energy.ledger.runs import Runs
from otel_llm_energy.ledger.server_part import ServerPart
from otel_llm_energy.ledger.server_times import ServerTimes
from otel_llm_energy.ledger.swept import NOTHING_SHARED, Busy, Shared, Swept
from otel_llm_energy.ledger.timeline import Step, Timeline, calls_of, merged, weight_of
from otel_llm_energy.ledger.tracks import DROPPED_AT_ONCE, Growth, Track
from otel_llm_energy.ledger.work_power import WorkPower
from otel_llm_energy.quantities import Channel

IdleSharing = Literal["time", "activity", "none"]
IDLE_SHARINGS: tuple[IdleSharing, ...] = ("time", "activity", "none")
BatchSharing = Literal["equal-time", "phase-tokens"]
BATCH_SHARINGS: tuple[BatchSharing, ...] = ("equal-time", "phase-tokens")

# A bound looks at each change of the calls inside a bucket, if there are no more than these.
_MANY_STEPS = 16


class Sweep:
    """The clocks of one channel. It moves forward, bucket by bucket, and never back."""

    def __init__(self, channel: Channel, idle: IdleSharing) -> None:
        self.channel = channel
        self.idle = IdleStates(channel)
        self.swept_ns = 0
        self.whole_from_ns = 0  # there is no gap between here and swept_ns
        self.covered = Track()
        self.metered_nj = 0
        self.charged_nj = 0
        self.unattributed_nj: Tally[str] = Tally()
        self._sharing = idle
        self._idle_by_time = Track()
        self._clocks: dict[str, ServerClocks] = {}
        self._swept: list[Swept] = []
        self._ends_ns: list[int] = []
        self._runs = Runs()
        self._absent = ServerTimes()
        self._resting = ServerTimes()
        self._hidden = ServerTimes()
        self._powers: dict[str, WorkPower] = {}
        self._now: Mapping[str, ClockReading] = {}
        # All servers draw from CPUs, so that their calls have one clock of idle energy; not all draw from a GPU.
        self._idle_in_common = idle == "time" and channel.component != "gpu"

    @property
    def is_main(self) -> bool:
        """Of what its server draws, most is here: nothing but memory is a minor part."""
        return self.channel.component != "memory"

    def clocks(self, server: str) -> ServerClocks:
        """The clocks of a server."""
        if server not in self._clocks:
            common = self._idle_by_time if self._idle_in_common else None
            self._clocks[server] = ServerClocks(common)
        return self._clocks[server]

    def bucket_at(self, time_ns: int) -> Swept | None:
        """The swept bucket that holds ``time_ns``."""
        index = bisect_left(self._ends_ns, time_ns)
        if index < len(self._swept) and self._swept[index].bucket.start_ns <= time_ns:
            return self._swept[index]
        return None

    def forget_before(self, time_ns: int) -> None:
        """No bill will ask for anything before ``time_ns``."""
        keep = bisect_right(self._ends_ns, time_ns)
        if keep > DROPPED_AT_ONCE:
            del self._swept[:keep]
            del self._ends_ns[:keep]
        self.covered.forget_before(time_ns)
        self.idle.forget_metered()
        self._idle_by_time.forget_before(time_ns)
        for clocks in self._clocks.values():
            for track in clocks.tracks():
                track.forget_before(time_ns)
        self._absent.forget_before(time_ns)
        self._resting.forget_before(time_ns)
        self._hidden.forget_before(time_ns)

    def forget_server(self, server: str) -> None:
        """No bill will ask for this server, and it is not called any more."""
        self._clocks.pop(server, None)
        self._powers.pop(server, None)
        for times in (self._absent, self._resting, self._hidden):
            times.forget(server)

    def sweep(
        self, bucket: Bucket, timelines: Mapping[str, Timeline], activity: ActivityLog, ahead: Iterable[Bucket]
    ) -> None:
        """Share out one bucket, up to the end of whose cell every timeline is final; ``ahead`` are those after it."""
        self.metered_nj += bucket.energy_nj
        self.idle.enter(bucket, activity.capacity)
        if bucket.gap is None:
            parts = self._runs.parts(bucket, ahead, timelines, activity, self.idle.baseline().watts)
            timelines = without(timelines, parts.absent)
            self._note_absent(bucket, parts.absent)
            steps = {name: line.steps(bucket.start_ns, bucket.end_ns) for name, line in timelines.items()}
            everyone = merged(list(steps.values()))
            self.idle.learn_power(bucket, _length(everyone), parts.total_ns if parts.known else None)
            self.idle.learn_cost_of_load(bucket, activity)
            self._note_resting(bucket, steps, parts)
            unsampled = activity.ever_sampled and not parts.known
            shared = self._share(bucket, steps, everyone, parts, unsampled=unsampled)
            self._note_hidden(bucket, shared)
        else:
            self.unattributed_nj["gap"] += bucket.energy_nj
            steps, shared = {}, NOTHING_SHARED
        self._close(bucket)
        # Only of those at work here: there may be many servers, and the others' calls hardly ask.
        before, self._now = self._now, {name: self.clocks(name).now() for name, at_work in steps.items() if at_work}
        self._swept.append(Swept(bucket, shared, before, self._now))
        self._ends_ns.append(bucket.end_ns)

    def _note_absent(self, bucket: Bucket, absent: frozenset[str]) -> None:
        """Not all servers draw from this channel: a GPU serves only those that hold a context on it."""
        for name in absent:
            self._absent.add(name, bucket)

    def ever_unused_by(self, server: str) -> bool:
        """At some time the server was known to draw nothing from this channel."""
        return self._absent.ever(server)

    def unused_by(self, server: str, start_ns: int, end_ns: int) -> bool:
        """The server drew nothing from this channel in [start_ns, end_ns]."""
        return self._absent.throughout(server, start_ns, end_ns)

    def unused_of_late_by(self, server: str) -> bool:
        """The server drew nothing from this channel in the last bucket that was swept."""
        return self._absent.until(server, self.swept_ns)

    def _note_resting(self, bucket: Bucket, steps: Mapping[str, Sequence[Step]], parts: Parts) -> None:
        """Not all who are called work: a gateway passes calls on."""
        for name, at_work in steps.items():
            if at_work and name not in parts.worked:
                self._resting.add(name, bucket)

    def rested_throughout(self, server: str, start_ns: int, end_ns: int) -> bool:
        """The server hardly did anything in [start_ns, end_ns], though it was at work."""
        return self._resting.throughout(server, start_ns, end_ns)

    def _note_hidden(self, bucket: Bucket, shared: Shared) -> None:
        """Of some servers at work it is not known which part of the activity was theirs."""
        for name in shared.parts:
            if shared.hides(name):
                self._hidden.add(name, bucket)

    def was_hidden(self, server: str, start_ns: int, end_ns: int) -> bool:
        """The server's part of the activity was not known in some of [start_ns, end_ns], while it was at work."""
        return self._hidden.during(server, start_ns, end_ns)

    def _share(
        self,
        bucket: Bucket,
        steps: Mapping[str, Sequence[Step]],
        everyone: Sequence[Step],
        parts: Parts,
        *,
        unsampled: bool,
    ) -> Shared:
        """Give each server's calls their shares, and bounds of these."""
        baseline = self.idle.baseline()
        idle_nj = _idle_nj(bucket, baseline)
        dyn_nj = bucket.energy_nj - idle_nj
        self._share_idle(idle_nj, bucket, steps, everyone, parts)
        shares = self._share_above_idle(dyn_nj, baseline, steps, parts)
        self._bound(bucket, baseline, idle_nj, everyone, shares)
        busy = Busy(parts.total_ns, parts.resolution_ns, parts.total_resolution_ns)
        even = not everyone or everyone[0][:2] == (bucket.start_ns, bucket.end_ns)
        return Shared(baseline, dyn_nj, shares, busy, unsampled, even)

    def _share_idle(
        self,
        idle_nj: int,
        bucket: Bucket,
        steps: Mapping[str, Sequence[Step]],
        everyone: Sequence[Step],
        parts: Parts,
    ) -> None:
        if self._sharing == "time":
            clocks = [self._idle_by_time] if self._idle_in_common else [self.clocks(name).idle for name in steps]
            rest = self._distribute(idle_nj, bucket.length_ns, everyone, clocks)
            self.unattributed_nj["idle"] += rest
            return
        if self._sharing == "activity":
            for names, portion_nj, _ in _groups(idle_nj, steps, parts):
                at_work = merged([steps[name] for name in names])
                tracks = [self.clocks(name).idle for name in names]
                idle_nj -= portion_nj
                idle_nj += self._distribute(portion_nj, _length(at_work), at_work, tracks)
        self.unattributed_nj["idle"] += idle_nj

    def _share_above_idle(
        self, dyn_nj: int, baseline: Baseline, steps: Mapping[str, Sequence[Step]], parts: Parts
    ) -> dict[str, ServerPart]:
        shares: dict[str, ServerPart] = {}
        other_nj = dyn_nj
        for names, part_nj, known in _groups(dyn_nj, steps, parts):
            at_work = merged([steps[name] for name in names])
            at_work_ns = _length(at_work)
            portion_nj = part_nj if known else self._capped(part_nj, at_work_ns, baseline)
            other_nj -= portion_nj
            if not at_work_ns:
                self.unattributed_nj["outside"] += portion_nj
                continue
            clocks = [self.clocks(name) for name in names]
            extremes = _extremes(at_work)
            portion = portion_nj / dyn_nj if dyn_nj else _portion(names, known, parts)
            rest = self._distribute(
                portion_nj, at_work_ns, at_work, [each.dyn for each in clocks], [each.weighed for each in clocks]
            )
            self.unattributed_nj["rounding"] += rest
            for name in names:
                most_watts = self._most_watts(name, portion_nj, at_work_ns, baseline) if known else None
                of_run = parts.portions_of_run.get(name, portion) if known else portion
                shares[name] = ServerPart(portion_nj, at_work_ns, known, at_work, extremes, portion, of_run, most_watts)
        self.unattributed_nj["other"] += other_nj
        return shares

    def _most_watts(self, server: str, dyn_nj: int, at_work_ns: int, baseline: Baseline) -> float | None:
        """How far a server's work can raise the power: the hardware's limit, else what has been seen, this included."""
        limit_watts = self._limit_above_idle(baseline)
        if limit_watts is not None:
            return limit_watts
        power = self._powers.get(server)
        if power is None:
            power = self._powers[server] = WorkPower()
        power.add(dyn_nj, at_work_ns)
        return power.most_watts

    def _capped(self, dyn_nj: int, at_work_ns: int, baseline: Baseline) -> int:
        """More than the hardware can draw while calls were at work was not theirs."""
        limit_watts = self._limit_above_idle(baseline)
        return dyn_nj if limit_watts is None else min(dyn_nj, int(limit_watts * at_work_ns))

    def _limit_above_idle(self, baseline: Baseline) -> float | None:
        """How far the hardware's own limit lets the power rise, W; ``None`` where it has none."""
        if not self.idle.model.limit_is_hardware or baseline.highest_watts is None:
            return None
        return max(baseline.highest_watts - (baseline.watts or 0.0), 0.0)

    def _distribute(
        self,
        energy_nj: int,
        over_ns: int,
        steps: Sequence[Step],
        tracks: Sequence[Track],
        weighed: Sequence[Track] = (),
    ) -> int:
        """Spread energy evenly over ``over_ns``, each step's slice equally over its calls; what nobody got.

        Where there are ``weighed`` tracks, and a weight, a slice is spread over the calls' weight instead. A remainder
        of a division is carried on to the next step, and what is left at the end is ``rounding``.
        """
        rest, carry = energy_nj, 0
        equally: list[Growth] = []
        by_weight: list[Growth] = []
        for start_ns, end_ns, count, weight in steps:
            slice_nj = energy_nj * (end_ns - start_ns) // over_ns
            rest -= slice_nj
            weighs = weight and weighed
            parts = weight if weighs else count
            each_nj, carry = (carry + slice_nj) // parts, (carry + slice_nj) % parts
            (by_weight if weighs else equally).append((start_ns, end_ns, each_nj))
        for track in tracks:
            track.follow(equally)
        for track in weighed:
            track.follow(by_weight)
        self.unattributed_nj["rounding"] += carry
        self.charged_nj += energy_nj - rest - carry
        return rest

    def _bound(
        self,
        bucket: Bucket,
        baseline: Baseline,
        idle_nj: int,
        everyone: Sequence[Step],
        shares: Mapping[str, ServerPart],
    ) -> None:
        start_ns, end_ns = bucket.start_ns, bucket.end_ns
        for name, part in shares.items():
            if part.at_work_ns != bucket.length_ns:
                continue
            clocks = self.clocks(name)
            before, now = self._now.get(name) or clocks.at(start_ns), clocks.now()
            idle_share_nj = now.idle_nj - before.idle_nj
            equal = [weight for _, _, _, weight in part.steps if not weight]
            whole = len(part.steps) == len(everyone) == len(equal) == 1
            lower_nj, upper_nj = equal_bounds_nj(baseline, part, now.dyn_nj - before.dyn_nj if whole else None)
            lower_nj -= idle_doubt_nj(bucket, baseline, idle_nj, idle_share_nj, part.portion)
            clocks.lower.grow(start_ns, end_ns, idle_share_nj + lower_nj)
            clocks.upper.grow(start_ns, end_ns, idle_share_nj + upper_nj)
            if len(equal) < len(part.steps):
                lower_nj, upper_nj = weighed_bounds_nj(baseline, part)
                clocks.weighed_lower.grow(start_ns, end_ns, lower_nj)
                clocks.weighed_upper.grow(start_ns, end_ns, upper_nj)

    def _close(self, bucket: Bucket) -> None:
        end_ns = bucket.end_ns
        if bucket.gap is not None:
            self.whole_from_ns = end_ns
        elif bucket.start_ns > self.swept_ns:
            self.whole_from_ns = bucket.start_ns
        self.covered.grow(bucket.start_ns, end_ns, bucket.length_ns if bucket.gap is None else 0)
        self._idle_by_time.advance(end_ns, 0)
        for clocks in self._clocks.values():
            for track in (clocks.dyn, clocks.idle, clocks.lower, clocks.upper):
                track.advance(end_ns, 0)
        self.swept_ns = end_ns


def _idle_nj(bucket: Bucket, baseline: Baseline) -> int:
    """Without a baseline all energy is shared by time, as if it were idle."""
    if baseline.watts is None:
        return bucket.energy_nj
    return min(int(baseline.watts * bucket.length_ns), bucket.energy_nj)


def _groups(energy_nj: int, steps: Mapping[str, Sequence[Step]], parts: Parts) -> list[tuple[list[str], int, bool]]:
    """Who shares which part of ``energy_nj``: each known server alone, and the unknown ones as one pool.

    Returns (servers, energy, known) per group. What is in no group is nobody's.
    """
    groups: list[tuple[list[str], int, bool]] = []
    total_ns = parts.total_ns
    for name, busy_ns in parts.by_server_ns.items():
        if busy_ns and name in steps:
            groups.append(([name], energy_nj * busy_ns // total_ns, True))
    pool = sorted(name for name, at_work in steps.items() if at_work and name not in parts.by_server_ns)
    if pool:
        portion_nj = energy_nj * parts.others_ns // total_ns if total_ns else energy_nj
        groups.append((pool, portion_nj, False))
    return groups


def _extremes(steps: Sequence[Step]) -> Sequence[Step]:
    """The steps that matter for bounds: of those that are shared equally, and of those that are shared by weight."""
    if len(steps) <= _MANY_STEPS:
        return steps
    extremes: list[Step] = []
    for alike, size in (
        ([step for step in steps if not weight_of(step)], calls_of),
        (list(filter(weight_of, steps)), weight_of),
    ):
        if alike:
            extremes += [min(alike, key=size), max(alike, key=size)]
    return extremes


def _portion(names: Sequence[str], known: bool, parts: Parts) -> float:
    """A group's part of the activity, 0 to 1."""
    if not parts.total_ns:
        return 1.0
    return (parts.by_server_ns[names[0]] if known else parts.others_ns) / parts.total_ns


def _length(steps: Sequence[Step]) -> int:
    return sum([end_ns - start_ns for start_ns, end_ns, _, _ in steps])

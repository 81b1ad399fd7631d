"""The idle baseline of one channel, learned from the time in which no call was at work."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from otel_llm_energy.ledger.samples import REMEMBERED, Gathering, Sample, quantile
from otel_llm_energy.ledger.work_power import WorkPower
from otel_llm_energy.quantities import NS_PER_SECOND, IdlePower

_SHORTEST_NS = NS_PER_SECOND // 2
_LEAST_SAMPLES = 2
_FITS_PER_MEMORY = 16  # while the samples that are remembered are replaced once
_LEAST_POINTS = 6
_LEAST_SPREAD_CPUS = 0.01
_TWO_SIGMA = 2.0
# The cost of load is known well enough if it is in doubt by no more than this part of the power that was seen.
_CLEAR_PART = 0.1
_MUCH_LOAD_CPUS = 0.3
# Idle power learned from so much time is worth keeping, and better than that of an earlier run.
ENOUGH_SECONDS = 5.0
_ENOUGH_NS = int(ENOUGH_SECONDS * NS_PER_SECOND)
# Idle power may have drifted so far since an earlier run (temperature, other devices): assumed, not measured.
_DRIFT = 0.1
# What cannot be told from load is taken for it, but for this part: assumed, as hardly a machine idles at less.
_LEAST_IDLE_PART = 0.1

Origin = Literal["given", "learned", "cached", "under-load", "unknown"]
"""Where a baseline comes from. ``"under-load"``: learned while other programs were busy all the time, before it could
be told what of the power was theirs."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """Idle power of a channel, watts.

    Attributes:
        watts: the point estimate P0; ``None`` while unknown.
        lowest_watts: P0_lo, the 2 % quantile, or lower where the estimate is in doubt.
        highest_watts: P_hi, the most that the channel draws; ``None`` if unknown.
        origin: where ``watts`` comes from.
        drift: idle power may be higher by this part of it.
    """

    watts: float | None
    lowest_watts: float
    highest_watts: float | None
    origin: Origin = "learned"
    drift: float = 0.0


@dataclass(frozen=True, slots=True)
class Learning:
    """All that an `IdleModel` goes by, for another one to go on from; samples are in the order of time.

    Attributes:
        remembered: what an earlier run learned, while it is of use.
        idle: samples without calls.
        all: samples of any kind whose busy time is known.
        work: samples with calls at work all the time.
    """

    remembered: IdlePower | None
    idle: Sequence[Sample]
    all: Sequence[Sample]
    work: Sequence[Sample]


class IdleModel:
    """Learns P0 of one channel: the lower of the 10 % quantile and a fit of power against busy time.

    A quantile alone takes a constant background load for idle. So what a busy CPU costs is learned from all samples,
    at work or not, and what it explains is subtracted from the claim-free ones. Until there are
    enough of them, what an earlier run learned is better (`remember`), and without that the baseline is in doubt.

    Attributes:
        cpus: how many can be busy at once; ``None`` if unknown.
    """

    def __init__(self, known_watts: float | None = None, limit_watts: float | None = None) -> None:
        self.cpus: int | None = None
        self._known_watts = known_watts
        self._limit_watts = limit_watts
        self._idle: deque[Sample] = deque(maxlen=REMEMBERED)
        self._all: deque[Sample] = deque(maxlen=REMEMBERED)
        self._idle_gathering = Gathering(_SHORTEST_NS, self._idle)
        self._work = WorkPower()
        self._gathering = Gathering(_SHORTEST_NS, self._all)
        self._baseline: Baseline | None = None
        self._remembered: IdlePower | None = None
        self._cost: _Cost | None = None
        self._unfitted = 0  # samples that came since the cost of load was fitted

    def remember(self, idle: IdlePower) -> None:
        """What an earlier run learned: used until this one knows better, or sees less power than that."""
        self._remembered = idle
        self._baseline = None

    def learning(self) -> Learning:
        """What this one goes by."""
        return Learning(self._remembered, tuple(self._idle), tuple(self._all), self._work.samples)

    def go_on(self, learning: Learning) -> None:
        """Go on, as a new one, from what another went by."""
        self._remembered = learning.remembered
        self._idle.extend(learning.idle)
        self._all.extend(learning.all)
        self._work.go_on(learning.work)
        self._unfitted = len(self._all)
        self._baseline = None

    def forget(self) -> None:
        """Learn anew, from now on."""
        for samples in (self._idle, self._all):
            samples.clear()
        self._work.forget()
        self.interrupt()
        self._remembered = self._baseline = self._cost = None
        self._unfitted = 0

    def learned(self, least_seconds: float = ENOUGH_SECONDS) -> IdlePower | None:
        """What this run has learned, if from so much time; ``None`` for a figure that was given, or is in doubt."""
        baseline = self.baseline()
        seconds = _length_ns(self._idle) / NS_PER_SECOND
        if baseline.watts is None or baseline.origin != "learned" or seconds < least_seconds:
            return None
        return IdlePower(baseline.watts, baseline.lowest_watts, seconds)

    @property
    def limit_is_hardware(self) -> bool:
        return self._limit_watts is not None

    def learn_free(
        self, energy_nj: int, length_ns: int, busy_ns: int | None, errors_ns: tuple[int, int] = (0, 0)
    ) -> None:
        """A bucket in which no call was at work; ``errors_ns`` are those of its start and end."""
        self._work.interrupt()
        if self._idle_gathering.add(energy_nj, length_ns, busy_ns, errors_ns):
            self._baseline = None

    def learn_working(self, energy_nj: int, length_ns: int) -> None:
        """A bucket in which calls were at work all the time."""
        self._idle_gathering.interrupt()
        if self._work.add(energy_nj, length_ns):
            self._see_highest()

    def learn_mixed(self, energy_nj: int, length_ns: int, at_work_ns: int) -> None:
        """A bucket in which calls were at work for a part of the time: then, at most, all above idle was drawn."""
        self._idle_gathering.interrupt()
        self._work.interrupt()
        watts = self.baseline().watts
        if watts is None:
            return
        if self._work.add(max(energy_nj - watts * (length_ns - at_work_ns), 0.0), at_work_ns):
            self._see_highest()
        self._work.interrupt()

    def learn_cost_of_load(self, energy_nj: int, length_ns: int, busy_ns: int) -> None:
        """A stretch of any kind whose energy and busy time are known, adjoining the last one."""
        if self._gathering.add(energy_nj, length_ns, busy_ns):
            self._unfitted += 1
            if self._fit_is_due or self._remembered is not None:
                self._baseline = None

    def interrupt(self) -> None:
        """What comes next adjoins nothing."""
        for each in (self._idle_gathering, self._work, self._gathering):
            each.interrupt()

    def baseline(self) -> Baseline:
        """What is known now."""
        if self._baseline is None:
            self._baseline = self._best_known()
        return self._baseline

    def _see_highest(self) -> None:
        """Calls were at work for another while: that teaches nothing of idle power."""
        if self._baseline is not None:
            self._baseline = replace(self._baseline, highest_watts=self._highest_watts())

    def _highest_watts(self) -> float | None:
        return self._work.most_watts if self._limit_watts is None else self._limit_watts

    @property
    def _fit_is_due(self) -> bool:
        """A fit of many samples is changed little by one more, and costs a third of a millisecond."""
        return self._unfitted * _FITS_PER_MEMORY >= len(self._all)

    def _fitted_cost(self) -> _Cost | None:
        if self._fit_is_due:
            self._cost, self._unfitted = _cost_of_load(self._all), 0
        return self._cost

    def _best_known(self) -> Baseline:
        highest = self._highest_watts()
        if self._known_watts is not None:
            return Baseline(self._known_watts, self._known_watts, highest, "given")
        live = self._live(highest)
        if self._remembered is None or (live.origin == "learned" and _length_ns(self._idle) >= _ENOUGH_NS):
            return live
        point, lowest = self._remembered.watts, self._remembered.lowest_watts * (1 - _DRIFT)
        least_seen = min((s.watts for s in (*self._idle, *self._all)), default=point)
        if least_seen < lowest:
            self._remembered = None  # idle can be no more than what was drawn
            return live
        return Baseline(min(point, least_seen), lowest, highest, "cached", _DRIFT)

    def _live(self, highest: float | None) -> Baseline:
        """What this run's samples say."""
        if len(self._idle) < _LEAST_SAMPLES:
            return Baseline(None, 0.0, highest, "unknown")
        watts = [s.watts for s in self._idle]
        point, lowest = quantile(watts, 0.10), quantile(watts, 0.02)
        seen = most = point
        load, cost = self._least_load(), self._fitted_cost()
        doubt_watts = math.inf if cost is None else _TWO_SIGMA * cost.error * load
        of_known_load = [s for s in self._idle if s.busy_cpus is not None]
        if cost is not None and of_known_load and doubt_watts <= _CLEAR_PART * seen:
            without_load = [s.watts - cost.watts * (s.busy_cpus or 0.0) for s in of_known_load]
            point = min(point, max(quantile(without_load, 0.5), 0.0))
            lowest = min(lowest, max(quantile(without_load, 0.02) - doubt_watts, 0.0))
            most = min(seen, quantile(without_load, 0.98) + doubt_watts)
        elif load > _MUCH_LOAD_CPUS:
            point = self._without_unexplained(seen, load)
            return Baseline(point, 0.0, highest, "under-load", _above(point, seen))
        return Baseline(point, min(lowest, point), highest, drift=_above(point, most))

    def _least_load(self) -> float:
        """CPUs that were busy in the quietest time without calls, as far as that is known."""
        busy_cpus = [s.busy_cpus for s in self._idle if s.busy_cpus is not None]
        return quantile(busy_cpus, 0.10) if busy_cpus else 0.0

    def _without_unexplained(self, watts: float, load: float) -> float:
        """Power less what a load of unknown cost may have added: more, the more of the CPUs it kept busy.

        Taken for idle power, another program's load would be billed to whoever is at work.
        """
        if self.cpus is None:
            return watts
        return watts * (1 - (1 - _LEAST_IDLE_PART) * min(load / self.cpus, 1.0))


def _above(point: float, most: float) -> float:
    return most / point - 1 if 0 < point < most else 0.0


def _length_ns(samples: Iterable[Sample]) -> int:
    return sum([sample.length_ns for sample in samples])


@dataclass(frozen=True, slots=True)
class _Cost:
    """What a busy CPU adds to the power, W, and the standard error of that."""

    watts: float
    error: float


def _cost_of_load(samples: Iterable[Sample]) -> _Cost | None:
    """From samples in a row; ``None`` where there are too few, or the load never changed.

    A fit of cumulative energy against time and cumulative busy time. The errors of meter and CPU clock are those of
    reading at an instant: what one sample has too much, the next has too little. A fit of power against load, which
    takes each sample for itself, is misled by them: by 3 of 20 W where the CPUs were nearly always busy, against 0.2.
    """
    seconds, busy, joules = [0.0], [0.0], [0.0]
    for sample in samples:
        if sample.busy_cpus is not None:
            length = sample.length_ns / NS_PER_SECOND
            seconds.append(seconds[-1] + length)
            busy.append(busy[-1] + sample.busy_cpus * length)
            joules.append(joules[-1] + sample.watts * length)
    if len(seconds) < _LEAST_POINTS:
        return None
    load, energy = _residuals(busy, seconds), _residuals(joules, seconds)  # what time alone does not explain
    variance = _dot(load, load)
    if variance <= _LEAST_SPREAD_CPUS**2 * seconds[-1] ** 2 / len(seconds):
        return None
    watts = _dot(load, energy) / variance
    rest = [each - watts * by for each, by in zip(energy, load, strict=True)]
    return _Cost(max(watts, 0.0), math.sqrt(_dot(rest, rest) / (_independent(rest) - 3) / variance))


def _residuals(values: Sequence[float], seconds: Sequence[float]) -> list[float]:
    """What is left of ``values`` after their straight line over time."""
    mean_value, mean_time = sum(values) / len(values), sum(seconds) / len(seconds)
    times = [each - mean_time for each in seconds]
    slope = _dot(times, values) / _dot(times, times)
    return [value - mean_value - slope * time for value, time in zip(values, times, strict=True)]


def _independent(residuals: Sequence[float]) -> float:
    """How many independent residuals these are worth, given the correlation of neighbours; more than 3."""
    total = _dot(residuals, residuals)
    correlation = max(_dot(residuals[:-1], residuals[1:]) / total, 0.0) if total else 0.0
    return max(len(residuals) * (1 - correlation) / (1 + correlation), 3.5)


def _dot(some: Sequence[float], others: Sequence[float]) -> float:
    return sum([one * other for one, other in zip(some, others, strict=True)], 0.0)

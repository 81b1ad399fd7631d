"""Idle power by state, learned bucket by bucket.

A GPU idles differently in each performance state, and with a model in its memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from otel_llm_energy.ledger.activity import ActivityLog
from otel_llm_energy.ledger.counter import Bucket
from otel_llm_energy.ledger.idle import ENOUGH_SECONDS, Baseline, IdleModel, Learning
from otel_llm_energy.ledger.tracks import Track
from otel_llm_energy.quantities import Channel, IdlePower

# Two instants that lie no further apart than this part of the time since the last ones are taken for one.
_NEAR_PART = 0.04


class IdleStates:
    """One idle model for each state of a channel; a channel whose idle power has no states has one.

    Attributes:
        model: of the state that the channel is in.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._state = ""
        self._models: dict[str, IdleModel] = {}
        self._metered = Track()
        self._learned_ns = 0  # the cost of load is learned from what comes after this
        self.model = self._of("")

    def enter(self, bucket: Bucket, cpus: int | None) -> None:
        """The next bucket, on a machine of so many CPUs: it is of a state, and may be of another one in part."""
        self._metered.grow(bucket.start_ns, bucket.end_ns, bucket.energy_nj)
        if bucket.gap is not None:
            self.model.interrupt()
            self._learned_ns = bucket.end_ns
            return
        if bucket.state != self._state or not bucket.steady:
            for model in self._models.values():
                model.interrupt()
        self._state, self.model = bucket.state, self._of(bucket.state)
        self.model.cpus = cpus

    def learn_power(self, bucket: Bucket, at_work_ns: int, busy_ns: int | None) -> None:
        """Learn what is drawn while no call is at work, or while one always is.

        ``busy_ns`` is how long the resource was busy in the bucket; ``None`` if that is not known of all of it.
        """
        if at_work_ns == 0:
            errors_ns = bucket.start_error_ns, bucket.end_error_ns
            self.model.learn_free(bucket.energy_nj, bucket.length_ns, busy_ns, errors_ns)
        elif at_work_ns == bucket.length_ns:
            self.model.learn_working(bucket.energy_nj, bucket.length_ns)
        else:
            self.model.learn_mixed(bucket.energy_nj, bucket.length_ns, at_work_ns)

    def learn_cost_of_load(self, bucket: Bucket, activity: ActivityLog) -> None:
        """Learn what a busy CPU adds, from instants at which both energy and busy time are known well.

        In between either is interpolated, and need not go evenly: an instant counts if it is no further from the next
        one of the other kind than a small part of the time since the last one that counted.
        """
        cells = activity.cells(bucket.start_ns, bucket.end_ns)
        ends_ns = [cell.end_ns for cell in cells]
        for at_ns in sorted({bucket.end_ns, *[end_ns for end_ns in ends_ns if end_ns < bucket.end_ns]}):
            others_ns = ends_ns if at_ns == bucket.end_ns else (bucket.start_ns, bucket.end_ns)
            apart_ns = min((abs(other_ns - at_ns) for other_ns in others_ns), default=0)
            if apart_ns > _NEAR_PART * (at_ns - self._learned_ns):
                continue
            busy_ns = activity.busy_ns(self._learned_ns, at_ns)
            if busy_ns is not None:
                energy_nj = self._metered.between(self._learned_ns, at_ns)
                self.model.learn_cost_of_load(energy_nj, at_ns - self._learned_ns, busy_ns)
            self._learned_ns = at_ns

    def forget_metered(self) -> None:
        """Drop what was metered before the cost of load was learned last: nothing is learned from it any more."""
        self._metered.forget_before(self._learned_ns)

    def baseline(self) -> Baseline:
        """What is known of the present state; while that is nothing, the highest of what is known of others."""
        own = self.model.baseline()
        if own.watts is not None or len(self._models) == 1:
            return own
        others = [each for each in (model.baseline() for model in self._models.values()) if each.watts is not None]
        if not others:
            return own
        highest = max(others, key=lambda each: each.watts or 0.0)
        lowest_watts = min(each.lowest_watts for each in others)
        return replace(highest, lowest_watts=lowest_watts, highest_watts=own.highest_watts)

    def remember(self, figures: Iterable[IdlePower]) -> None:
        """What an earlier run learned, by state."""
        for figure in figures:
            self._of(figure.state).remember(figure)

    def learned(self, least_seconds: float = ENOUGH_SECONDS) -> list[IdlePower]:
        """What this run has learned of each state, from so much time."""
        found = [(state, model.learned(least_seconds)) for state, model in self._models.items()]
        return [replace(figure, state=state) for state, figure in found if figure is not None]

    def learning(self) -> Mapping[str, Learning]:
        """What is gone by, by state: for other ones to `go_on` from."""
        return {state: model.learning() for state, model in self._models.items()}

    def go_on(self, state: str, learning: Learning) -> None:
        """Go on, as new ones, from what others went by."""
        self._of(state).go_on(learning)

    def forget(self) -> None:
        """Learn anew, from now on."""
        for model in self._models.values():
            model.forget()

    def _of(self, state: str) -> IdleModel:
        model = self._models.get(state)
        if model is None:
            model = self._models[state] = IdleModel(self._channel.idle_watts, self._channel.limit_watts)
        return model

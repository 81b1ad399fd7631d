"""Idle power by state: a GPU idles differently in each performance state, and with a model in its memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from otel_llm_energy.ledger.idle import ENOUGH_SECONDS, Baseline, IdleModel
from otel_llm_energy.quantities import Channel, IdlePower


class IdleStates:
    """One idle model for each state of a channel; a channel whose idle power has no states has one.

    Attributes:
        model: of the state that the channel is in.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._state = ""
        self._models: dict[str, IdleModel] = {}
        self.model = self._of("")

    def enter(self, state: str, *, steady: bool) -> None:
        """The next bucket is of this state; not ``steady``: in a part of it the state was another."""
        if state != self._state or not steady:
            for model in self._models.values():
                model.gap()
        self._state, self.model = state, self._of(state)

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

    def forget(self) -> None:
        """Learn anew, from now on."""
        for model in self._models.values():
            model.forget()

    def _of(self, state: str) -> IdleModel:
        model = self._models.get(state)
        if model is None:
            model = self._models[state] = IdleModel(self._channel.idle_watts, self._channel.limit_watts)
        return model

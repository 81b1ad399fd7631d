"""What one host's Scaphandre shows, answer by answer, whoever asked it."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Sequence

from otel_llm_energy.meters.exposition import Sample
from otel_llm_energy.meters.scaphandre_counters import Counters, component
from otel_llm_energy.meters.scaphandre_processes import processes
from otel_llm_energy.meters.scaphandre_refresh import Refreshes, StandingStill
from otel_llm_energy.quantities import Channel, HostPower, Reading

_REMEMBERED_POWERS = 64

_logger = logging.getLogger(__name__)


class HostCounters:
    """Makes readings of answers that show something new, and keeps the figures of processes that came with them.

    Args:
        with_processes: whether the answers hold figures of processes that are wanted.

    Attributes:
        refreshes: dates the answers.
    """

    def __init__(self, *, with_processes: bool) -> None:
        self.refreshes = Refreshes()
        self._with_processes = with_processes
        self._standing_still = StandingStill()
        self._powers: deque[HostPower] = deque(maxlen=_REMEMBERED_POWERS)
        self._channel_ids: tuple[str, ...] = ()

    def channels(self, found: Counters, *, meter: str, range_uj: int | None, scale_error: float) -> list[Channel]:
        """The channels of which there are readings from now on: those of this answer."""
        self._channel_ids = tuple(found.by_channel_uj)
        return [
            Channel(channel_id, component(channel_id), meter, range_uj=range_uj, scale_error=scale_error)
            for channel_id in self._channel_ids
        ]

    def readings(
        self, found: Counters, samples: Iterable[Sample], refreshed_ns: tuple[int, int], shown: str
    ) -> list[Reading]:
        """What an answer says.

        Args:
            found: its counters.
            samples: all of it.
            refreshed_ns: the earliest and the latest instant at which its counters had their values.
            shown: where it comes from, for people.
        """
        stuck = self._standing_still.note(found)
        if stuck:
            _logger.warning("%s", StandingStill.warning(shown, stuck))
        earliest_ns, latest_ns = refreshed_ns
        if self._with_processes:
            self._powers.append(HostPower((earliest_ns + latest_ns) // 2, found.host_uw, processes(samples)))
        return [
            Reading(channel_id, found.by_channel_uj[channel_id], earliest_ns, latest_ns)
            for channel_id in self._channel_ids
            if channel_id in found.by_channel_uj
        ]

    def powers(self) -> Sequence[HostPower]:
        """The newest figures of processes, oldest first."""
        return tuple(self._powers)

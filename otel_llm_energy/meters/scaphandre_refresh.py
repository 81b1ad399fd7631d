"""When a Scaphandre exporter refreshed the counters that one of its answers shows."""

from __future__ import annotations

from otel_llm_energy.meters.scaphandre_counters import Counters
from otel_llm_energy.quantities import NS_PER_SECOND

_REFRESH_NS = 2 * NS_PER_SECOND
_SKEW_NS = 50_000_000  # the host's counter is read after the scan of all processes, some ms after the sockets'
_STUCK_ANSWERS = 3


class Refreshes:
    """Dates the answers of one exporter, in their order.

    The exporter refreshes only at a request that comes more than 2 s after the one before it, whoever sent that
    (src/exporters/prometheus.rs; https://github.com/hubblo-org/scaphandre/issues/434). So an answer may show what
    another client's request brought about, or the same as the answer before.

    Attributes:
        stale: how many answers in a row showed nothing new.
    """

    def __init__(self) -> None:
        self.stale = 0
        self._seen: Counters | None = None
        self._refreshed_ns: tuple[int, int] | None = None  # the last refresh: earliest, latest
        self._asked_ns: int | None = None

    def date(self, asked_ns: int, answered_ns: int, found: Counters) -> tuple[int, int] | None:
        """The earliest and the latest instant of the refresh; ``None`` if the answer shows nothing new."""
        seen = self._seen
        if seen is not None and all(seen.by_channel_uj.get(name) == uj for name, uj in found.by_channel_uj.items()):
            self._asked_ns = asked_ns
            self.stale += 1
            return None
        self._refreshed_ns = self._refresh(asked_ns, answered_ns, found)
        self._asked_ns, self._seen, self.stale = asked_ns, found, 0
        return self._refreshed_ns

    def _refresh(self, asked_ns: int, answered_ns: int, found: Counters) -> tuple[int, int]:
        """Our request refreshed the counters, or another client's since our last one.

        The exporter's power is a mean over its last bucket, so host energy / host power is that bucket's length. Up to
        4 s after our last request at most one refresh can have come between, and so the length tells when it was.
        """
        if self._seen is None or self._asked_ns is None or self._refreshed_ns is None:
            return asked_ns - _REFRESH_NS, answered_ns
        waited_ns = asked_ns - self._asked_ns
        bracket = self._asked_ns, answered_ns
        bucket_ns = _bucket_ns(self._seen.host_uj, found)
        if bucket_ns is not None and self.stale == 0 and abs(bucket_ns - waited_ns) <= _SKEW_NS:
            return asked_ns, answered_ns  # the bucket spans two requests of ours
        if bucket_ns is None or waited_ns > 2 * _REFRESH_NS:
            return bracket
        earliest_ns = max(bracket[0], self._refreshed_ns[0] + bucket_ns - _SKEW_NS)
        latest_ns = min(bracket[1], self._refreshed_ns[1] + bucket_ns + _SKEW_NS)
        return (earliest_ns, latest_ns) if earliest_ns <= latest_ns else bracket


def _bucket_ns(before_uj: int | None, found: Counters) -> int | None:
    if before_uj is None or found.host_uj is None or not found.host_uw or found.host_uj <= before_uj:
        return None
    return int((found.host_uj - before_uj) / found.host_uw * NS_PER_SECOND)


class StandingStill:
    """Notices a counter that stands still while others move: Scaphandre repeats what it cannot read any more."""

    def __init__(self) -> None:
        self._last_uj: dict[str, int] = {}
        self._repeats: dict[str, int] = {}

    def note(self, found: Counters) -> list[str]:
        """The channels that have just been found to stand still, from an answer that shows something new."""
        stuck = []
        for name, energy_uj in found.by_channel_uj.items():
            repeats = self._repeats.get(name, 0) + 1 if self._last_uj.get(name) == energy_uj else 0
            self._last_uj[name], self._repeats[name] = energy_uj, repeats
            if repeats == _STUCK_ANSWERS:
                stuck.append(name)
        return stuck

    @staticmethod
    def warning(source: str, channels: list[str]) -> str:
        """What to say of them."""
        return (
            f"{source}: the counter of {' and '.join(channels)} stands still while others move. Scaphandre cannot read"
            " it any more; calls have no energy until it moves again."
        )

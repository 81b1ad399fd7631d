"""Scaphandre through its Prometheus exporter (checked against 1.0.2).

The exporter refreshes its counters only when a request comes more than 2 s after the one before it, whoever sent that
(src/exporters/prometheus.rs; https://github.com/hubblo-org/scaphandre/issues/434). So this meter polls slowly, works
out which request refreshed what it reads, and notices when another client keeps the counters frozen.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from otel_llm_energy.meters.base import MeterError, Pace
from otel_llm_energy.meters.exposition import Sample
from otel_llm_energy.meters.powercap import RAPL_SCALE_ERROR
from otel_llm_energy.meters.scrape import Exporter, Scrape
from otel_llm_energy.quantities import NS_PER_SECOND, Channel, Component, Reading

SCAPHANDRE_URL = "http://localhost:8080/metrics"
MIN_INTERVAL_SECONDS = 2.2
"""The shortest poll that refreshed every time when tried on 1.0.2; 2 s and less freeze the exporter for everyone."""

HOST_ENERGY = "scaph_host_energy_microjoules"
HOST_POWER = "scaph_host_power_microwatts"
SOCKET_ENERGY = "scaph_socket_energy_microjoules"
DOMAIN_ENERGY = "scaph_domain_energy_microjoules"
WANTED = frozenset({HOST_ENERGY, HOST_POWER, SOCKET_ENERGY, DOMAIN_ENERGY})

_REFRESH_NS = 2 * NS_PER_SECOND
_TIMER_SLACK_NS = 100_000_000  # a caller's timer that fires a little early must not cost a whole poll
_LONGEST_PAUSE_NS = 10 * NS_PER_SECOND
_FROZEN_POLLS = 3  # one stale answer is somebody's curl
_SKEW_NS = 50_000_000  # the host's counter is read after the scan of all processes, some ms after the sockets'
_PSYS_NEAR_UJ = 100_000_000  # the same counter, read 0.2 s apart at 500 W

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Counters:
    """What one page says: the counters that do not overlap, by channel, and the host's own energy and power."""

    by_channel_uj: Mapping[str, int]
    host_uj: int | None
    host_uw: float | None


def counters(samples: Iterable[Sample]) -> Counters:
    """Choose one cut through the page's overlapping counters: sockets and their DRAM, or else the host.

    ``core`` and ``uncore`` are inside their socket, psys holds the sockets, the ``mmio`` families (not wanted at all)
    repeat them. Where Scaphandre found no domains it exports psys as one more socket; it is known by its counter.
    """
    sockets: dict[str, int] = {}
    drams: dict[str, int] = {}
    host_uj, host_uw, host_is_psys = None, None, False
    for name, labels, value in samples:
        if value < 0:
            continue
        if name == SOCKET_ENERGY and "socket_id" in labels:
            sockets[f"package-{labels['socket_id']}"] = int(value)
        elif name == DOMAIN_ENERGY and labels.get("domain_name", "").strip() == "dram" and "socket_id" in labels:
            drams[f"package-{labels['socket_id']}/dram"] = int(value)
        elif name == HOST_ENERGY:
            host_uj, host_is_psys = int(value), "psys" in labels.get("value_source", "")
        elif name == HOST_POWER:
            host_uw = float(value)
    if host_is_psys and host_uj is not None:
        sockets = _without_psys(sockets, host_uj)
    if sockets:
        return Counters({**sockets, **drams}, host_uj, host_uw)
    return Counters({} if host_uj is None else {"host": host_uj}, host_uj, host_uw)


def _without_psys(sockets: Mapping[str, int], psys_uj: int) -> dict[str, int]:
    return {name: value for name, value in sockets.items() if abs(value - psys_uj) > _PSYS_NEAR_UJ}


class ScaphandreMeter:
    """Polls a Scaphandre exporter: one channel per CPU socket and DRAM domain, or one for the host.

    Args:
        url: of the exporter's page. Credentials in it are sent, but never shown.
        interval_seconds: between two polls, s, >= 2.2.
        range_uj: where the counters wrap (``max_energy_range_uj`` of the host's powercap tree), µJ. Scaphandre does
            not tell; without it a wrap is a gap.
        scale_error: relative error of the joules, 0.05 for 5 %.
        timeout_seconds: for one request, s.
        clock: the monotonic clock, ns.
    """

    name = "scaphandre"

    def __init__(
        self,
        url: str = SCAPHANDRE_URL,
        *,
        interval_seconds: float = MIN_INTERVAL_SECONDS,
        range_uj: int | None = None,
        scale_error: float = RAPL_SCALE_ERROR,
        timeout_seconds: float = 3.0,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        if not interval_seconds >= MIN_INTERVAL_SECONDS:
            raise ValueError(
                f"ScaphandreMeter(interval_seconds={interval_seconds!r}): must be {MIN_INTERVAL_SECONDS} or more; "
                "polled faster, the exporter freezes for all its clients."
            )
        self.pace = Pace(interval_seconds, interval_seconds)
        self._exporter = Exporter(url, timeout_seconds, clock)
        self._interval_ns = int(interval_seconds * NS_PER_SECOND)
        self._range_uj = range_uj
        self._scale_error = scale_error
        self._clock = clock
        self._forget()

    def _forget(self) -> None:
        self._channel_ids: tuple[str, ...] = ()
        self._first_readings: list[Reading] = []
        self._seen = Counters({}, None, None)
        self._refreshed_ns: tuple[int, int] | None = None  # when the exporter last refreshed: earliest, latest
        self._asked_ns: int | None = None
        self._next_poll_ns = 0
        self._stale_polls = 0
        self._warned = False

    def __repr__(self) -> str:
        return f"ScaphandreMeter(url={self.url!r})"

    @property
    def url(self) -> str:
        """The page's address without credentials and query."""
        return self._exporter.shown_url

    @property
    def frozen(self) -> bool:
        """Another client keeps the counters from being refreshed."""
        return self._stale_polls >= _FROZEN_POLLS

    def open(self) -> Sequence[Channel]:
        """Ask the exporter what it has; the first `read` returns what came with the answer.

        Raises:
            MeterError: ``meter-garbage`` if the page holds no energy counter; else see `Exporter.scrape`.
        """
        self.close()
        scrape, found = self._poll()
        self._channel_ids = tuple(found.by_channel_uj)
        self._first_readings = self._take(scrape, found)
        return [self._channel(channel_id) for channel_id in self._channel_ids]

    def read(self) -> Sequence[Reading]:
        """Poll, unless the last request was less than an interval ago; leave out what has not moved.

        Raises:
            MeterError: ``meter-frozen`` after several stale answers in a row, until a fresh one; else as `open`.
        """
        first, self._first_readings = self._first_readings, []
        if first or self._clock() < self._next_poll_ns:
            if self.frozen:
                raise self._frozen_error()
            return first
        scrape, found = self._poll()
        seen_uj = self._seen.by_channel_uj
        if all(seen_uj.get(channel_id) == energy_uj for channel_id, energy_uj in found.by_channel_uj.items()):
            return self._stale(scrape)
        return self._take(scrape, found)

    def close(self) -> None:
        """Forget the counters."""
        self._forget()

    def _poll(self) -> tuple[Scrape, Counters]:
        self._next_poll_ns = self._clock() + self._interval_ns - _TIMER_SLACK_NS
        scrape = self._exporter.scrape(WANTED)
        found = counters(scrape.samples)
        if not found.by_channel_uj:
            raise MeterError("meter-garbage", f"{self.url}: no energy counter of Scaphandre on this page.")
        return scrape, found

    def _take(self, scrape: Scrape, found: Counters) -> list[Reading]:
        earliest_ns, latest_ns = self._refreshed_ns = self._refresh_time(scrape, found)
        self._asked_ns = scrape.asked_ns
        self._seen = found
        self._stale_polls = 0
        return [
            Reading(channel_id, found.by_channel_uj[channel_id], earliest_ns, latest_ns)
            for channel_id in self._channel_ids
            if channel_id in found.by_channel_uj
        ]

    def _stale(self, scrape: Scrape) -> list[Reading]:
        self._asked_ns = scrape.asked_ns
        self._stale_polls += 1
        # Asking less often gives the other client's requests, or ours, a chance to be 2 s apart. The first pauses stay
        # below 4 s, so that the next refresh can still be dated.
        pause_ns = min(int(self._interval_ns * 1.5 ** (self._stale_polls - 1)), _LONGEST_PAUSE_NS)
        self._next_poll_ns = scrape.asked_ns + max(pause_ns, self._interval_ns)
        if not self.frozen:
            return []
        error = self._frozen_error()
        if not self._warned:
            self._warned = True
            _log.warning("%s", error)
        raise error

    def _frozen_error(self) -> MeterError:
        return MeterError(
            "meter-frozen",
            f"{self.url}: the counters stand still. Someone else asks this exporter within 2 s of our requests, and"
            " then it answers with old values (scaphandre issue 434); scrape it less often.",
        )

    def _refresh_time(self, scrape: Scrape, found: Counters) -> tuple[int, int]:
        """When the counters had their values: our request refreshed them, or another client's since our last one.

        The exporter's power is a mean over its last bucket, so host energy / host power is that bucket's length. Up to
        4 s after our last request at most one refresh can have come between, and so the length tells when it was.
        """
        asked_ns, answered_ns = scrape.asked_ns, scrape.answered_ns
        if self._asked_ns is None or self._refreshed_ns is None:
            return asked_ns - _REFRESH_NS, answered_ns
        waited_ns = asked_ns - self._asked_ns
        bracket = self._asked_ns, answered_ns
        bucket_ns = _bucket_ns(self._seen.host_uj, found)
        if bucket_ns is not None and self._stale_polls == 0 and abs(bucket_ns - waited_ns) <= _SKEW_NS:
            return asked_ns, answered_ns  # the bucket spans two requests of ours
        if bucket_ns is None or waited_ns > 2 * _REFRESH_NS:
            return bracket
        earliest_ns = max(bracket[0], self._refreshed_ns[0] + bucket_ns - _SKEW_NS)
        latest_ns = min(bracket[1], self._refreshed_ns[1] + bucket_ns + _SKEW_NS)
        return (earliest_ns, latest_ns) if earliest_ns <= latest_ns else bracket

    def _channel(self, channel_id: str) -> Channel:
        return Channel(
            id=channel_id,
            component=_component(channel_id),
            meter=self.name,
            range_uj=self._range_uj,
            scale_error=self._scale_error,
        )


def _bucket_ns(before_uj: int | None, found: Counters) -> int | None:
    if before_uj is None or found.host_uj is None or not found.host_uw or found.host_uj <= before_uj:
        return None
    return int((found.host_uj - before_uj) / found.host_uw * NS_PER_SECOND)


def _component(channel_id: str) -> Component:
    if channel_id == "host":
        return "host"
    return "memory" if channel_id.endswith("/dram") else "cpu"

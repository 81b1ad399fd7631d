"""Scaphandre through its Prometheus exporter (checked against 1.0.0 and 1.0.2).

The exporter refreshes its counters only when a request comes more than 2 s after the one before it, whoever sent that:
see `otel_llm_energy.meters.scaphandre_refresh`. So this meter polls slowly, works out which request refreshed what it
reads, and notices when another client keeps the counters frozen. One answer holds the counters and the figures of
processes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Sequence
from urllib.parse import urlsplit

from otel_llm_energy.meters.base import MeterError, Pace, as_scale_error
from otel_llm_energy.meters.exposition import Sample
from otel_llm_energy.meters.host_counters import HostCounters
from otel_llm_energy.meters.powercap import RAPL_SCALE_ERROR
from otel_llm_energy.meters.scaphandre_counters import COUNTER_FAMILIES, Counters, counters
from otel_llm_energy.meters.scaphandre_processes import PROCESS_FAMILIES
from otel_llm_energy.meters.scrape import Answer, Exporter, insist_on_certificates
from otel_llm_energy.quantities import NS_PER_SECOND, Channel, HostPower, Reading

SCAPHANDRE_URL = "http://localhost:8080/metrics"
MIN_INTERVAL_SECONDS = 2.2
"""The shortest poll that refreshed every time when tried on 1.0.2; 2 s and less freeze the exporter for everyone."""

_TIMER_SLACK_NS = 100_000_000  # a caller's timer that fires a little early must not cost a whole poll
_LONGEST_PAUSE_NS = 10 * NS_PER_SECOND
_FROZEN_POLLS = 3  # one stale answer is somebody's curl

_logger = logging.getLogger(__name__)


class ScaphandreMeter:
    """Polls a Scaphandre exporter: one channel per CPU socket and DRAM domain, or one for the host.

    Args:
        url: of the exporter's page. Credentials in it are sent, but never shown.
        process: which of the host's processes are the server whose calls are metered, where it cannot be looked into
            (another host or container): ``"ollama"``, ``"cmdline:vllm"``, ``"container:llm"``, ``"label:key=value"``;
            see `otel_llm_energy.servers.Selector`. Without it the calls are billed for all that the host draws above
            idle.
        cpus: how many CPUs that host has. Then a load that is always there is not taken for idle power.
        interval_seconds: between two polls, s, >= 2.2.
        range_uj: where the counters wrap (``max_energy_range_uj`` of the host's powercap tree), µJ. Scaphandre does
            not tell; without it a wrap is a gap.
        scale_error: relative error of the joules, 0.05 for 5 %.
        ca_file: of the authority that signed the certificate of an https address; ``None`` for the usual ones.
        timeout_seconds: for one request, s.
        clock_ns: the monotonic clock.
    """

    name = "scaphandre"

    def __init__(
        self,
        url: str = SCAPHANDRE_URL,
        *,
        process: str | None = None,
        cpus: int | None = None,
        interval_seconds: float = MIN_INTERVAL_SECONDS,
        range_uj: int | None = None,
        scale_error: float = RAPL_SCALE_ERROR,
        ca_file: str | None = None,
        timeout_seconds: float = 3.0,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        if not interval_seconds >= MIN_INTERVAL_SECONDS:
            raise ValueError(
                f"ScaphandreMeter(interval_seconds={interval_seconds!r}): must be {MIN_INTERVAL_SECONDS} or more; "
                "polled faster, the exporter freezes for all its clients."
            )
        self.pace = Pace(interval_seconds, interval_seconds)
        self.process = process
        self.cpus = cpus
        insist_on_certificates("ScaphandreMeter", ca_file)
        self._exporter = Exporter(url, ca_file=ca_file, timeout_seconds=timeout_seconds, clock_ns=clock_ns)
        self._interval_ns = int(interval_seconds * NS_PER_SECOND)
        self._range_uj = range_uj
        self._scale_error = as_scale_error(scale_error)
        self._clock_ns = clock_ns
        self._forget()

    def _forget(self) -> None:
        self._host = HostCounters(with_processes=self.process is not None)
        self._first_readings: list[Reading] = []
        self._next_poll_ns = 0
        self._warned = False

    def __repr__(self) -> str:
        return f"ScaphandreMeter(url={self.url!r})"

    @property
    def url(self) -> str:
        """The page's address without credentials and query."""
        return self._exporter.shown_url

    @property
    def host(self) -> str:
        """Whose counters these are: where the exporter is asked, ``host:port``."""
        return urlsplit(self.url).netloc

    @property
    def frozen(self) -> bool:
        """Another client keeps the counters from being refreshed."""
        return self._host.refreshes.stale >= _FROZEN_POLLS

    @property
    def source(self) -> Hashable:
        """Equal for meters that ask the same exporter: of such only one may be read."""
        return self._exporter.source

    def host_powers(self) -> Sequence[HostPower]:
        """The newest figures of processes, oldest first; they came with the readings."""
        return self._host.powers()

    def open(self) -> Sequence[Channel]:
        """Ask the exporter what it has; the first `read` returns what came with the answer.

        Raises:
            MeterError: ``meter-garbage`` if the page holds no energy counter; else see `Exporter.scrape`.
        """
        self.close()
        scrape, found = self._poll()
        channels = self._host.channels(found, meter=self.name, range_uj=self._range_uj, scale_error=self._scale_error)
        self._first_readings = self._take(scrape, found)
        return channels

    def read(self) -> Sequence[Reading]:
        """Poll, unless the last request was less than an interval ago; leave out what has not moved.

        Raises:
            MeterError: ``meter-frozen`` after several stale answers in a row, until a fresh one; else as `open`.
        """
        first, self._first_readings = self._first_readings, []
        if first or self._clock_ns() < self._next_poll_ns:
            if self.frozen:
                raise self._frozen_error()
            return first
        return self._take(*self._poll())

    def close(self) -> None:
        """Forget the counters."""
        self._forget()

    def _poll(self) -> tuple[Answer[list[Sample]], Counters]:
        self._next_poll_ns = self._clock_ns() + self._interval_ns - _TIMER_SLACK_NS
        wanted = COUNTER_FAMILIES if self.process is None else COUNTER_FAMILIES | PROCESS_FAMILIES
        scrape = self._exporter.scrape(wanted)
        found = counters(scrape.content)
        if not found.by_channel_uj:
            raise MeterError("meter-garbage", f"{self.url}: no energy counter of Scaphandre on this page.")
        return scrape, found

    def _take(self, scrape: Answer[list[Sample]], found: Counters) -> list[Reading]:
        refreshed_ns = self._host.refreshes.date(scrape.asked_ns, scrape.answered_ns, found)
        if refreshed_ns is None:
            return self._stale(scrape.asked_ns)
        return self._host.readings(found, scrape.content, refreshed_ns, self.url)

    def _stale(self, asked_ns: int) -> list[Reading]:
        # Asking less often gives the other client's requests, or ours, a chance to be 2 s apart. The first pauses stay
        # below 4 s, so that the next refresh can still be dated.
        pause_ns = min(int(self._interval_ns * 1.5 ** (self._host.refreshes.stale - 1)), _LONGEST_PAUSE_NS)
        self._next_poll_ns = asked_ns + max(pause_ns, self._interval_ns)
        if not self.frozen:
            return []
        error = self._frozen_error()
        if not self._warned:
            self._warned = True
            _logger.warning("%s", error)
        raise error

    def _frozen_error(self) -> MeterError:
        return MeterError(
            "meter-frozen",
            f"{self.url}: the counters stand still. Someone else asks this exporter within 2 s of our requests, and"
            " then it answers with old values (scaphandre issue 434); scrape it less often.",
        )

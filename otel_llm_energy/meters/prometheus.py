"""Scaphandre's counters by way of a Prometheus that scrapes it, or of a store with Prometheus' HTTP API.

A range vector (``metric[5m]``) gives each sample as it was scraped, with its time; nothing is interpolated or rated.

Checked against Prometheus 2.53.3; VictoriaMetrics 1.151.0, one node, which scraped by itself or to which that
Prometheus wrote; Thanos 0.42.4, its Query before a sidecar of that Prometheus, and before a Receive to which it wrote.
"""

from __future__ import annotations

import json
import re
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise
from statistics import median
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from otel_llm_energy.meters.base import MeterError, Pace, as_scale_error
from otel_llm_energy.meters.exposition import Sample
from otel_llm_energy.meters.host_counters import HostCounters
from otel_llm_energy.meters.powercap import RAPL_SCALE_ERROR
from otel_llm_energy.meters.scaphandre_counters import COUNTER_FAMILIES, HOST_ENERGY, Counters, counters
from otel_llm_energy.meters.scaphandre_processes import MEMORY, POWER
from otel_llm_energy.meters.scrape import HttpSource, insist_on_certificates
from otel_llm_energy.quantities import NS_PER_SECOND, Channel, HostPower, Reading

SCRAPE_SECONDS = "scrape_duration_seconds"
"""Prometheus' own figure of how long a scrape took; it carries the target's labels alone."""

_PLAIN_NAME = re.compile("[A-Za-z_][A-Za-z0-9_]*")
_FAMILIES = COUNTER_FAMILIES | {SCRAPE_SECONDS}
_PROCESS_FAMILIES = frozenset({POWER, MEMORY})
_NOT_THE_HOSTS = frozenset({"__name__", "value_source"})  # other labels of the host's counter tell hosts apart
_LOOK_BACK_SECONDS = 300
_DEFAULT_INTERVAL_SECONDS = 15.0
_SHORTEST_POLL_SECONDS, _LONGEST_POLL_SECONDS = 1.0, 5.0
_STALE_INTERVALS = 4
_FROZEN_SAMPLES = 3
_GONE_INTERVALS = 0.9
_SHOWN_LATE_NS = 5 * NS_PER_SECOND  # how much later than another host's a scrape may be shown
_SCRAPE_SECONDS = 1.0  # until a scrape has come and can be asked for, where nothing else is known
_WHOLE_SECONDS = 20  # until nothing is added to a scrape any more, at the latest
_CLOCK_LOOKS = 8
_CLOCK = "time()"
_VICTORIA_METRICS_CLOCK = "now()"  # its time() is half a minute old, by its -search.latencyOffset
_REMEMBERED_SCRAPES = 8
_WARNING_LETTERS = 300


Labels = tuple[tuple[str, str], ...]


@dataclass(slots=True)
class _Scrape:
    """What one scrape gave, and how long it took, if that is known."""

    samples: list[Sample] = field(default_factory=list)
    seconds: float | None = None

    @property
    def size(self) -> int:
        """How many of its samples were found."""
        return len(self.samples) + (self.seconds is not None)


class _Scrapes(NamedTuple):
    """Scrapes by their time on Prometheus' clock, ns, and when each host was scraped."""

    by_time_ns: dict[int, _Scrape]
    by_host_ns: dict[Labels, list[int]]


class PrometheusMeter:
    """Asks a Prometheus for what it scraped from a host's Scaphandre: one channel per CPU socket and DRAM domain.

    Readings come as often as Prometheus scrapes (5 to 60 s; 2 s and less freeze Scaphandre for everyone), and as late;
    from a store to which a Prometheus writes, and from VictoriaMetrics, some seconds later.

    Args:
        url: of the Prometheus, with its path prefix if it has one; a user and password in it are sent as basic
            authentication, but never shown. A VictoriaMetrics or a Thanos Query will do (checked: 1.151.0, 0.42.4);
            Mimir was not tried.
        instance: which host, where the Prometheus knows several: the ``instance`` label, e.g. ``"gpu-1:8080"``.
        labels: more labels of the host's series, e.g. ``{"job": "scaphandre", "node": "gpu-1"}``.
        process, cpus: as for `ScaphandreMeter`.
        bearer_token, headers: sent with each request, never shown.
        ca_file: of the authority that signed the Prometheus' certificate; ``None`` for the usual ones.
        range_uj, scale_error: as for `ScaphandreMeter`.
        timeout_seconds: for one request, s.
        clock_ns: the monotonic clock.
    """

    name = "prometheus"

    def __init__(
        self,
        url: str,
        *,
        instance: str | None = None,
        labels: Mapping[str, str] | None = None,
        process: str | None = None,
        cpus: int | None = None,
        bearer_token: str | None = None,
        headers: Mapping[str, str] | None = None,
        ca_file: str | None = None,
        range_uj: int | None = None,
        scale_error: float = RAPL_SCALE_ERROR,
        timeout_seconds: float = 5.0,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        if "?" in url:
            raise ValueError("PrometheusMeter: its url takes no query; name the host by instance= or labels=.")
        insist_on_certificates("PrometheusMeter", ca_file)
        sent = {**(headers or {}), **({"Authorization": f"Bearer {bearer_token}"} if bearer_token else {})}
        self._source = HttpSource(
            f"{url.rstrip('/')}/api/v1/query",
            program="Prometheus",
            headers=sent,
            ca_file=ca_file,
            timeout_seconds=timeout_seconds,
            clock_ns=clock_ns,
        )
        self._labels: dict[str, str] = {**(labels or {}), **({"instance": instance} if instance else {})}
        self.process = process
        self.cpus = cpus
        self.pace = _pace(_DEFAULT_INTERVAL_SECONDS)
        self._range_uj = range_uj
        self._scale_error = as_scale_error(scale_error)
        self._clock_ns = clock_ns
        self._forget()

    def _forget(self) -> None:
        self._first_readings: list[Reading] = []
        self._host: Mapping[str, str] = self._labels
        self._counters = HostCounters(with_processes=self.process is not None)
        self._interval_ns = int(_DEFAULT_INTERVAL_SECONDS * NS_PER_SECOND)
        self._scraped_ns: deque[int] = deque(maxlen=_REMEMBERED_SCRAPES)
        self._last_ns: int | None = None  # of the newest sample, on Prometheus' clock
        self._warning = ""  # of the newest answer
        self._lateness = _Lateness()
        self._ahead = _ClockDifference()
        self._clock_query = _CLOCK

    def __repr__(self) -> str:
        return f"PrometheusMeter(url={self.url!r}, labels={self._labels!r})"

    @property
    def url(self) -> str:
        """The address without credentials and query."""
        return self._source.shown_url.removesuffix("/api/v1/query")

    @property
    def host(self) -> str:
        """Whose counters these are: the labels that choose the host, else where the Prometheus is asked."""
        return self._labels.get("instance") or _shown(self._labels) or urlsplit(self.url).netloc

    @property
    def source(self) -> Hashable:
        """Equal for meters that ask the same Prometheus for the same host."""
        return self._source.source, tuple(sorted(self._labels.items()))

    def host_powers(self) -> Sequence[HostPower]:
        """The newest figures of processes, oldest first; they came with the readings."""
        return self._counters.powers()

    def open(self) -> Sequence[Channel]:
        """Find the host, its counters, and how often it is scraped.

        Raises:
            MeterError: ``meter-no-data`` (no such series), ``meter-ambiguous`` (of several hosts), ``meter-stale``, or
                what `HttpSource.get` raises.
        """
        self.close()
        scrapes = self._ask(COUNTER_FAMILIES, _LOOK_BACK_SECONDS)
        self._learn_interval(scrapes.by_host_ns.values())
        host = self._the_host(scrapes, self._interval_ns + _SHOWN_LATE_NS)
        if host is None:
            raise MeterError("meter-no-data", self._no_data())
        *earlier_ns, newest_ns = sorted(set(scrapes.by_host_ns[host]))
        # The newest may be there in part; which counters there are shows in the one before it, too.
        newest = [counters(scrapes.by_time_ns[at_ns].samples) for at_ns in (newest_ns, *earlier_ns[-1:])]
        found = max(newest, key=lambda each: len(each.by_channel_uj))
        if not found.by_channel_uj:
            raise MeterError("meter-no-data", self._no_data())
        self._host = self._labels or dict(host)  # who named none means the one that there was
        channels = self._counters.channels(
            found, meter=self.name, range_uj=self._range_uj, scale_error=self._scale_error
        )
        self._scraped_ns.extend(earlier_ns)
        self._last_ns = newest_ns - 1
        self._first_readings = self._new_readings()
        return channels

    def read(self) -> Sequence[Reading]:
        """All scrapes that are new, oldest first.

        Raises:
            MeterError: ``meter-stale`` (Prometheus gets nothing from the host), ``meter-frozen`` (it scrapes so often
                that the exporter stands still), ``meter-ambiguous``, or what `HttpSource.get` raises.
        """
        first, self._first_readings = self._first_readings, []
        return first + self._new_readings()

    def close(self) -> None:
        """Forget the host."""
        self._forget()

    def _new_readings(self) -> list[Reading]:
        if self._last_ns is None:
            raise MeterError("meter-closed", f"{self!r}: the meter is not open.")
        now_ns = self._prometheus_now_ns()
        families = _FAMILIES if self.process is None else _FAMILIES | _PROCESS_FAMILIES
        back_seconds = max((now_ns - self._last_ns) // NS_PER_SECOND + 2, _WHOLE_SECONDS)
        scrapes = self._ask(families, min(back_seconds, _LOOK_BACK_SECONDS))
        self._the_host(scrapes, _GONE_INTERVALS * self._interval_ns)
        sizes = {at_ns: scrape.size for at_ns, scrape in scrapes.by_time_ns.items()}
        self._lateness.look(sizes, now_ns)
        last_ns, whole_ns = self._last_ns, now_ns - self._lateness.whole_ns
        readings: list[Reading] = []
        for at_ns in sorted(time_ns for time_ns in sizes if last_ns < time_ns <= whole_ns):
            readings += self._take(at_ns, scrapes.by_time_ns[at_ns])
        self._learn_interval([self._scraped_ns])
        self._check_age(now_ns - max(chain.from_iterable(scrapes.by_host_ns.values()), default=last_ns))
        return readings

    def _learn_interval(self, scraped_ns: Iterable[Sequence[int]]) -> None:
        """How often the host is scraped; when the app starts there may have been one scrape, and later another rule."""
        interval_ns = _interval_ns(scraped_ns)
        if interval_ns is not None:
            self._interval_ns = interval_ns
        self.pace = _pace(self._interval_ns / NS_PER_SECOND, self._lateness.longest_ns / NS_PER_SECOND)

    def _take(self, at_ns: int, scrape: _Scrape) -> list[Reading]:
        """The readings of one scrape; none where the exporter repeats itself."""
        found = counters(scrape.samples)
        if not found.by_channel_uj:
            return []
        self._last_ns = at_ns
        self._scraped_ns.append(at_ns)
        self._lateness.used(at_ns, scrape.size)
        refreshed_ns = self._date(at_ns, scrape, found)
        if refreshed_ns is None:
            return []
        return self._counters.readings(found, scrape.samples, refreshed_ns, f"{self.url}, {_shown(self._host)}")

    def _date(self, at_ns: int, scrape: _Scrape, found: Counters) -> tuple[int, int] | None:
        """A scrape's time is that of its request: when the exporter refreshed, on our clock. ``None`` for no news."""
        asked_ns = self._ahead.here(at_ns)
        took_seconds = _SCRAPE_SECONDS if scrape.seconds is None else scrape.seconds
        answered_ns = asked_ns + int(took_seconds * NS_PER_SECOND)
        refreshed_ns = self._counters.refreshes.date(asked_ns, answered_ns, found)
        if refreshed_ns is None:
            return None
        error_ns = self._ahead.error_ns
        # What has been told has been, however the clocks differ.
        latest_ns = min(refreshed_ns[1] + error_ns, self._clock_ns())
        return min(refreshed_ns[0] - error_ns, latest_ns), latest_ns

    def _check_age(self, age_ns: int) -> None:
        if self._counters.refreshes.stale >= _FROZEN_SAMPLES:
            raise MeterError(
                "meter-frozen",
                f"{self.url}: the counters of {_shown(self._host)} stand still. Scaphandre answers with old values if"
                " it is asked more than once in 2 s, by all clients together (issue 434): scrape it every 5 s.",
            )
        if age_ns > _STALE_INTERVALS * self._interval_ns:
            raise MeterError(
                "meter-stale",
                f"{self.url}: the newest sample of {_shown(self._host)} is {age_ns / NS_PER_SECOND:.0f} s old. Is its"
                f" Scaphandre up? See the page /targets of this Prometheus.{self._warning}",
            )

    # Asking

    def _ask(self, families: Iterable[str], back_seconds: int) -> _Scrapes:
        """All that was scraped in the last seconds."""
        names = "|".join(sorted(families))
        matchers = "".join(f",{_matcher(name, value)}" for name, value in sorted(self._host.items()))
        found = _Scrapes({}, {})
        for series in self._query(f'{{__name__=~"{names}"{matchers}}}[{back_seconds}s]'):
            labels = {str(name): str(value) for name, value in _mapping(series.get("metric")).items()}
            values = dict(_values(series))
            name = labels.get("__name__", "")
            if name == HOST_ENERGY:
                host = tuple(sorted(pair for pair in labels.items() if pair[0] not in _NOT_THE_HOSTS))
                found.by_host_ns.setdefault(host, []).extend(values)
            for at_ns, value in values.items():
                scrape = found.by_time_ns.setdefault(at_ns, _Scrape())
                if name == SCRAPE_SECONDS:
                    scrape.seconds = value
                else:
                    scrape.samples.append(Sample(name, labels, value))
        return found

    def _query(self, promql: str) -> Iterator[Mapping[str, Any]]:
        answer = self._source.get(_document, {"query": promql}).content
        result = _data(answer).get("result")
        self._warning = _first_warning(answer)
        if not isinstance(result, list):
            raise self._source.error("meter-garbage", "the answer is not that of a Prometheus")
        return (each for each in result if isinstance(each, Mapping))

    def _prometheus_now_ns(self) -> int:
        """The time on Prometheus' clock, which need not be ours."""
        answer = self._source.get(_document, {"query": self._clock_query})
        if self._clock_query == _CLOCK and _data(answer.content).get("resultType") == "vector":
            self._clock_query = _VICTORIA_METRICS_CLOCK
            answer = self._source.get(_document, {"query": self._clock_query})
        now_ns = _clock_ns(_data(answer.content))
        if now_ns is None:
            raise self._source.error("meter-garbage", "the answer is not that of a Prometheus")
        self._ahead.look(now_ns, answer.asked_ns, answer.answered_ns)
        return now_ns

    def _the_host(self, scrapes: _Scrapes, gone_ns: float) -> Labels | None:
        """The labels of the host that is scraped now; they may change with a new exporter. ``None`` if there is none.

        One that was not scraped for ``gone_ns`` has given way to the newest, such as a pod that was started again.

        Raises:
            MeterError: ``meter-ambiguous``: there are several.
        """
        newest_ns = {host: max(times_ns) for host, times_ns in scrapes.by_host_ns.items() if times_ns}
        last_ns = max(newest_ns.values(), default=0)
        alive = [host for host, at_ns in newest_ns.items() if last_ns - at_ns < gone_ns]
        if len(alive) > 1:
            common = set(alive[0]).intersection(*alive)  # one host may be scraped by two jobs, or by two replicas
            names = ", ".join(sorted(_shown(dict(set(host) - common)) for host in alive))
            raise MeterError(
                "meter-ambiguous",
                f"{self.url}: Scaphandre of several hosts: {names}. Choose one: PrometheusMeter(url, instance=...) or"
                " labels={...}, or ?instance=... in the URL.",
            )
        return alive[0] if alive else None

    def _no_data(self) -> str:
        wanted = f" with {_shown(self._labels)}" if self._labels else ""
        return (
            f"{self.url}: no series {HOST_ENERGY}{wanted} in the last {_LOOK_BACK_SECONDS // 60} minutes. Let it scrape"
            f" Scaphandre every 5 s or more seldom.{self._warning}"
        )


class _Lateness:
    """How late a store shows a scrape, and the last of it, from what had come when it was looked at again.

    Prometheus itself shows a scrape at once, and all of it. A remote write sends it in parts, some seconds later.
    VictoriaMetrics takes some seconds, too, and some more for series that are new, such as a process's.

    Attributes:
        shown_ns: until there is something of it.
        whole_ns: until all of it is there.
    """

    def __init__(self) -> None:
        self.shown_ns = self.whole_ns = 0
        self._looked_ns = self._newest_ns = 0
        self._used: dict[int, int] = {}  # how many samples of a scrape there were

    @property
    def longest_ns(self) -> int:
        """Until a scrape can be used."""
        return max(self.shown_ns, self.whole_ns)

    def used(self, at_ns: int, size: int) -> None:
        """Readings were made of so many samples of a scrape."""
        self._used[at_ns] = size

    def look(self, sizes: Mapping[int, int], now_ns: int) -> None:
        """So many samples of each scrape are there now."""
        longest_ns = _WHOLE_SECONDS * NS_PER_SECOND
        self._used = {at_ns: size for at_ns, size in self._used.items() if now_ns - at_ns < longest_ns}
        for at_ns, size in sizes.items():
            if self._newest_ns < at_ns < self._looked_ns:
                self.shown_ns = max(self.shown_ns, min(self._looked_ns - at_ns, longest_ns))
            if size > self._used.get(at_ns, size):
                self.whole_ns = max(self.whole_ns, now_ns - at_ns)
                self._used[at_ns] = size
        self._looked_ns, self._newest_ns = now_ns, max(sizes, default=self._newest_ns)


class _ClockDifference:
    """How far another machine's wall clock is ahead of our monotonic clock, from requests that tell its time."""

    def __init__(self) -> None:
        self._looks: deque[tuple[int, int]] = deque(maxlen=_CLOCK_LOOKS)  # error, difference, ns

    def look(self, there_ns: int, asked_ns: int, answered_ns: int) -> None:
        """It was ``there_ns`` there at some time between."""
        error_ns = (answered_ns - asked_ns + 1) // 2
        difference_ns = there_ns - (asked_ns + answered_ns) // 2
        if any(abs(difference_ns - other_ns) > error_ns + other_error_ns for other_error_ns, other_ns in self._looks):
            self._looks.clear()  # a clock was set
        self._looks.append((error_ns, difference_ns))

    @property
    def error_ns(self) -> int:
        """How far `here` may be off."""
        return min(self._looks)[0]

    def here(self, there_ns: int) -> int:
        """That time there on our clock."""
        return there_ns - min(self._looks)[1]


def _matcher(name: str, value: str) -> str:
    """A label in PromQL. Since version 3 a name may be any text (``k8s.node.name``), in quotes then."""
    shown = name if _PLAIN_NAME.fullmatch(name) else _quoted(name)
    return f"{shown}={_quoted(value)}"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)  # of JSON's escapes PromQL takes all but those of surrogates


def _values(series: Mapping[str, Any]) -> Iterator[tuple[int, float]]:
    values = series.get("values")
    for value in values if isinstance(values, list) else []:
        try:
            at_ms, number = round(float(value[0]) * 1000), float(value[1])
        except (IndexError, TypeError, ValueError):
            continue
        if number - number == 0:  # finite
            yield at_ms * 1_000_000, int(number) if number.is_integer() else number


def _document(chunks: Iterator[bytes]) -> Any:
    try:
        return json.loads(b"".join(chunks))
    except (ValueError, RecursionError):
        return None


def _data(document: Any) -> Mapping[str, Any]:
    return _mapping(_mapping(document).get("data"))


def _first_warning(document: Any) -> str:
    """Thanos warns where one of its stores did not answer, and goes on without."""
    warnings = _mapping(document).get("warnings")
    return f" It warns: {str(warnings[0])[:_WARNING_LETTERS]}" if isinstance(warnings, list) and warnings else ""


def _clock_ns(data: Mapping[str, Any]) -> int | None:
    """What a clock shows: a number, or, where there are no bare numbers, a nameless series."""
    try:
        (shown,) = [data["result"]] if data["resultType"] == "scalar" else [each["value"] for each in data["result"]]
        return int(float(shown[1]) * NS_PER_SECOND)
    except (KeyError, IndexError, TypeError, ValueError, OverflowError):
        return None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _interval_ns(times_ns: Iterable[Sequence[int]]) -> int | None:
    """The usual time between two scrapes of a host; ``None`` if there was one only."""
    steps = [later - earlier for each in times_ns for earlier, later in pairwise(sorted(each))]
    return int(median(steps)) if steps else None


def _pace(interval_seconds: float, late_seconds: float = 0.0) -> Pace:
    """A few polls for each scrape: each reading is found soon after it is there."""
    poll_seconds = min(max(interval_seconds / 4, _SHORTEST_POLL_SECONDS), _LONGEST_POLL_SECONDS)
    delay_seconds = interval_seconds + max(_SCRAPE_SECONDS, late_seconds)
    return Pace(max(interval_seconds / 2, poll_seconds), poll_seconds, delay_seconds=delay_seconds)


def _shown(labels: Mapping[str, str]) -> str:
    """A host in few words."""
    named = ", ".join(f"{name}={value}" for name, value in sorted(labels.items()))
    return labels.get("instance") or named or "the host"

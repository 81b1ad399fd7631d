"""Reads one meter into the books, in a thread of its own and at the edges of calls."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial

from otel_llm_energy.meters.base import MeterError
from otel_llm_energy.meters.discovery import OpenMeter
from otel_llm_energy.quantities import NS_PER_SECOND, Reading
from otel_llm_energy.tracing.books import Books
from otel_llm_energy.tracing.clocks import SleepWatch
from otel_llm_energy.tracing.edges import EdgeAllowance
from otel_llm_energy.tracing.pollers import Poller
from otel_llm_energy.tracing.server_watch import ACTIVITY_GAP_NS
from otel_llm_energy.troubles import Troubles

_LONGEST_BACKOFF_SECONDS = 60.0
_EDGES_AGAIN_NS = 10 * NS_PER_SECOND

_logger = logging.getLogger(__name__)

ReadingListener = Callable[[Sequence[Reading]], None]


class MeterReader:
    """Reads one meter from `start` to `stop`: at its pace in its own thread, and at calls' edges where that is cheap.

    Args:
        open_meter: the meter, and those of its channels that count.
        books: where readings go.
        on_reading: told in the reader's thread that the meter was read, or could not be read (`problem`).
        clock_ns: the monotonic clock.
        sleep: notices that the machine has slept: the books are told before the next reading.
        allowed: whether this process may read just now; ``None`` for always.
        listeners: told of each reading, in the thread that took it.

    Attributes:
        open_meter: as given.
        problem: why the meter could not be read the last time; ``None`` if it could.
        last_reading_ns: when its counters had their newest values; ``None`` before the first reading.
    """

    def __init__(
        self,
        open_meter: OpenMeter,
        books: Books,
        on_reading: Callable[[MeterReader], None],
        clock_ns: Callable[[], int],
        sleep: SleepWatch,
        allowed: Callable[[], bool] | None = None,
        listeners: Sequence[ReadingListener] = (),
    ) -> None:
        self.open_meter = open_meter
        self.problem: MeterError | None = None
        self.last_reading_ns: int | None = None
        self._read_ns: dict[str, int] = {}  # the newest reading of each channel
        self._books = books
        self._on_reading = on_reading
        self._clock_ns = clock_ns
        self._sleep = sleep
        self._note_sleep = partial(books.interrupt, "suspend")
        self._allowed = allowed
        self._listeners = listeners
        self._wanted = frozenset(channel.id for channel in open_meter.channels)
        pace = open_meter.meter.pace
        self._edges = EdgeAllowance(pace) if pace.at_edges else None
        self._poller = Poller(open_meter.meter.name, self._poll)
        self._troubles = Troubles(_logger, clock_ns=clock_ns)
        self._failures = 0
        self._edge_gap_ns = int(pace.edge_gap_seconds * NS_PER_SECOND)
        self._no_edge_before_ns = 0

    def age_seconds(self, channel_id: str) -> float | None:
        """Of a channel's newest reading; ``None`` before the first."""
        read_ns = self._read_ns.get(channel_id)
        return None if read_ns is None else (self._clock_ns() - read_ns) / NS_PER_SECOND

    def start(self) -> None:
        self._poller.start()

    @property
    def is_slow(self) -> bool:
        """It is read no more often than activity is sampled."""
        return self.open_meter.meter.pace.open_seconds * NS_PER_SECOND >= ACTIVITY_GAP_NS

    def wake(self) -> None:
        """Read now, if this meter may be read at any time."""
        if self.open_meter.meter.pace.open_seconds < 1:
            self._poller.wake()

    def stop(self) -> None:
        self._poller.stop()
        self.open_meter.meter.close()

    def forget_in_child(self) -> None:
        """In a forked child: the parent reads."""
        self._poller.forget_in_child()

    def read_edge(self) -> None:
        """A reading in the caller's thread, unless there was one just now."""
        if self._edges is None:
            return
        now_ns = self._clock_ns()
        if now_ns < self._no_edge_before_ns or not self._edges.take(now_ns):
            return
        try:
            self._read()
        except MeterError as error:
            self._note_problem(error)
        else:
            self.problem = None

    def _poll(self) -> float:
        pace = self.open_meter.meter.pace
        if self._allowed is not None and not self._allowed():
            return pace.idle_seconds
        try:
            self._read()
        except MeterError as error:
            return self._failed(error, pace.open_seconds)
        self.problem, self._failures = None, 0
        self._on_reading(self)
        return pace.open_seconds if self._books.busy else pace.idle_seconds

    def _take(self, readings: Sequence[Reading]) -> None:
        if readings:
            self.last_reading_ns = readings[-1].latest_ns
            self._no_edge_before_ns = self.last_reading_ns + self._edge_gap_ns
            for reading in readings:
                self._read_ns[reading.channel_id] = reading.latest_ns
            self._books.read(readings)
            for listener in self._listeners:
                listener(readings)

    def _note_problem(self, error: MeterError) -> None:
        """Where another process reads the meters, and this one their edges alone, nobody else sees it end."""
        self.problem = error
        self._no_edge_before_ns = self._clock_ns() + _EDGES_AGAIN_NS

    def _failed(self, error: MeterError, seconds: float) -> float:
        self._note_problem(error)
        self._failures += 1
        self._troubles.warn(error.reason, "%s", error)
        self._on_reading(self)
        backoff_seconds: float = max(seconds, 1.0) * 2 ** min(self._failures - 1, 6)
        return min(backoff_seconds, _LONGEST_BACKOFF_SECONDS)

    def _read(self) -> None:
        """Take a reading; one after a sleep is not joined to one before it."""
        self._sleep.look(self._note_sleep)
        meter = self.open_meter.meter
        try:
            readings = [reading for reading in meter.read() if reading.channel_id in self._wanted]
        except MeterError:
            raise
        except Exception as error:  # a user's own may raise, or give, anything; at an edge it would reach the app
            raise MeterError("meter-unreadable", f"{meter.name}: its read() failed: {error!r}.") from error
        self._take(readings)

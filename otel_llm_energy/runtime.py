"""All that runs behind `instrument()`: stations, desk, metrics and the joint with the tracer provider."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial

from opentelemetry import trace
from opentelemetry.metrics import MeterProvider

from otel_llm_energy.meters.base import MeterError
from otel_llm_energy.servers.announced import announced
from otel_llm_energy.settings import Settings
from otel_llm_energy.stations import directory_of
from otel_llm_energy.status import Status, channel_statuses
from otel_llm_energy.syscalls import monotonic_ns
from otel_llm_energy.tracing.claims import Claim, ClaimListener, Whole
from otel_llm_energy.tracing.desk import SettlingDesk
from otel_llm_energy.tracing.directory import Metered
from otel_llm_energy.tracing.enrich import Style
from otel_llm_energy.tracing.following_tracer import FollowingTracerProvider
from otel_llm_energy.tracing.forks import after_fork_in_child, at_exit_of_worker, start_in_child, while_alive
from otel_llm_energy.tracing.forward import Downstream
from otel_llm_energy.tracing.gate import DEFAULT_MAX_HOLD_SECONDS, Gate, SpanWatch
from otel_llm_energy.tracing.idle_measurement import measure_idle
from otel_llm_energy.tracing.joining import Joining
from otel_llm_energy.tracing.metrics import EnergyMetrics, MeterPlace, is_shut_down, records
from otel_llm_energy.tracing.pollers import Poller
from otel_llm_energy.tracing.reader import ReadingListener
from otel_llm_energy.tracing.unobserved import UnobservedCalls

LAST_READING_SECONDS = 12.0  # so long a command that has made its calls waits for the reading that covers the last
_LOOK_AGAIN_SECONDS = 1.0
_LEAST_PERIOD_SECONDS = 5.0  # two of Scaphandre's: another client's request may have frozen the first reading
_LONGEST_EXIT_SECONDS = 30.0  # as long as the SDK's own batch processor may take
_EXIT_MILLIS = int(_LONGEST_EXIT_SECONDS * 1000)
_ONLY_HERE = (
    "Only the idle power of this machine is measured on purpose: that of the meters in servers= is learned while no"
    " call is at work, or given by idle_watts."
)

_logger = logging.getLogger(__name__)


class Runtime:
    """Measures and settles from `start` to `stop`; whose spans get energy in that time is its `Joining`'s.

    Args:
        options: see `otel_llm_energy.settings.OPTIONS`.
        tracer_provider: ``None`` for the global one, whichever that is by then.
        meter_provider: ``None`` for the global one.

    Attributes:
        joining: the tracer provider of now, and all gates.
        desk: opens, closes and settles claims.
        unobserved: LLM spans of other libraries.
        watch: looks at the spans of all gates; to be set before `start`.
        is_ready: `before_call` has nothing to do.
    """

    def __init__(
        self,
        options: Settings,
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
    ) -> None:
        self._options = options
        self._meter_provider = meter_provider
        self.joining = Joining(tracer_provider, self._make_gate, self._equip, self._look_again_soon)
        self.watch: SpanWatch | None = None
        self.is_ready = False
        self._stopped = False
        self._to_start_afresh = self._is_starting = False
        self._start_lock = threading.RLock()  # a collection anywhere may end a stream, and so run the app's code
        self._build()
        after_fork_in_child(weakref.WeakMethod(self._start_afresh))

    def _build(self) -> None:
        self._metrics = EnergyMetrics(self._meter_provider, health=self.joining.health, lag_seconds=self._lag_seconds)
        directory = self._directory = directory_of(self._options, self._settle_soon, self._records)
        for host, port in announced(os.environ):
            found = directory.find(host, port, "")
            if isinstance(found, Metered):
                found.station.look_out_for(found.host, found.port)
        self.desk = SettlingDesk(
            directory,
            self._listeners,
            balance_listener=self._metrics,
            max_hold_seconds=self._max_hold_seconds(),
        )
        self.unobserved = UnobservedCalls(self.desk)
        self._joiner = Poller("joining", self._look_again)

    def start(self) -> None:
        """Join tracing if it is set up, or as soon as it is, and start reading."""
        self.joining.start()
        self.desk.start()
        self._joiner.start()

    def stop(self) -> None:
        """Hand on what is held, stand aside, stop reading. A repeat does nothing."""
        with self._start_lock:
            if self._stopped:
                return
            self._stopped = True
        atexit.unregister(self._at_exit)
        self._joiner.stop()
        self.desk.settle_now(min(self._period_seconds(), _LONGEST_EXIT_SECONDS), "uninstrument")
        self.joining.leave(self.desk)
        self.desk.stop()
        self.desk.report_balance()  # with what was metered, and billed to other processes' calls, until it had stopped
        self._metrics.leave()

    @property
    def meter_provider(self) -> MeterProvider | None:
        """What the user gave; ``None`` for the global one."""
        return self._meter_provider

    @property
    def gates(self) -> Sequence[Gate]:
        """All that hold spans."""
        return self.joining.gates

    @cached_property
    def tracer(self) -> trace.Tracer:
        """Makes spans of our own, with the provider that is there when they start."""
        return FollowingTracerProvider(self.joining).get_tracer("otel_llm_energy")

    def open_here(self, claim: Claim) -> None:
        """Work of this process begins."""
        self.before_call()
        self.desk.open_here(claim)

    def close_here(self, claim: Claim) -> None:
        """It has ended."""
        self.desk.close(claim)

    def ended_here(self, whole: Whole) -> None:
        """Work in several parts has ended of which all claims were settled before."""
        self._metrics.ended(whole)

    def before_call(self) -> None:
        """Start what a forked child has not started yet, and see that no call's energy is lost at the exit.

        Registered so late, the hook runs before the meter provider's own, which exports for the last time.
        """
        if self._to_start_afresh:
            self._start_in_child()
        if not self.is_ready:
            self.is_ready = True
            atexit.register(self._at_exit)
            at_exit_of_worker(while_alive(weakref.WeakMethod(self._at_exit_of_worker)))

    def _at_exit(self) -> None:
        self.desk.settle_now(min(self._period_seconds(), _LONGEST_EXIT_SECONDS), "shutdown")
        for station in self.desk.stations:
            station.keep_idle()
            station.resign()
        self.desk.report_balance()  # the last of it: the metrics go out for the last time next

    def _at_exit_of_worker(self) -> None:
        """Hooks of providers that were made before the fork do not run there: what they hold is exported now, or never.

        Both at once: each waits some seconds for a collector that is not there.
        """
        if self._stopped:
            return
        self._at_exit()
        metrics_flush = threading.Thread(target=self._flush_metrics, args=(_EXIT_MILLIS,), daemon=True)
        metrics_flush.start()
        for gate in self.joining.gates:
            _flushed("The spans", partial(gate.force_flush, _EXIT_MILLIS))
        metrics_flush.join(_LONGEST_EXIT_SECONDS)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Settle and hand on what is held, spans and metrics, within the timeout; False if it was exceeded."""
        deadline_ns = monotonic_ns() + timeout_millis * 1_000_000

        def remaining_millis() -> int:
            return max((deadline_ns - monotonic_ns()) // 1_000_000, 1)

        settle = partial(self.desk.settle_now, min(timeout_millis / 1000, self._period_seconds()), "flush")
        flushed = _flushed("The calls", settle)
        for gate in self.joining.gates:
            flushed &= _flushed("The spans", partial(gate.force_flush, remaining_millis()))
        return flushed & self._flush_metrics(remaining_millis())

    def _flush_metrics(self, timeout_millis: int) -> bool:
        provider = self._metrics.provider
        flush = getattr(provider, "force_flush", None)
        return flush is None or is_shut_down(provider) or _flushed("The metrics", partial(flush, timeout_millis))

    def measure_idle(self, seconds: float) -> dict[str, float]:
        """See `otel_llm_energy.measure_idle`."""
        self._start_in_child()
        local, *named = self.desk.stations
        try:
            return measure_idle(local, self.desk.wake, seconds)
        except MeterError as error:
            if not named:
                raise
            raise MeterError(error.reason, f"{error} {_ONLY_HERE}") from error

    def listen(self, host: str, port: int, listener: ReadingListener) -> None:
        """Have the readings told by which calls to this server are billed; see `Station.reading_listeners`."""
        found = self._directory.find(host, port, "")
        if isinstance(found, Metered):
            found.station.reading_listeners.append(listener)

    def status(self) -> Status:
        """What is being measured, and what not and why."""
        local, *named = self.desk.stations
        discovered = all(station.discovered for station in self.desk.stations)  # before what was found is looked at
        elsewhere = [each for station in named for each in channel_statuses(station, named=True)]
        left_out = tuple(one for station in self.desk.stations for one in station.left_out)
        servers = {key: server for station in self.desk.stations for key, server in station.servers().items()}
        servers = {**self._directory.elsewhere(), **servers}
        board = None if local.seat is None else local.seat.status
        channels = (*channel_statuses(local), *elsewhere)
        return Status(channels, left_out, servers, self.joining.state, board, discovered)

    # Tracing

    def _make_gate(self, downstream: Downstream) -> Gate:
        """A gate on this runtime's desk."""
        gate = Gate(
            downstream,
            self.desk,
            style=self._style(),
            max_hold_seconds=self._max_hold_seconds(),
            meter_period_seconds=self._period_seconds(),
        )
        gate.watch = self.watch
        return gate

    def _equip(self, gate: Gate) -> None:
        """One that was wired by hand."""
        gate.desk, gate.watch = self.desk, self.watch
        if not gate.keeps_style:
            gate.style = self._style()

    def _style(self) -> Style:
        return Style(detail=self._options.detail, grid_grams_per_kwh=self._options.grid_intensity)

    def _look_again(self) -> float:
        """Tracing may be set up later, or again (`logfire.configure()` twice)."""
        self.joining.join()
        self.joining.leave_the_left()
        self._follow_meters()
        return _LOOK_AGAIN_SECONDS

    def _look_again_soon(self) -> None:
        self._joiner.wake()

    def _listeners(self) -> Sequence[ClaimListener]:
        return [self._metrics, *self.joining.gates, self.unobserved]

    # Metering

    def _period_seconds(self) -> float:
        """How long it may take until there is a reading of this instant."""
        return max(self.desk.period_seconds, _LEAST_PERIOD_SECONDS)

    def _max_hold_seconds(self, period_seconds: float = 0.0) -> float:
        chosen = self._options.max_hold
        return max(DEFAULT_MAX_HOLD_SECONDS, 2 * period_seconds) if chosen is None else chosen

    def _follow_meters(self) -> None:
        """How often there are readings is known only once the meters were found: a Prometheus may have one a minute."""
        period_seconds = self._period_seconds()
        self.desk.max_hold_seconds = self._max_hold_seconds(period_seconds)
        for gate in self.joining.gates:
            gate.meter_period_seconds = period_seconds
            if not gate.keeps_max_hold:
                gate.max_hold_seconds = self.desk.max_hold_seconds

    def _settle_soon(self) -> None:
        self.desk.wake()

    def _records(self) -> bool:
        """What is metered goes somewhere: into metrics, or to who listens to the readings, as a study does."""
        listened_to = any(station.reading_listeners for station in self.desk.stations)
        return listened_to or records(self._metrics.provider)

    def _lag_seconds(self) -> Mapping[MeterPlace, float]:
        """Of each meter, the age of the counter that was read least recently: one of them may be lost."""
        ages: dict[MeterPlace, float] = {}
        for each in [each for station in self.desk.stations for each in channel_statuses(station)]:
            if each.age_seconds is not None:
                place = MeterPlace(each.channel.meter, each.channel.host)
                ages[place] = max(each.age_seconds, ages.get(place, 0.0))
        return ages

    def _start_afresh(self) -> None:
        """In a forked child: threads are gone, meters and books are the parent's."""
        if self._stopped:
            return
        atexit.unregister(self._at_exit)
        self.is_ready = False
        self.desk.forget_in_child()
        self._joiner.forget_in_child()
        self._start_lock = threading.RLock()
        self._build()
        self.joining.start_afresh(self.desk)
        self._to_start_afresh, self._is_starting = True, False
        start_in_child(self._start_in_child)

    def _start_in_child(self) -> None:
        """The other half, at the first call at the latest, which waits for it."""
        with self._start_lock:
            if self._stopped or self._is_starting or not self._to_start_afresh:
                return
            self._is_starting = True  # a collection meanwhile may have this very thread come here again
            try:
                self.desk.start()
                self._joiner.start()
            except RuntimeError:
                _logger.warning("LLM calls of this forked process are not measured: no thread can be started.")
            finally:
                self._to_start_afresh = self._is_starting = False


def _flushed(what: str, flush: Callable[[], object]) -> bool:
    """Whether ``flush`` says so, or nothing; what it raises, as somebody's exporter may, is not the app's affair."""
    try:
        return flush() is not False
    except Exception:
        _logger.warning("%s could not be flushed.", what, exc_info=True)
        return False

"""All that runs behind `instrument()`: stations, desk, metrics and the joint with the tracer provider."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import weakref
from collections.abc import Mapping, Sequence
from functools import cached_property

from opentelemetry import trace
from opentelemetry.metrics import MeterProvider

from otel_llm_energy.meters.base import MeterError
from otel_llm_energy.servers.announced import announced
from otel_llm_energy.settings import Settings
from otel_llm_energy.stations import directory_of
from otel_llm_energy.status import Status, channel_statuses
from otel_llm_energy.syscalls import monotonic_ns
from otel_llm_energy.tracing.arrival import Arrival
from otel_llm_energy.tracing.claims import Claim, ClaimListener
from otel_llm_energy.tracing.desk import SettlingDesk
from otel_llm_energy.tracing.directory import Metered
from otel_llm_energy.tracing.enrich import Style
from otel_llm_energy.tracing.foreign import UnobservedCalls
from otel_llm_energy.tracing.forks import after_fork_in_child, at_exit_of_worker, while_alive
from otel_llm_energy.tracing.forward import Downstream
from otel_llm_energy.tracing.gate import DEFAULT_MAX_HOLD_SECONDS, Gate, SpanWatch
from otel_llm_energy.tracing.health import Health
from otel_llm_energy.tracing.idle_measurement import measure_idle
from otel_llm_energy.tracing.join import CannotJoinError, Joint, members_of, pipeline_of
from otel_llm_energy.tracing.late import LateTracerProvider
from otel_llm_energy.tracing.metrics import EnergyMetrics, MeterPlace, records
from otel_llm_energy.tracing.own_provider import set_up_tracing
from otel_llm_energy.tracing.pollers import Poller
from otel_llm_energy.tracing.processor import NoDesk, wired_processors
from otel_llm_energy.tracing.reader import ReadingListener

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
    """Measures and settles from `start` to `stop`, and stands before the tracer provider's processors.

    Args:
        options: see `otel_llm_energy.settings.OPTIONS`.
        tracer_provider: ``None`` for the global one, whichever that is by then.
        meter_provider: ``None`` for the global one.
    """

    def __init__(
        self,
        options: Settings,
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
    ) -> None:
        self._options = options
        self._tracer_provider = tracer_provider
        self._meter_provider = meter_provider
        self._joint: Joint | None = None
        self._left: list[Joint] = []
        self._arrival: Arrival | None = None
        self._join_lock = threading.RLock()  # setting up tracing of our own arrives while it is held
        self._hooked_exit = False
        self._tracing = "waiting for a tracer provider"
        self.gates: tuple[Gate, ...] = ()  # all that hold spans
        self._past_health = Health()  # of those that were left: what is counted never goes down
        self.watch: SpanWatch | None = None
        self._stopped = False
        self._build()
        after_fork_in_child(weakref.WeakMethod(self._start_afresh))

    def _build(self) -> None:
        self._metrics = EnergyMetrics(self._meter_provider, health=self._health, lag_seconds=self._lag_seconds)
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
        if self._tracer_provider is None and isinstance(self.provider(), trace.ProxyTracerProvider):
            self._arrival = Arrival(lambda: self._join(self.provider()))
        self._join(self.provider())
        self.desk.start()
        self._joiner.start()

    def stop(self) -> None:
        """Hand on what is held, stand aside, stop reading. A repeat does nothing."""
        if self._stopped:
            return
        self._stopped = True
        atexit.unregister(self._at_exit)
        self._joiner.stop()
        if self._arrival is not None:
            self._arrival.leave()
        self.desk.settle_now(min(self._period_seconds(), _LONGEST_EXIT_SECONDS), "uninstrument")
        with self._join_lock:
            if self._joint is not None:
                self._left.append(self._joint)
        self._leave_the_left()
        for processor in wired_processors():
            if processor.gate.desk is self.desk:
                processor.gate.force_flush()
                processor.gate.desk, processor.gate.watch = NoDesk(), None
        self.desk.report_balance()
        self.desk.stop()
        self._metrics.leave()

    @property
    def meter_provider(self) -> MeterProvider | None:
        """What the user gave; ``None`` for the global one."""
        return self._meter_provider

    def provider(self) -> trace.TracerProvider:
        """The tracer provider that is right now; the API's proxy if there is none."""
        return self._tracer_provider or trace.get_tracer_provider()

    def provider_for_call(self) -> trace.TracerProvider:
        """The provider for a call that starts now: if there is none yet, one is made. Joined."""
        provider = self.provider()
        if isinstance(provider, trace.ProxyTracerProvider):
            with self._join_lock:
                provider = self.provider()
                if isinstance(provider, trace.ProxyTracerProvider):
                    provider = set_up_tracing()
        if self._joint is None:
            self._join(provider)
        return provider

    def check_tracer(self, tracer: trace.Tracer) -> None:
        """Tracing may have been set up anew since the last call."""
        if self._joint is not None and not self._joint.stands_before(tracer):
            self._join(self.provider())

    @cached_property
    def tracer(self) -> trace.Tracer:
        """Makes spans of our own, with the provider that is there when they start."""
        return LateTracerProvider(self.provider_for_call, self.check_tracer).get_tracer("otel_llm_energy")

    def open_here(self, claim: Claim) -> None:
        """Work of this process begins."""
        self.hook_exit()
        self.desk.open_here(claim)

    def close_here(self, claim: Claim) -> None:
        """It has ended."""
        self.desk.close(claim)

    def hook_exit(self) -> None:
        """At the first call, see that no call's energy is lost at the interpreter's exit.

        Registered so late, it runs before the meter provider's own hook, which exports for the last time.
        """
        if not self._hooked_exit:
            self._hooked_exit = True
            atexit.register(self._at_exit)
            at_exit_of_worker(while_alive(weakref.WeakMethod(self._at_exit_of_worker)))

    def _at_exit(self) -> None:
        self.desk.settle_now(min(self._period_seconds(), _LONGEST_EXIT_SECONDS), "shutdown")
        for station in self.desk.stations:
            station.keep_idle()

    def _at_exit_of_worker(self) -> None:
        """The providers have no hook there: what their batches and counters hold is exported now, or never.

        Both at once: each waits some seconds for a collector that is not there.
        """
        if self._stopped:
            return
        self._at_exit()
        metrics_flush = threading.Thread(target=self._flush_metrics, args=(_EXIT_MILLIS,), daemon=True)
        metrics_flush.start()
        for gate in self.gates:
            gate.force_flush(_EXIT_MILLIS)
        metrics_flush.join(_LONGEST_EXIT_SECONDS)

    def make_gate(self, downstream: Downstream) -> Gate:
        """A gate on this runtime's desk."""
        gate = Gate(
            downstream,
            self.desk,
            style=Style(detail=self._options.detail, grid_grams_per_kwh=self._options.grid_intensity),
            max_hold_seconds=self._max_hold_seconds(),
            meter_period_seconds=self._period_seconds(),
        )
        gate.watch = self.watch
        self.gates = (*self.gates, gate)
        return gate

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Settle and hand on what is held, spans and metrics, within the timeout; False if it was exceeded."""
        deadline_ns = monotonic_ns() + timeout_millis * 1_000_000

        def remaining_millis() -> int:
            return max((deadline_ns - monotonic_ns()) // 1_000_000, 1)

        self.desk.settle_now(min(timeout_millis / 1000, self._period_seconds()), "flush")
        flushed = True
        for gate in self.gates:
            flushed &= gate.force_flush(remaining_millis())
        return flushed & self._flush_metrics(remaining_millis())

    def _flush_metrics(self, timeout_millis: int) -> bool:
        flush = getattr(self._metrics.provider, "force_flush", None)
        try:
            return flush is None or flush(timeout_millis) is not False
        except Exception:
            _logger.warning("The metrics could not be flushed.", exc_info=True)
            return False

    def measure_idle(self, seconds: float) -> dict[str, float]:
        """See `otel_llm_energy.measure_idle`."""
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
        elsewhere = [each for station in named for each in channel_statuses(station, named=True)]
        left_out = tuple(one for station in self.desk.stations for one in station.left_out)
        servers = {key: server for station in self.desk.stations for key, server in station.servers().items()}
        board = None if local.seat is None else local.seat.status
        return Status((*channel_statuses(local), *elsewhere), left_out, servers, self._tracing, board)

    # Tracing

    def _join(self, provider: trace.TracerProvider) -> None:
        with self._join_lock:
            if self._joint is not None and self._joint.joins(provider):
                return
            if self._adopt(provider):
                self._tracing = "wired by hand"
                return
            if self._joint is not None:
                self._left.append(self._joint)
                self._joint = None
                self._joiner.wake()
            try:
                self._joint = Joint(provider, self.make_gate)
                self._tracing = "joined"
            except CannotJoinError as error:
                if self._tracing != str(error):
                    _logger.debug("%s", error)
                self._tracing = str(error)
            if self._joint is not None and self._arrival is not None:
                self._arrival.leave()
                self._arrival = None

    def _adopt(self, provider: trace.TracerProvider) -> bool:
        """Measure for processors that were wired by hand, too; whether one of them is the provider's own."""
        processors = wired_processors()
        for processor in processors:
            gate = processor.gate
            if isinstance(gate.desk, NoDesk) and gate not in self.gates:
                gate.desk, gate.watch = self.desk, self.watch
                self.gates = (*self.gates, gate)
        try:
            members = members_of(pipeline_of(provider)) if processors else ()
        except CannotJoinError:
            return False
        return any(processor in members for processor in processors)

    def _look_again(self) -> float:
        """Tracing may be set up later, or again (`logfire.configure()` twice)."""
        self._join(self.provider())
        self._leave_the_left()
        self._follow_meters()
        return _LOOK_AGAIN_SECONDS

    def _leave_the_left(self) -> None:
        """Handing on what a gate holds may take long, so not in the app's thread."""
        while self._left:
            joint = self._left.pop()
            joint.leave()
            with self._join_lock:
                self.gates = tuple(gate for gate in self.gates if gate is not joint.gate)
                self._past_health.add(joint.gate.health)

    def _listeners(self) -> Sequence[ClaimListener]:
        return [self._metrics, *self.gates]

    def _health(self) -> Sequence[Health]:
        return [self._past_health, *(gate.health for gate in self.gates)]

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
        for gate in self.gates:
            gate.meter_period_seconds = period_seconds
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
        self._join_lock = threading.RLock()
        atexit.unregister(self._at_exit)
        self._hooked_exit = False
        self._past_health.held = 0
        for station in self.desk.stations:
            if station.seat is not None:
                station.seat.forget_in_child()
        self._build()
        for gate in self.gates:
            gate.desk = self.desk
        self.desk.start()
        self._joiner.start()

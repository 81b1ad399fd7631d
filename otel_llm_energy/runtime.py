"""All that runs behind `instrument()`: stations, desk, metrics and the joint with the tracer provider."""

from __future__ import annotations

import atexit
import hashlib
import json
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeGuard

from opentelemetry import metrics, trace
from opentelemetry.metrics import MeterProvider

from otel_llm_energy.host.folder import default_folder
from otel_llm_energy.host.wire import channel_from_json
from otel_llm_energy.idle_memory import IdleMemory, default_path, machine_facts
from otel_llm_energy.ledger.idle import Origin
from otel_llm_energy.ledger.ledger import Balance, Ledger
from otel_llm_energy.meters.base import Meter, MeterError, ProcessMeter
from otel_llm_energy.meters.discovery import Discovery, LeftOut, OpenMeter, discover
from otel_llm_energy.meters.urls import meter_at
from otel_llm_energy.quantities import NS_PER_SECOND, Channel
from otel_llm_energy.servers.activity import CpuActivity
from otel_llm_energy.servers.announced import announced
from otel_llm_energy.servers.figures import FigureActivity
from otel_llm_energy.servers.resolve import resolve, resolve_named
from otel_llm_energy.servers.server import Server
from otel_llm_energy.settings import OPTIONS, Settings
from otel_llm_energy.tracing.arrival import Arrival
from otel_llm_energy.tracing.books import Books
from otel_llm_energy.tracing.claims import Claim, ClaimListener
from otel_llm_energy.tracing.desk import SettlingDesk
from otel_llm_energy.tracing.directory import Address, Directory, Metered
from otel_llm_energy.tracing.enrich import Style
from otel_llm_energy.tracing.foreign import UnobservedCalls
from otel_llm_energy.tracing.forks import after_fork_in_child
from otel_llm_energy.tracing.forward import Downstream
from otel_llm_energy.tracing.gate import Gate, Health, SpanWatch
from otel_llm_energy.tracing.idle_measurement import measure_idle
from otel_llm_energy.tracing.join import CannotJoinError, Joint, members_of, pipeline_of
from otel_llm_energy.tracing.late import LateTracerProvider
from otel_llm_energy.tracing.metrics import EnergyMetrics, MeterPlace
from otel_llm_energy.tracing.own_provider import set_up_tracing
from otel_llm_energy.tracing.pollers import Poller
from otel_llm_energy.tracing.processor import NoDesk, wired_processors
from otel_llm_energy.tracing.seat import Metering, Rules, Seat, SeatStatus
from otel_llm_energy.tracing.station import THIS_PROCESS, Activity, ReadingListener, Station
from otel_llm_energy.version import __version__

LAST_READING_SECONDS = 12.0  # so long a command that has made its calls waits for the reading that covers the last
_LOOK_AGAIN_SECONDS = 1.0
_LEAST_PERIOD_SECONDS = 5.0  # two of Scaphandre's: another client's request may have frozen the first reading
_MAX_HOLD_SECONDS = 30.0
_LONGEST_EXIT_SECONDS = 30.0  # as long as the SDK's own batch processor may take
_ONLY_HERE = (
    "Only the idle power of this machine is measured on purpose: that of the meters in servers= is learned while no"
    " call is at work, or given by idle_watts."
)

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ChannelStatus:
    """One counter that is read.

    Attributes:
        channel: the counter.
        balance: where its energy went.
        idle_watts: idle power; ``None`` while it is being learned.
        idle_origin: where that comes from, e.g. ``"given"``, ``"learned"`` or ``"cached"``: learned by an earlier run.
        idle_age_seconds: age of the figure that is kept for the next run; ``None`` if none is.
        age_seconds: of the newest reading; ``None`` before the first.
        problem: why its meter cannot be read just now.
        where: the meter's address, where this process reads it of a host that the user named; else empty. Whose counter
            it is in any case says ``channel.host``.
        period_seconds: how old the newest reading may become while no call is open; ``None`` where another process
            reads the counter, whose balance and time are its own.
    """

    channel: Channel
    balance: Balance
    idle_watts: float | None
    idle_origin: Origin
    idle_age_seconds: float | None
    age_seconds: float | None
    problem: str | None
    where: str = ""
    period_seconds: float | None = None

    @property
    def idle(self) -> str:
        """Idle power in words."""
        if self.idle_watts is None:
            return "idle being learned"
        words = f"idle {self.idle_watts:.3g} W"
        if self.idle_origin == "cached" and self.idle_age_seconds is not None:
            return f"{words} (cached {_ago(self.idle_age_seconds)})"
        return f"{words} (under load, in doubt)" if self.idle_origin == "under-load" else words


@dataclass(frozen=True, slots=True)
class Status:
    """What is being measured.

    Attributes:
        channels: the counters that are read.
        left_out: meters that are not read, and why.
        servers: who answers at which address.
        tracing: ``"joined"``, or why no tracer provider is joined.
        board: whether this process reads this machine's meters for others, is metered by another, or works alone and
            why; ``None`` if it shares nothing.
    """

    channels: tuple[ChannelStatus, ...]
    left_out: tuple[LeftOut, ...]
    servers: Mapping[str, Server]
    tracing: str
    board: SeatStatus | None = None

    def __str__(self) -> str:
        lines = [f"tracing: {self.tracing}"]
        if self.board is not None:
            lines.append(f"board: this process {self.board}")
        for each in self.channels:
            age = "no reading yet" if each.age_seconds is None else f"read {each.age_seconds:.1f} s ago"
            kind = "estimate" if each.channel.estimated else "meter"
            problem = f", {each.problem}" if each.problem else ""
            meter = each.where or " of ".join(filter(None, (each.channel.meter, each.channel.host)))
            lines.append(f"{kind} {meter}: {each.channel.id}, {each.idle}, {age}{problem}")
        for one in self.left_out:
            lines.append(f"left out {one.name}: {one.reason}. {one.message}")
            lines.extend([f"  mend it: {one.mend}"] if one.mend else [])
        for key, server in self.servers.items():
            address = key.removesuffix(":0")  # a Unix socket has no port
            lines.append(f"server {address}: {server.name} {server.message}".rstrip())
        return "\n".join(lines)


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
        elsewhere = self._meters_elsewhere()
        local = self._local_station(taken=frozenset(elsewhere))
        directory = self._directory = Directory(local, self._named_stations(local, elsewhere))
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

    def _at_exit(self) -> None:
        self.desk.settle_now(min(self._period_seconds(), _LONGEST_EXIT_SECONDS), "shutdown")
        for station in self.desk.stations:
            station.keep_idle()

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
        deadline_ns = time.monotonic_ns() + timeout_millis * 1_000_000

        def remaining_millis() -> int:
            return max((deadline_ns - time.monotonic_ns()) // 1_000_000, 1)

        self.desk.settle_now(min(timeout_millis / 1000, self._period_seconds()), "flush")
        flushed = True
        for gate in self.gates:
            flushed &= gate.force_flush(remaining_millis())
        return flushed & self._flush_metrics(remaining_millis())

    def _flush_metrics(self, timeout_millis: int) -> bool:
        flush = getattr(self._meter_provider or metrics.get_meter_provider(), "force_flush", None)
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
        channels = [*_channels(local), *(each for station in named for each in _channels(station, named=True))]
        left_out = tuple(one for station in self.desk.stations for one in station.left_out)
        servers = {key: server for station in self.desk.stations for key, server in station.servers().items()}
        seat = self.desk.stations[0].seat
        return Status(tuple(channels), left_out, servers, self._tracing, None if seat is None else seat.status)

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
                _add(self._past_health, joint.gate.health)

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
        return max(_MAX_HOLD_SECONDS, 2 * period_seconds) if chosen is None else chosen

    def _follow_meters(self) -> None:
        """How often there are readings is known only once the meters were found: a Prometheus may have one a minute."""
        period_seconds = self._period_seconds()
        self.desk.max_hold_seconds = self._max_hold_seconds(period_seconds)
        for gate in self.gates:
            gate.meter_period_seconds = period_seconds
            gate.max_hold_seconds = self.desk.max_hold_seconds

    def _local_station(self, taken: Collection[Hashable]) -> Station:
        options = self._options
        names = {Address.parse(address): spec for address, spec in options.servers.items() if _names_process(spec)}
        find, find_edges = partial(_discover, options, taken=taken), partial(_discover_edges, options, taken=taken)
        return self._station("local", find, CpuActivity(), partial(_resolve, names), find_edges)

    def _meters_elsewhere(self) -> dict[Hashable, dict[Address, Meter]]:
        """The meters that the user names for servers, by what they read and by the servers' addresses."""
        hosts: dict[Hashable, dict[Address, Meter]] = {}
        for text, spec in self._options.servers.items():
            if not _names_process(spec):
                meter = meter_at(spec) if isinstance(spec, str) else spec
                source = meter.source if isinstance(meter, ProcessMeter) else id(meter)
                hosts.setdefault(source, {})[Address.parse(text)] = meter
        return hosts

    def _named_stations(
        self, local: Station, elsewhere: Mapping[Hashable, Mapping[Address, Meter]]
    ) -> dict[Address, Station]:
        """By address: this machine's for a process that the user names, else one for each meter elsewhere."""
        stations = {Address.parse(text): local for text in self._options.servers}  # the first that matches is taken
        for source, meters in elsewhere.items():
            board = _hashed(repr(next(iter(meters.values()))) if isinstance(source, int) else repr(source))
            stations.update(dict.fromkeys(meters, self._station_elsewhere(board, meters)))
        return stations

    def _station_elsewhere(self, board: str, meters: Mapping[Address, Meter]) -> Station:
        """The station of a host whose servers have these addresses, and meters that read one and the same source."""
        processes = {address: getattr(meter, "process", None) for address, meter in meters.items()}
        # One meter is read for all of them: one that takes in the figures of processes, if any is wanted.
        meter = next((each for each in meters.values() if getattr(each, "process", None)), next(iter(meters.values())))
        activity: FigureActivity | NoActivity = NoActivity()
        if isinstance(meter, ProcessMeter) and meter.process is not None:
            activity = FigureActivity(meter.host_powers, meter.cpus)
        host = getattr(meter, "host", "") or str(next(iter(meters)))
        find = partial(_discover_at, host, meter, self._options.idle_watts)
        station = self._station(board, find, activity, partial(_elsewhere, processes))
        for address in meters:
            if address.host and address.port is not None:
                station.expect(address.host, address.port)
        return station

    def _station(
        self,
        board: str,
        find: Callable[[], Discovery],
        activity: Activity,
        who: Callable[[str, int], Server],
        find_edges: Callable[[], Discovery] = lambda: Discovery((), ()),
    ) -> Station:
        options = self._options
        max_wait_ns = int(self._max_hold_seconds() * NS_PER_SECOND)

        def ledger(start_ns: int) -> Ledger:
            return Ledger(start_ns, idle=options.idle, share=options.share, max_wait_ns=max_wait_ns)

        def seat(station: Metering) -> Seat:
            return Seat(_rules(options, board), station, ledger, self._wake)

        return Station(
            Books(ledger(time.monotonic_ns())),
            find,
            activity,
            who,
            self._wake,
            idle_memory=_idle_memory(options),
            edge_meters=find_edges,
            seat=None if options.board == "off" else seat,
        )

    def _wake(self) -> None:
        self.desk.wake()

    def _lag_seconds(self) -> Mapping[MeterPlace, float]:
        """Of each meter, the age of the counter that was read least recently: one of them may be lost."""
        ages: dict[MeterPlace, float] = {}
        for each in [each for station in self.desk.stations for each in _channels(station)]:
            if each.age_seconds is not None:
                place = MeterPlace(each.channel.meter, each.channel.host)
                ages[place] = max(each.age_seconds, ages.get(place, 0.0))
        return ages

    def _start_afresh(self) -> None:
        """In a forked child: threads are gone, meters and books are the parent's."""
        if self._stopped:
            return
        self._join_lock = threading.RLock()
        self._past_health = Health()
        for station in self.desk.stations:
            if station.seat is not None:
                station.seat.forget_in_child()
        self._build()
        for gate in self.gates:
            gate.desk = self.desk
        self.desk.start()
        self._joiner.start()


class NoActivity:
    """Where the processes of a server cannot be seen from here: its part of the activity is unknown."""

    def watch(self, server: Server) -> None: ...

    def forget(self, server_id: str) -> None: ...

    def sample(self) -> None:
        return None

    def close(self) -> None: ...


def _idle_memory(options: Settings) -> IdleMemory:
    if options.idle_cache == "off":
        return IdleMemory(None, {})
    facts = machine_facts()
    return IdleMemory(default_path(facts) if options.idle_cache == "auto" else Path(options.idle_cache), facts)


def _rules(options: Settings, board: str) -> Rules:
    """What processes must agree on to share: all options that decide how energy is shared, and the network they see."""
    folder = default_folder() if options.board == "auto" else Path(options.board)
    decisive = {option.name: repr(getattr(options, option.name)) for option in OPTIONS if option.common}
    settings = _hashed(json.dumps([decisive, _network_namespace()]))
    return Rules(folder, board, __version__, settings, calls_servers=bool(options.clients))


def _hashed(text: str) -> str:
    """Sixteen hexadecimal digits: an address may hold a password."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _network_namespace() -> int:
    """Names the network in which ``localhost`` is looked up; 0 if the kernel does not say."""
    try:
        return Path("/proc/self/ns/net").stat().st_ino
    except OSError:
        return 0


def _discover_edges(options: Settings, taken: Collection[Hashable]) -> Discovery:
    """Open only those of the wanted meters that are read at calls' edges: of no other may there be two readers."""
    at_edges = [
        "rapl" if isinstance(one, str) else one
        for one in options.meters
        if one in ("auto", "rapl") or (not isinstance(one, str) and one.pace.at_edges)
    ]
    return _discover(replace(options, meters=at_edges), taken) if at_edges else Discovery((), ())


def _discover(options: Settings, taken: Collection[Hashable]) -> Discovery:
    found = discover(
        options.meters,
        scaphandre_url=options.scaphandre_url,
        powercap_root=options.powercap_root,
        taken=taken,
    )
    meters = tuple(OpenMeter(each.meter, _with_idle(each.channels, options.idle_watts)) for each in found.meters)
    channels = {channel.id for each in meters for channel in each.channels}
    strange = options.idle_watts.keys() - channels - {""}
    # A name that is none of this machine's may be one of another that is read too.
    if meters and strange and all(_names_process(spec) for spec in options.servers.values()):
        names, read = ", ".join(sorted(strange)), ", ".join(sorted(channels))
        _logger.warning("idle_watts: no counter of the name %s is read. There are %s.", names, read)
    return replace(found, meters=meters)


def _discover_at(host: str, meter: Meter, idle_watts: Mapping[str, float]) -> Discovery:
    """Open the meter of another host, so that its counters are told from those of the same names elsewhere."""
    found = discover(meter)
    meters = tuple(
        OpenMeter(each.meter, tuple(replace(one, host=host) for one in _with_idle(each.channels, idle_watts)))
        for each in found.meters
    )
    left_out = (replace(one, name=f"{one.name} of {host}") for one in found.left_out)
    return replace(found, meters=meters, left_out=tuple(left_out))


def _with_idle(channels: Sequence[Channel], idle_watts: Mapping[str, float]) -> tuple[Channel, ...]:
    """Put in the idle power that the user knows: of one channel, or of each CPU package (or the host)."""

    def known(channel: Channel) -> float | None:
        if channel.id in idle_watts:
            return idle_watts[channel.id]
        whole = idle_watts.get("") if channel.component in ("cpu", "host") else None
        return channel.idle_watts if whole is None else whole

    return tuple(replace(channel, idle_watts=known(channel)) for channel in channels)


def _names_process(spec: str | Meter) -> TypeGuard[str]:
    """``"pid:4711"`` or ``"name:ollama"``, not a meter and not the address of one."""
    return isinstance(spec, str) and spec.startswith(("pid:", "name:"))


def _resolve(names: Mapping[Address, str], host: str, port: int) -> Server:
    if host == THIS_PROCESS:
        return resolve_named(f"pid:{port}")
    for address, spec in names.items():
        if address.matches(host, port):
            return resolve_named(spec)
    return resolve(host, port)


def _elsewhere(processes: Mapping[Address, str | None], host: str, port: int) -> Server:
    address = f"{host}:{port}"
    process = next((name for known, name in processes.items() if known.matches(host, port)), None)
    if process is None:
        message = (
            f"{address}: all that its host draws above idle is billed to its calls. If anything else runs there, name"
            " the server's process, as ScaphandreMeter(url=..., process='ollama') or at the end of the URL: '#ollama'."
        )
        return Server(f"remote:{address}", address, "remote", reason="remote", message=message)
    return Server(f"process:{process}", f"{process} on {host}", "remote", process=process)


def _channels(station: Station, *, named: bool = False) -> Sequence[ChannelStatus]:
    if station.holder_state is not None:
        return [_channel_of_holder(each) for each in station.holder_state.channels]
    baselines = station.books.baselines()
    readers = {channel.id: reader for reader in station.meters for channel in reader.open_meter.channels}
    statuses = []
    for name, (channel, balance) in station.books.balance().items():
        reader = readers.get(name)
        age_seconds = reader.age_seconds(name) if reader else None
        problem = str(reader.problem) if reader and reader.problem else None
        idle = baselines.get(name)
        if idle is None:
            continue
        kept_seconds = station.idle_memory.age_seconds(name)
        where = repr(reader.open_meter.meter) if reader and named else ""
        period_seconds = reader.open_meter.meter.pace.longest_idle_seconds if reader else None
        statuses.append(
            ChannelStatus(
                channel,
                balance,
                idle.watts,
                idle.origin,
                kept_seconds,
                age_seconds,
                problem,
                where,
                period_seconds,
            )
        )
    return statuses


def _channel_of_holder(each: Mapping[str, Any]) -> ChannelStatus:
    """As the process says that reads it; where its energy goes is known there alone."""
    return ChannelStatus(
        channel_from_json(each["channel"]),
        Balance(0, 0, 0, {}),
        each["idle_watts"],
        each["idle_origin"],
        None,
        each["age_seconds"],
        each["problem"],
    )


def _add(total: Health, more: Health) -> None:
    total.held += more.held
    total.forwarded += more.forwarded
    total.passed += more.passed
    total.dropped += more.dropped
    total.degraded.update(more.degraded)


def _ago(seconds: float) -> str:
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{seconds / unit:.0f} {name} ago"
    return f"{seconds:.0f} s ago"

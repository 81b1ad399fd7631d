"""The metering of one machine: its meters, the activity of its servers, and the threads that read them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace

from otel_llm_energy.host.wire import ChannelState, State, channel_to_json
from otel_llm_energy.idle_memory import IdleMemory, learning_channels
from otel_llm_energy.ledger.idle import ENOUGH_SECONDS, Baseline
from otel_llm_energy.meters.base import MeterError
from otel_llm_energy.meters.discovery import Discovery, LeftOut, OpenMeter
from otel_llm_energy.quantities import NS_PER_SECOND, Channel
from otel_llm_energy.servers.own_process import this_process
from otel_llm_energy.servers.server import Server
from otel_llm_energy.tracing.books import Books
from otel_llm_energy.tracing.claims import Claim
from otel_llm_energy.tracing.clocks import SleepWatch
from otel_llm_energy.tracing.pollers import Poller
from otel_llm_energy.tracing.reader import MeterReader, ReadingListener
from otel_llm_energy.tracing.seat import Seat
from otel_llm_energy.tracing.server_watch import Activity, ServerWatch
from otel_llm_energy.tracing.sharing import Metering
from otel_llm_energy.troubles import Troubles

_DISCOVER_AGAIN_SECONDS = 10.0
_KEEP_IDLE_SECONDS = 60.0
_LOOK_UP_AGAIN_SECONDS = 60.0  # it is woken where there is anything new

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MachineAccess:
    """How one machine's meters and servers are reached.

    Attributes:
        discover: opens the meters; called again while there is none.
        activity: samples the machine's servers.
        resolve: finds the server at an address.
        edge_meters: opens those of the meters that are read at calls' edges, where another process reads them all.
    """

    discover: Callable[[], Discovery]
    activity: Activity
    resolve: Callable[[str, int], Server]
    edge_meters: Callable[[], Discovery] = lambda: Discovery((), ())


class Station:
    """Reads one machine's meters into its books, from `start` to `stop`.

    Args:
        books: of the machine.
        access: to the machine.
        settle: have the books settled soon; for any thread.
        idle_memory: keeps idle power for the next run; ``None`` to keep nothing.
        seat: makes this process's part in sharing the meters with others of this host; ``None`` to share nothing.
        clock_ns: the monotonic clock.

    Attributes:
        reading_listeners: told of readings in the thread that took them; of none where another process reads the
            meters and this one only some of their counters.
    """

    def __init__(
        self,
        books: Books,
        access: MachineAccess,
        settle: Callable[[], None],
        *,
        idle_memory: IdleMemory | None = None,
        seat: Callable[[Metering], Seat] | None = None,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.books = books
        self.idle_memory = idle_memory or IdleMemory(None, {})
        self.left_out: Sequence[LeftOut] = ()
        self.meters: list[MeterReader] = []
        self.holder_state: State | None = None
        self.reading_listeners: list[ReadingListener] = []
        self._access = access
        self._settle = settle
        self._clock_ns = clock_ns
        self._servers = ServerWatch(books, access.activity, access.resolve, clock_ns)
        self._sleep = SleepWatch()
        self._troubles = Troubles(_logger, clock_ns=clock_ns)
        self._lock = threading.Lock()
        self._idle_lock = threading.Lock()
        self._stopped = False
        self._halts = 0
        self._not_before_ns = 0
        self._looked_for = False
        self._discovery: Poller | None = None
        self._look_up: Poller | None = None
        self.seat = None if seat is None else seat(self)

    def start(self) -> None:
        """Find the meters and start reading, all in background threads, unless another process does that for us."""
        if self.seat is None:
            self.lead()
        else:
            self.seat.start()

    def stop(self) -> None:
        """Stop reading and close the meters, for good: the seat's thread may be late."""
        self._stopped = True
        self.keep_idle()
        if self.seat is not None:
            self.seat.stop()
        self._halt()
        self._servers.close()

    def resign(self) -> None:
        """This process is about to end: another one is to read the meters, if there is one."""
        if self.seat is not None:
            self.seat.resign()

    def forget_in_child(self) -> None:
        """In a forked child, which has a station of its own: what runs here is the parent's."""
        for each in (self._discovery, self._look_up, *self.meters, self.seat):
            if each is not None:
                each.forget_in_child()

    def expect(self, host: str, port: int) -> None:
        """Watch the server at this address, which is there for certain, before its first call."""
        self._servers.key(host, port)

    def look_out_for(self, host: str, port: int) -> None:
        """Watch the server at this address before its first call, if one is there when the station starts."""
        self._servers.look_out_for(host, port)

    # What the seat asks for

    def lead(self, not_before_ns: int = 0) -> None:
        """Find the meters and servers and read them in background threads, from now on or ``not_before_ns``."""
        self.rest()
        with self._lock:
            if self._stopped:
                return
            self.holder_state = None
            self.left_out = ()
            self._looked_for = False
            self._not_before_ns = not_before_ns
            self._discovery = Poller("discovery", self._find_meters)
            self._look_up = Poller("servers", self._find_servers)
            self._discovery.start()
            self._look_up.start()

    def rest(self) -> None:
        """Read the meters no more, and close them."""
        self._halt()
        self.meters = []

    def _halt(self) -> None:
        with self._lock:
            self._halts += 1
            pollers, self._discovery, self._look_up = (self._discovery, self._look_up), None, None
        for each in (*pollers, *self.meters):
            if each is not None:
                each.stop()

    def follow(self, state: State) -> None:
        """Another process reads these meters; read what is cheap at calls' edges."""
        before = self.holder_state
        known = None if before is None else _channel_ids(before)
        self.holder_state = state
        self.left_out = [LeftOut(*each) for each in state.left_out]
        if known != _channel_ids(state) and not self._stopped:
            self.rest()
            self.meters = list(self._edge_readers(_channel_ids(state)))

    def _edge_readers(self, wanted: Set[str]) -> Iterator[MeterReader]:
        found = self._access.edge_meters().meters
        all_of_them = wanted <= {channel.id for each in found for channel in each.channels}
        listeners = self.reading_listeners if all_of_them else ()
        for each in found:
            channels = tuple(channel for channel in each.channels if channel.id in wanted)
            open_meter = replace(each, channels=channels)
            yield MeterReader(
                open_meter, self.books, lambda reader: None, self._clock_ns, self._sleep, listeners=listeners
            )

    def state(self) -> State:
        """What is read, for the processes that this one reads it for."""
        baselines = self.books.baselines()
        channels = [
            _channel_state(channel, reader, baselines.get(channel.id))
            for reader in self.meters
            for channel in reader.open_meter.channels
        ]
        left_out = [(one.name, one.reason, one.message, one.by_address) for one in self.left_out]
        problem = self.problem
        why = None if problem is None else (problem.reason, str(problem))
        pause_seconds = max((reader.open_meter.meter.pace.open_seconds for reader in self.meters), default=0.0)
        return State(channels, left_out, why, self.period_seconds, pause_seconds)

    def server_key(self, address: str) -> str:
        """The books' name for the server at host:port, which is looked up if that is new."""
        host, _, port = address.rpartition(":")
        key = self._servers.key(host, int(port))
        if self._servers.unresolved:
            self._look_up_soon()
        return key

    def wake(self) -> None:
        """Another process's call begins."""
        if not self.books.busy:
            self._read_soon()

    def open(
        self,
        claim: Claim,
        host: str,
        port: int,
        route: str,
        *,
        reports: bool | None,
        since_ns: int | None = None,
    ) -> None:
        """A call to a server of this machine begins, in the caller's thread; for ``since_ns`` see `Books.open`."""
        was_busy = self.books.busy
        self.read_edge()
        server = self._servers.key(host, port)
        self.books.open(claim, server, route, reports=reports, since_ns=since_ns)
        if self._servers.unresolved:
            self._look_up_soon()
        if not was_busy:
            self._read_soon()
            if self.holder_state is not None:
                self._settle()  # which tells who reads the meters: they are to be read more often at once

    def open_here(self, claim: Claim) -> None:
        """Work of this very process begins.

        The first time it is found and sampled at once, in the caller's thread, which takes some ms: a sample that came
        later would miss the beginning, and there is no server's idleness before it to go by.
        """
        host, pid = this_process()
        self._servers.key(host, pid)
        if self.seat is None or self.seat.leads:
            self._servers.find_at_once(host, pid)
        self.open(claim, host, pid, "", reports=False)

    def read_edge(self) -> None:
        """Take a reading at a call's edge, of those meters for which it is cheap."""
        for reader in self.meters:
            reader.read_edge()

    @property
    def discovered(self) -> bool:
        """The meters have been looked for, and those that were found are in the books."""
        if self.holder_state is not None:
            return True
        found = {channel.id for reader in self.meters for channel in reader.open_meter.channels}
        return self._looked_for and found <= self.books.baselines().keys()

    def hasten(self) -> None:
        """Somebody cannot wait: read now what may be read now."""
        if self.seat is not None and not self.seat.leads:
            self.seat.hasten()
            return
        self._servers.final = True
        self._read_soon()
        self._look_up_soon()

    def learning_channels(self) -> list[str]:
        """The channels that are read and whose idle power is learned."""
        return [channel.id for reader in self.meters for channel in learning_channels(reader.open_meter)]

    def keep_idle(self, least_seconds: float = ENOUGH_SECONDS) -> None:
        """Keep for the next run what was learned of idle power, if from so much time without calls."""
        with self._idle_lock:
            self.idle_memory.keep(self.books.learned_idle(least_seconds))

    @property
    def problem(self) -> MeterError | None:
        """Why a meter cannot be read just now."""
        state = self.holder_state
        if state is not None:
            return None if state.problem is None else MeterError(*state.problem)
        return next(filter(None, (reader.problem for reader in self.meters)), None)

    @property
    def period_seconds(self) -> float:
        """The longest time until there is a reading of this instant, while calls are open."""
        state = self.holder_state
        if state is not None:
            return state.period_seconds
        return max((reader.open_meter.meter.pace.longest_seconds for reader in self.meters), default=0.0)

    @property
    def idle_period_seconds(self) -> float:
        """The longest time between two readings while no call is open."""
        return max((reader.open_meter.meter.pace.idle_seconds for reader in self.meters), default=0.0)

    def servers(self) -> Mapping[str, Server]:
        """The servers that were found, by address."""
        return self._servers.found()

    def _read_soon(self) -> None:
        for reader in self.meters:
            reader.wake()

    def _look_up_soon(self) -> None:
        look_up = self._look_up  # another thread may stop it at any instruction
        if look_up is not None:
            look_up.wake()

    def _find_meters(self) -> float:
        if self.meters:
            self.keep_idle()
            return _KEEP_IDLE_SECONDS
        wait_ns = self._not_before_ns - self._clock_ns()
        if wait_ns > 0:
            return wait_ns / NS_PER_SECOND
        halts = self._halts
        found = self._access.discover()
        self.left_out = found.left_out
        if not found.meters:
            self.books.without_meter(found.reason)
            why = found.left_out[0].message if found.left_out else "none is wanted."
            self._troubles.warn(found.reason, "LLM calls are not metered: %s", why)
            self._looked_for = True
            return _DISCOVER_AGAIN_SECONDS
        with self._lock:
            if halts != self._halts:  # while a meter took its time to answer
                for late in found.meters:
                    late.meter.close()
            else:
                self._start_reading(found.meters)
                self._looked_for = True
        return _KEEP_IDLE_SECONDS

    def _start_reading(self, meters: Sequence[OpenMeter]) -> None:
        remembered = self.idle_memory.recall(meters)
        self.books.add_channels([channel for meter in meters for channel in meter.channels], remembered)
        self._servers.resources = frozenset(channel.resource for meter in meters for channel in meter.channels)
        allowed = None if self.seat is None else self.seat.may_read
        self.meters = [
            MeterReader(meter, self.books, self._read, self._clock_ns, self._sleep, allowed, self.reading_listeners)
            for meter in meters
        ]
        try:
            for reader in self.meters:
                reader.start()
        except RuntimeError:  # no thread can be started just now: they are looked for again
            readers, self.meters = self.meters, []
            for reader in readers:
                reader.stop()
            raise

    def _find_servers(self) -> float:
        self._servers.find_those_looked_out_for()
        if self._servers.unresolved or self._servers.final:
            self._servers.sample()
            self._begin_round()
        self._servers.learn_names()
        seconds = self._servers.ask_again_seconds
        return _LOOK_UP_AGAIN_SECONDS if seconds is None else seconds

    def _read(self, reader: MeterReader) -> None:
        """A meter was read. Activity is sampled at the same time, so that cells end where buckets do.

        Claims settle when a cell is complete, so that is when settling is worth the trouble; not fifty times a second,
        as often as GPUs are read.
        """
        first = next((each for each in self.meters if each.problem is None), reader)
        worth_it = self._servers.sample() if reader is first else reader.is_slow
        if worth_it or reader.problem is not None:
            self._begin_round()

    def _begin_round(self) -> None:
        if self.seat is None:
            self._settle()
        else:
            self.seat.begin_round()


def _channel_state(channel: Channel, reader: MeterReader, baseline: Baseline | None) -> ChannelState:
    problem = reader.problem
    return {
        "channel": channel_to_json(channel),
        "idle_watts": None if baseline is None else baseline.watts,
        "idle_origin": "unknown" if baseline is None else baseline.origin,
        "age_seconds": reader.age_seconds(channel.id),
        "problem": None if problem is None else str(problem),
    }


def _channel_ids(state: State) -> frozenset[str]:
    return frozenset(each["channel"]["id"] for each in state.channels)

"""One machine's metering: when its meters are found, read and closed, and what other processes are told of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import SimpleNamespace

import pytest

from otel_llm_energy.host.wire import State, decode, encode
from otel_llm_energy.ledger.ledger import Ledger
from otel_llm_energy.meters.base import MeterError, Pace
from otel_llm_energy.meters.discovery import Discovery, LeftOut, OpenMeter
from otel_llm_energy.quantities import ActivitySample, Channel, Reading
from otel_llm_energy.servers.own_process import this_process
from otel_llm_energy.servers.props import LoadingError
from otel_llm_energy.servers.server import Server
from otel_llm_energy.status import channel_statuses
from otel_llm_energy.tracing.accounts import Accounts
from otel_llm_energy.tracing.books import Books
from otel_llm_energy.tracing.claims import Claim
from otel_llm_energy.tracing.pollers import Poller
from otel_llm_energy.tracing.station import MachineAccess, Station
from tests.support.interleaving import interleaved
from tests.tracing.fakes import ManualClock

PACKAGE, MEMORY = Channel("package-0", "cpu", "rapl", idle_watts=20), Channel("dram-0", "memory", "rapl", idle_watts=2)
GPU = Channel("gpu-0", "gpu", "nvml")
NOBODY = Discovery((), (LeftOut("rapl", "meter-permission", "/sys/class/powercap: no right to read it."),))


@dataclass
class Counters:
    """A meter of these channels, which counts how often it is read and closed."""

    clock: ManualClock
    channels: Sequence[Channel] = (PACKAGE, MEMORY)
    pace: Pace = field(default_factory=lambda: Pace(idle_seconds=1.0, open_seconds=0.05, at_edges=True))
    name: str = "rapl"
    error: MeterError | None = None
    reads: int = 0
    closes: int = 0

    def open(self) -> Sequence[Channel]:
        return self.channels

    def read(self) -> Sequence[Reading]:
        if self.error is not None:
            raise self.error
        self.reads += 1
        now_ns = self.clock.now_ns
        return [Reading(channel.id, now_ns // 1000, now_ns, now_ns) for channel in self.channels]

    def close(self) -> None:
        self.closes += 1


class Processes:
    """A server's process and this one are there; the samples that are taken of them are kept."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.sampled_ns: list[int] = []
        self.closed = False

    def watch(self, server: Server) -> None: ...

    def forget(self, server_id: str) -> None: ...

    def sample(self) -> ActivitySample:
        self.sampled_ns.append(self.clock.now_ns)
        return ActivitySample("cpu", self.clock.now_ns, 0, {}, 2, 0, 0)

    def close(self) -> None:
        self.closed = True


class OtherSeat:
    """The place of a process for which another one reads the meters, unless ``leads``."""

    def __init__(self, *, leads: bool = False) -> None:
        self.leads = leads
        self.starts = self.hastened = self.rounds = self.stops = 0

    def start(self) -> None:
        self.starts += 1

    def hasten(self) -> None:
        self.hastened += 1

    def may_read(self) -> bool:
        return True

    def begin_round(self) -> None:
        self.rounds += 1

    def stop(self) -> None:
        self.stops += 1


@pytest.fixture(autouse=True)
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the threads that would have been started; what they would do, each test does itself."""
    names: list[str] = []
    monkeypatch.setattr(Poller, "start", lambda poller: names.append(poller._name))
    return names


@pytest.fixture
def woken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the threads that are to work at once."""
    names: list[str] = []
    monkeypatch.setattr(Poller, "wake", lambda poller: names.append(poller._name))
    return names


class Machine:
    """A station; ``found`` and ``at_edges`` are what a search finds when it is asked the next time."""

    def __init__(self, *found: Discovery, seat: OtherSeat | None = None) -> None:
        self.clock = ManualClock()
        self.meter = Counters(self.clock)
        self.found = list(found) or [self.opened(self.meter)]
        self.at_edges: list[Discovery] = []
        self.meanwhile: Callable[[], None] = lambda: None
        self.processes = Processes(self.clock)
        self.settled = 0
        self.slots: int | None = 1  # that a server's command line says
        self.station = Station(
            Books(Ledger(self.clock.now_ns), clock_ns=self.clock),
            MachineAccess(self._discover, self.processes, self._resolve, lambda: self.at_edges.pop(0)),
            self._settle,
            seat=None if seat is None else lambda station: seat,  # type: ignore[arg-type,return-value]
            clock_ns=self.clock,
        )

    def opened(self, *meters: Counters) -> Discovery:
        return Discovery(tuple(OpenMeter(meter, tuple(meter.channels)) for meter in meters), ())

    def _discover(self) -> Discovery:
        self.meanwhile()
        return self.found.pop(0)

    def _resolve(self, host: str, port: int) -> Server:
        return Server(f"pid:{port}:1", "llama-server", "local", pid=port, slots=self.slots)

    def _settle(self) -> None:
        self.settled += 1

    def read(self) -> Station:
        """The station once it reads the meters that are found next."""
        self.station._find_meters()
        return self.station


def test_meters_are_looked_for_again_in_ten_seconds_while_there_are_none(caplog: pytest.LogCaptureFixture) -> None:
    """An exporter may be started later; once one is found there is no search any more."""
    machine = Machine()
    machine.found.insert(0, NOBODY)
    station = machine.station
    assert station._find_meters() == 10
    assert (station.left_out, station.books.reason) == (NOBODY.left_out, "meter-permission")
    assert caplog.messages == ["LLM calls are not metered: /sys/class/powercap: no right to read it."]
    assert machine.read().meters
    assert station.books.reason is None
    assert station._find_meters() == 60
    station.stop()
    assert machine.meter.closes == 1


@pytest.mark.parametrize("finds_one", [True, False], ids=["one is found", "none is found"])
def test_meters_are_discovered_once_what_was_found_is_in_the_books(finds_one: bool) -> None:
    """Until then nobody is told that there are no more of them, nor which there are."""
    machine = Machine() if finds_one else Machine(NOBODY)
    machine.station.lead()
    assert not machine.station.discovered
    station = machine.read()
    assert station.discovered is not finds_one
    station.books.settle()
    assert station.discovered
    assert len(channel_statuses(station)) == (2 if finds_one else 0)
    station.lead()  # another process has read them until now
    assert not station.discovered


def test_gpus_are_sampled_when_their_energy_is_read() -> None:
    """And no others."""
    machine = Machine()
    gpu = replace(GPU, resource="gpu:0")
    machine.found = [machine.opened(machine.meter, Counters(machine.clock, (gpu,)))]
    assert machine.read()._servers.resources == {"cpu", "gpu:0"}
    machine.station.stop()


def test_next_holder_opens_no_meter_before_the_pause_of_the_one_before_has_passed() -> None:
    """An exporter that is asked too soon again would answer with the reading before."""
    machine = Machine()
    station = machine.station
    station.lead(machine.clock.now_ns + 5_000_000_000)
    assert station._find_meters() == 5
    machine.clock.advance(4)
    assert station._find_meters() == 1
    assert not station.meters
    machine.clock.advance(1)
    assert machine.read().meters
    station.stop()


def test_meters_are_read_later_when_no_thread_can_be_started_just_now(
    monkeypatch: pytest.MonkeyPatch, started: list[str]
) -> None:
    """A limit on processes may have been reached for a moment: those that were found are closed, and found again."""
    machine = Machine()
    machine.found *= 2
    start, failures = Poller.start, [RuntimeError("can't start new thread")]

    def fail_once(poller: Poller) -> None:
        if failures:
            raise failures.pop()
        start(poller)

    monkeypatch.setattr(Poller, "start", fail_once)
    with pytest.raises(RuntimeError, match="thread"):
        machine.read()
    assert (machine.station.meters, machine.meter.closes, started) == ([], 1, [])
    assert machine.read().meters
    assert started == ["rapl"]
    machine.station.stop()


def test_meters_that_are_found_too_late_are_closed_unread() -> None:
    """Another process has come to read them while they were opened: two clients would freeze a Scaphandre."""
    machine = Machine()
    machine.meanwhile = machine.station.rest
    machine.station._find_meters()
    assert (machine.station.meters, machine.meter.closes, machine.meter.reads) == ([], 1, 0)
    machine.station.stop()


def state_of(*channels: Channel, problem: Sequence[str] | None = None) -> State:
    """What a holder reads, as its members are told."""
    each = Machine().opened(Counters(ManualClock(), channels))
    holder = Machine(each).read()
    state = holder.state()
    holder.stop()
    told = decode(encode(state._replace(problem=problem, period_seconds=7.0)))
    assert isinstance(told, State)
    return told


def test_member_reads_at_edges_what_its_holder_reads_and_opens_it_anew_only_when_that_changes() -> None:
    """The holder says it every second."""
    machine = Machine()
    first, second = Counters(machine.clock), Counters(machine.clock)
    machine.at_edges = [machine.opened(first), machine.opened(second)]
    station, told = machine.station, list[Reading]()
    station.reading_listeners.append(told.extend)
    for _ in range(3):
        station.follow(state_of(PACKAGE))
    assert [reader.open_meter.channels for reader in station.meters] == [(PACKAGE,)]
    assert (len(machine.at_edges), first.closes) == (1, 0)
    station.follow(state_of(PACKAGE, MEMORY))
    assert [reader.open_meter.channels for reader in station.meters] == [(PACKAGE, MEMORY)]
    assert (len(machine.at_edges), first.closes) == (0, 1)
    station.read_edge()
    assert (first.reads, second.reads) == (0, 1)
    assert [reading.channel_id for reading in told] == ["package-0", "dram-0"]
    station.stop()
    assert second.closes == 1


def test_member_reads_at_edges_again_when_that_failed_for_a_while() -> None:
    """The driver may have been loaded anew: no thread reads these counters in this process, and would see it."""
    machine = Machine()
    machine.at_edges = [machine.opened(machine.meter)]
    station = machine.station
    station.follow(state_of(PACKAGE))
    machine.meter.error = MeterError("meter-unreadable", "The driver was unloaded.")
    station.read_edge()
    machine.meter.error = None
    machine.clock.advance(9.9)
    station.read_edge()
    assert machine.meter.reads == 0
    machine.clock.advance(0.2)
    for _ in range(2):
        station.read_edge()
        machine.clock.advance(0.1)
    assert machine.meter.reads == 2
    station.stop()


def test_member_says_what_its_holder_says_of_the_meters() -> None:
    """Its own, which it reads at edges only, may know of no problem."""
    machine = Machine()
    machine.at_edges = [machine.opened(machine.meter)]
    station = machine.station
    station.follow(state_of(PACKAGE, problem=("meter-timeout", "http://localhost:8080/metrics: no answer.")))
    assert station.problem is not None
    assert (station.problem.reason, station.period_seconds) == ("meter-timeout", 7.0)
    station.follow(state_of(PACKAGE))
    assert not station.problem
    station.lead()
    assert (station.holder_state, station.period_seconds) == (None, 0.0)
    station.stop()


def test_holder_tells_of_all_its_meters_the_longest_times_and_whose_counter_has_a_problem() -> None:
    """Of each channel its idle power, where that is from, and how old the newest reading is."""
    machine = Machine()
    gpus = Counters(machine.clock, (GPU,), Pace(2.0, 0.5, delay_seconds=0.25), "nvml")
    machine.found = [machine.opened(machine.meter, gpus)]
    station = machine.read()
    machine.station.meters[0]._poll()
    gpus.error = MeterError("meter-unreadable", "The driver was unloaded.")
    machine.station.meters[1]._poll()
    machine.clock.advance(3)
    station.books.settle()
    state = station.state()
    assert state.problem == ("meter-unreadable", "The driver was unloaded.")
    assert (state.period_seconds, state.pause_seconds, station.idle_period_seconds) == (0.75, 0.5, 2.0)
    said = [
        (each["channel"]["id"], each["idle_watts"], each["idle_origin"], each["age_seconds"], each["problem"])
        for each in state.channels
    ]
    assert said == [
        ("package-0", 20, "given", 3, None),
        ("dram-0", 2, "given", 3, None),
        ("gpu-0", None, "unknown", None, "The driver was unloaded."),
    ]
    station.stop()


def test_holder_tells_nothing_of_idle_power_while_that_is_learned() -> None:
    """In another thread: to look through samples that are being added to raises, and a reading would be left out."""
    machine = Machine()
    station = machine.read()
    learning, go_on = threading.Event(), threading.Event()

    def learn(ledger: Accounts) -> Accounts:
        learning.set()
        assert go_on.wait(20)
        return ledger

    settling = threading.Thread(target=station.books.change_ledger, args=(learn,), daemon=True)
    telling = threading.Thread(target=station.state, daemon=True)
    settling.start()
    assert learning.wait(20)
    telling.start()
    telling.join(0.2)
    assert telling.is_alive()
    go_on.set()
    telling.join(20)
    assert not telling.is_alive()
    station.stop()


def test_meters_are_read_soon_when_the_first_call_begins_and_not_at_each_further_one(woken: list[str]) -> None:
    """They are read at the pace of open calls by then; so it is with another process's calls."""
    machine = Machine()
    station = machine.read()
    station.wake()
    assert woken == ["rapl"]
    station.open(Claim(), "localhost", 80, "", reports=False)
    assert woken == ["rapl"] * 2
    station.open(Claim(), "localhost", 80, "", reports=False)
    station.wake()
    assert woken == ["rapl"] * 2
    assert machine.settled == 0
    station.stop()


def test_holder_is_told_at_once_when_the_first_call_of_a_member_begins() -> None:
    """It is to read more often from then on; settling tells it."""
    machine = Machine()
    machine.at_edges = [machine.opened(machine.meter)]
    station = machine.station
    station.follow(state_of(PACKAGE))
    for _ in range(2):
        station.open(Claim(), "localhost", 80, "", reports=False)
    assert machine.settled == 1
    station.stop()


@pytest.mark.parametrize("leads", [True, False])
def test_meters_are_read_now_by_whoever_reads_them_when_somebody_cannot_wait(leads: bool, woken: list[str]) -> None:
    """A member asks its holder."""
    seat = OtherSeat(leads=leads)
    machine = Machine(seat=seat)
    station = machine.station
    station.lead()
    machine.read()
    woken.clear()
    station.hasten()
    assert (woken, seat.hastened) == ((["rapl", "servers"], 0) if leads else ([], 1))
    station._find_servers()
    assert seat.rounds == int(leads)  # what is known by now is settled, though no server is new
    station.stop()


@pytest.mark.parametrize(
    ("functions", "look"),
    [
        ([Station.problem.fget], lambda station: station.problem),  # type: ignore[attr-defined]
        ([Station.period_seconds.fget], lambda station: station.period_seconds),  # type: ignore[attr-defined]
        ([channel_statuses], channel_statuses),
        ([Station.hasten, Station._look_up_soon], Station.hasten),
    ],
)
def test_station_answers_when_it_changes_its_part_at_any_instruction(
    functions: list[Callable[..., object]], look: Callable[[Station], object]
) -> None:
    """The seat's thread changes it, and that which undoes `instrument()`, whoever looks meanwhile."""
    machine, state = Machine(), state_of(PACKAGE, problem=("meter-silent", "It says nothing."))
    station = machine.station
    machine.at_edges = [Discovery((), ())] * 500
    for before, after in ((station.lead, station.rest), (partial(station.follow, state), station.lead)):
        before()
        step = 0
        while interleaved(functions, step, partial(look, station), after):
            before()
            step += 1
        assert step > 3
    station.stop()


@pytest.mark.parametrize(("seat", "sampled"), [(None, 1), (OtherSeat(leads=True), 1), (OtherSeat(), 0)])
def test_work_of_this_process_is_sampled_when_it_first_begins(seat: OtherSeat | None, sampled: int) -> None:
    """However short a time after the last sample, which knew nothing of it; where another reads, that one does it."""
    machine = Machine(seat=seat)
    station = machine.read()
    station._servers.sample()
    cells_end: list[bool] = []

    def keep(sample: ActivitySample, *, final: bool = False) -> None:
        cells_end.append(final)

    station.books.sample = keep  # type: ignore[method-assign]
    for _ in range(2):
        station.open_here(Claim())
        assert cells_end == [True] * sampled
    station.stop()


def test_app_does_not_wait_for_names_of_others_when_its_own_work_begins() -> None:
    """To look one up may take seconds, as long as the network does not answer; a thread of ours does, meanwhile."""
    machine = Machine()
    station = machine.read()
    looked_up: list[str] = []

    def resolve(host: str, port: int) -> Server:
        looked_up.append(host)
        return machine._resolve(host, port)

    station._servers._resolve = resolve
    host, _ = this_process()
    station.open(Claim(), "llm.example.org", 443, "/v1/chat/completions", reports=False)
    station.open_here(Claim())
    station.open_here(Claim())
    assert looked_up == [host]
    station._servers.sample()
    assert looked_up == [host, "llm.example.org"]
    station.stop()


def test_app_does_not_wait_while_a_name_is_looked_up_when_its_own_work_begins() -> None:
    """Its work is found a moment later."""
    machine = Machine()
    station = machine.read()
    asked, answered = threading.Event(), threading.Event()

    def resolve(host: str, port: int) -> Server:
        asked.set()
        assert answered.wait(30)
        return machine._resolve(host, port)

    station._servers._resolve = resolve
    station.expect("llm.example.org", 443)
    looking_up = threading.Thread(target=station._servers.sample)
    looking_up.start()
    assert asked.wait(30)
    app = threading.Thread(target=station.open_here, args=(Claim(),))
    app.start()
    app.join(10)
    assert not app.is_alive()
    answered.set()
    for thread in (looking_up, app):
        thread.join()
    assert station.books.opened == 1
    station.stop()


def test_activity_is_sampled_with_the_first_meter_and_settled_with_it_or_a_slow_one() -> None:
    """Not as often as GPUs are read, unless they have a problem, which bills are to say."""
    machine = Machine()
    gpus = Counters(machine.clock, (GPU,), Pace(1.0, 0.02), "nvml")
    exporter = Counters(machine.clock, (MEMORY,), Pace(2.5, 2.5), "scaphandre")
    machine.meter.channels = (PACKAGE,)
    machine.found = [machine.opened(machine.meter, gpus, exporter)]
    station = machine.read()
    seen = []
    for reader in station.meters:
        machine.clock.advance(1)
        reader._poll()
        seen.append((len(machine.processes.sampled_ns), machine.settled))
    assert seen == [(1, 1), (1, 1), (1, 2)]
    station.meters[0]._poll()
    station.meters[0]._poll()
    assert (len(machine.processes.sampled_ns), machine.settled) == (2, 3)  # within a quarter of a second
    gpus.error = MeterError("meter-unreadable", "The driver was unloaded.")
    station.meters[1]._poll()
    assert machine.settled == 4
    station.stop()


def test_activity_is_sampled_with_the_next_meter_while_the_first_cannot_be_read() -> None:
    """That is tried only once a minute in the end: without activity no call had the energy of its GPU, either."""
    machine = Machine()
    gpus = Counters(machine.clock, (GPU,), Pace(1.0, 0.02), "nvml")
    machine.found = [machine.opened(machine.meter, gpus)]
    station = machine.read()
    machine.meter.error = MeterError("meter-refused", "Nobody answers.")
    sampled = []
    for reader in (station.meters[0], station.meters[1], station.meters[1]):
        machine.clock.advance(1)
        reader._poll()
        sampled.append(len(machine.processes.sampled_ns))
    assert sampled == [0, 1, 2]
    station.stop()


def test_meters_are_found_in_the_background_when_a_station_starts_unless_its_seat_says_who_reads(
    started: list[str],
) -> None:
    """The app's start waits for no meter."""
    alone, seat = Machine().station, OtherSeat()
    alone.start()
    assert started == ["discovery", "servers"]
    shared = Machine(seat=seat).station
    shared.start()
    assert (started, seat.starts) == (["discovery", "servers"], 1)
    alone.stop()
    shared.stop()
    assert seat.stops == 1


def test_meters_are_opened_anew_when_the_station_leads_again() -> None:
    """Those that were read at edges alone, or until now, are closed before: no meter has two readers."""
    machine = Machine()
    station = machine.read()
    station.lead()
    assert (station.meters, machine.meter.closes) == ([], 1)
    station.stop()
    assert machine.processes.closed


def test_no_meter_is_read_any_more_when_the_seat_changes_its_place_after_the_stop(started: list[str]) -> None:
    """Its thread may be reading a journal for longer than it is waited for."""
    machine = Machine()
    machine.at_edges = [machine.opened(machine.meter)]
    station, state = machine.station, state_of(PACKAGE)
    started.clear()
    station.stop()
    station.lead()
    station.follow(state)
    assert (started, station.meters, len(machine.at_edges)) == ([], [], 1)


def test_idle_power_is_kept_now_and_then_and_when_the_station_stops() -> None:
    """A process that is killed has kept what it knew a minute ago."""
    machine, kept = Machine(), list[object]()
    machine.station.idle_memory = SimpleNamespace(recall=lambda meters: {}, keep=kept.append)  # type: ignore[assignment]
    station = machine.read()
    assert not kept
    station._find_meters()
    assert len(kept) == 1
    station.stop()
    assert len(kept) == 2


def test_servers_that_are_expected_or_looked_out_for_are_found_before_their_first_call() -> None:
    """And one that another process calls, under the name that the books have for it."""
    machine = Machine()
    station = machine.read()
    station.expect("gpu-1", 8000)
    station.look_out_for("localhost", 8080)
    assert station._find_servers() == 60
    assert station.server_key("127.0.0.1:8080") == "localhost:8080"
    assert station.server_key("::1:9") == "::1:9"
    station._find_servers()
    assert list(station.servers()) == ["gpu-1:8000", "localhost:8080", "::1:9"]
    station.stop()


@pytest.mark.parametrize("seat", [None, OtherSeat(leads=True)])
def test_what_is_known_is_settled_when_a_new_server_is_found(seat: OtherSeat | None) -> None:
    """With the members, if there may be any: whoever waits for its bill waits for no further reading."""
    machine = Machine(seat=seat)
    station = machine.station
    for port, rounds in ((80, 1), (80, 1), (81, 2)):
        station.expect("localhost", port)
        station._find_servers()
        assert (machine.settled, 0 if seat is None else seat.rounds) == ((rounds, 0) if seat is None else (0, rounds))
    station.stop()


def test_server_that_loads_its_model_is_asked_when_it_is_due_also_if_that_is_just_now() -> None:
    """While another one took its time to answer."""
    machine = Machine()
    station = machine.read()
    answers_seconds = {80: 0, 81: 5}

    def still_loading(host: str, port: int) -> int:
        machine.clock.advance(answers_seconds[port])
        raise LoadingError

    station._servers._ask_slots = still_loading
    for port in answers_seconds:
        station.expect("localhost", port)
    machine.slots = None
    assert station._find_servers() == 0
    answers_seconds[80] = 1
    assert station._find_servers() == 4
    station.stop()


def test_server_is_looked_up_at_once_when_it_is_called_for_the_first_time(woken: list[str]) -> None:
    """By this process or another one; until then its part of what is done is not known."""
    station = Machine().station
    station.lead()
    woken.clear()
    for _ in range(2):
        station.open(Claim(), "localhost", 80, "", reports=False)
        assert woken.pop() == "servers"
    station._find_servers()
    station.open(Claim(), "localhost", 80, "", reports=False)
    station.server_key("localhost:80")
    assert woken == []
    station.server_key("localhost:81")
    assert woken == ["servers"]
    station.stop()


def test_call_begins_with_a_reading_and_makes_the_books_busy() -> None:
    """Of a meter that is read at edges, in the caller's thread."""
    machine = Machine()
    station = machine.read()
    machine.clock.advance(1)
    station.open(Claim(), "localhost", 80, "", reports=False)
    assert (machine.meter.reads, station.books.opened) == (1, 1)
    machine.clock.advance(1)
    station.open_here(Claim())
    assert (machine.meter.reads, station.books.opened) == (2, 2)
    station.stop()

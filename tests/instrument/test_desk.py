"""Where calls are opened, closed and settled, and how the station of a call's server is found."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from otel_llm_energy import conventions
from otel_llm_energy.host.wire import State, decode, encode
from otel_llm_energy.ledger.ledger import Ledger
from otel_llm_energy.meters.base import MeterError, Pace
from otel_llm_energy.meters.discovery import Discovery, LeftOut, OpenMeter
from otel_llm_energy.quantities import NJ_PER_JOULE, Channel, Reading
from otel_llm_energy.servers.server import Server
from otel_llm_energy.tracing.books import Books
from otel_llm_energy.tracing.claims import Claim
from otel_llm_energy.tracing.desk import SettlingDesk
from otel_llm_energy.tracing.directory import Address, Directory, Metered, Unmetered, is_this_machine
from otel_llm_energy.tracing.metrics import EnergyMetrics
from otel_llm_energy.tracing.right_of_way import BackgroundThread, RightOfWay
from otel_llm_energy.tracing.server_watch import ServerWatch
from otel_llm_energy.tracing.station import MachineAccess, Station
from tests.instrument.test_sampling import NoActivity, _nobody
from tests.support.waiting import until
from tests.tracing.fakes import ManualClock, Pipeline


class Listener:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[Claim] = []

    def settled(self, claims: Iterable[Claim]) -> None:
        self.told.extend(claims)


class Office:
    """A desk over one station without threads."""

    def __init__(self, *, channel: bool = True) -> None:
        self.clock = ManualClock()
        self.energy_uj = 0
        self.books = Books(Ledger(self.clock.now_ns), clock_ns=self.clock)
        if channel:
            self.books.add_channels([Channel("package-0", "cpu", "rapl", idle_watts=20)])
        self.station = Station(
            self.books, MachineAccess(lambda: Discovery((), ()), NoActivity(), _nobody), lambda: None
        )
        self.listener = Listener()
        self.directory = Directory(self.station)
        self.desk = SettlingDesk(self.directory, lambda: [self.listener], clock_ns=self.clock)

    def call(self, host: str | None = "127.0.0.1") -> Claim:
        """A call of 100 ms that has ended."""
        claim = self.begin(host)
        self.clock.advance(0.1)
        self.desk.close(claim)
        return claim

    def pass_time(self, seconds: float) -> None:
        """At 50 W, with a reading afterwards."""
        self.clock.advance(seconds)
        self.energy_uj += int(50e6 * seconds)
        self.read()

    def read(self) -> None:
        now_ns = self.clock.now_ns
        self.books.read([Reading("package-0", self.energy_uj, now_ns, now_ns)])

    def begin(self, host: str | None = "127.0.0.1") -> Claim:
        claim = Claim()
        self.desk.open(claim, host, 8080, "openai", "chat")
        return claim


@pytest.mark.parametrize(("host", "reason"), [("api.example.com", "remote"), (None, "server_unknown")])
def test_call_is_settled_at_once_when_nothing_can_meter_its_server(host: str | None, reason: str) -> None:
    """There is nothing to wait for."""
    office = Office()
    claim = office.call(host)
    assert claim.bill is not None
    assert (claim.bill.energy_nj, claim.bill.reason) == (None, reason)
    assert office.listener.told == [claim]


def test_end_of_a_call_lets_a_thread_have_the_interpreter_that_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """An app may keep our threads from it for seconds, and what is not settled must not grow for ever."""
    clock, slept_seconds = ManualClock(), list[float]()
    right_of_way = RightOfWay(clock, slept_seconds.append)
    monkeypatch.setattr("otel_llm_energy.tracing.desk.RIGHT_OF_WAY", right_of_way)
    monkeypatch.setattr("otel_llm_energy.tracing.right_of_way._has_lock", lambda: True)
    office = Office()
    with BackgroundThread(right_of_way) as late, late.waiting(0):
        clock.advance(0.002)
        claim = office.begin()
        assert not slept_seconds  # the app waits for its answer
        office.desk.close(claim)
    assert len(slept_seconds) == 1


def test_meters_that_are_left_out_are_known_where_another_process_reads_the_meters() -> None:
    """Whoever asks a member for its status wants to know as much as at the holder."""
    holder, member = Office().station, Office().station
    holder.left_out = [
        LeftOut("rapl", "meter-unreadable", "No right to read it."),
        LeftOut("scaphandre", "meter-timeout", "http://localhost:8080/metrics: no answer.", by_address=True),
    ]
    state = decode(encode(holder.state()))
    assert isinstance(state, State)
    member.follow(state)
    assert list(member.left_out) == holder.left_out
    member.lead()
    member.stop()
    assert not member.left_out


def test_call_says_why_there_is_no_meter_when_there_is_none() -> None:
    """The reason of the meter that was tried, not merely that there is none."""
    office = Office(channel=False)
    left_out = LeftOut("rapl", "meter-permission", "May not be read.")
    office.station._access = MachineAccess(lambda: Discovery((), (left_out,)), NoActivity(), _nobody)
    office.station._find_meters()
    claim = office.call()
    office.desk._settle()
    assert claim.bill is not None
    assert claim.bill.reason == "meter-permission"


def test_calls_that_wait_are_billed_when_settling_cannot_wait() -> None:
    """Closed ones at once, without joules since no reading covers them; open ones stay open."""
    office = Office()
    closed, still_open = office.call(), office.begin()
    office.desk._settle()
    assert closed.bill is None
    office.desk.settle_now(0, "flush")
    assert closed.bill is not None
    assert closed.bill.reason == "flush"
    assert still_open.bill is None
    assert office.listener.told == [closed]


def test_call_is_counted_once_when_its_span_had_to_leave_before_its_end() -> None:
    """As that of a stream may that is read for minutes; the span says so, the counters have what the call took."""
    office, reader = Office(), InMemoryMetricReader()
    pipeline = Pipeline(clock=office.clock)
    metrics = EnergyMetrics(MeterProvider([reader]))
    desk = SettlingDesk(office.directory, lambda: [metrics, pipeline.gate], clock_ns=office.clock)
    pipeline.gate.desk = desk
    span = pipeline.tracer.start_span("chat")
    claim = pipeline.call(span)
    office.read()
    desk.open(claim, "127.0.0.1", 8080, "openai", "chat")
    office.pass_time(1.0)
    span.end()
    desk._settle()
    office.pass_time(31.0)
    assert pipeline.sent() == ["chat"]
    shown = pipeline.out.attributes("chat")
    assert (shown[conventions.QUALITY], shown[conventions.REASON]) == ("unavailable", "max-hold")
    desk.close(claim)
    for _ in range(3):
        office.pass_time(1.0)
        desk._settle()
    assert claim.bill is not None
    assert claim.bill.energy_nj == 32 * 50 * NJ_PER_JOULE
    assert totals(reader) == {conventions.CONSUMPTION.name: [1600.0], conventions.OPERATION.name: [1600.0]}
    assert pipeline.sent() == ["chat"]


def totals(reader: InMemoryMetricReader) -> dict[str, list[float]]:
    """What the calls' counter and histogram hold."""
    data = reader.get_metrics_data()
    assert data is not None
    metrics = [metric for each in data.resource_metrics[0].scope_metrics for metric in each.metrics]
    return {
        metric.name: [getattr(point, "sum", None) or point.value for point in metric.data.data_points]
        for metric in metrics
        if metric.name in (conventions.CONSUMPTION.name, conventions.OPERATION.name)
    }


@pytest.mark.parametrize("broken", [0, 1])
def test_calls_of_one_machine_are_settled_when_those_of_another_cannot_be(
    broken: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever is wrong with the one's ledger, whichever comes first."""

    def fail() -> list[Claim]:
        raise OSError("no ledger")

    here, there, listener, claim = Office(), Office(), Listener(), Claim()
    directory = Directory(here.station, {Address("there", None): there.station})
    desk = SettlingDesk(directory, lambda: [listener], clock_ns=here.clock)
    monkeypatch.setattr(desk.stations[broken].books, "settle", fail)
    monkeypatch.setattr(desk.stations[1 - broken].books, "settle", lambda: [claim])
    assert desk._settle() == 1.0
    assert listener.told == [claim]
    assert caplog.messages == ["LLM calls could not be settled; it is tried again."]


def test_bills_reach_the_spans_when_metrics_cannot_take_them(caplog: pytest.LogCaptureFixture) -> None:
    """These may be recorded by anybody's meter provider; the spans would be held to the bound."""

    class Refusing:
        def settled(self, claims: Iterable[Claim]) -> None:
            raise ValueError("no metrics")

    office = Office()
    spans = Listener()
    desk = SettlingDesk(office.directory, lambda: [Refusing(), spans], clock_ns=office.clock)
    claim = Claim()
    desk.open(claim, None, None, "openai", "chat")
    desk.close(claim)
    assert spans.told == [claim]
    assert caplog.messages == ["The bills of LLM calls did not reach everybody."]


def test_only_calls_that_have_ended_are_waited_for_when_settling_is_hastened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that call without end would otherwise keep a flush, or the interpreter's exit, waiting to its bound."""
    office = Office()
    ended = office.call()
    asked = threading.Event()
    monkeypatch.setattr(office.station, "hasten", asked.set)
    waiting = threading.Thread(target=office.desk.hasten, args=(120,), daemon=True)
    waiting.start()
    assert asked.wait(20)
    later = office.call()
    office.books.force([ended], "flush")
    office.desk._settle()
    waiting.join(20)
    assert not waiting.is_alive()
    assert later.bill is None


def test_call_that_began_before_a_fork_touches_nothing_of_the_parents() -> None:
    """Another thread of the parent may have held the lock of its books when the child was made."""
    parent, child = Office(), Office()
    claim = parent.begin()
    with parent.books._intake_lock:
        child.desk.first_chunk(claim)
        child.desk.close(claim)
    assert claim.bill is not None
    assert claim.bill.reason == "no-reading"


def test_claim_is_given_up_when_its_meter_keeps_failing() -> None:
    """After a little patience, with the meter's own reason."""
    office = Office()
    claim = office.call()
    office.station._start_reading([OpenMeter(Refusing(), ())])
    until(lambda: office.station.problem is not None)
    office.station.stop()
    office.desk._settle()
    assert claim.bill is None
    office.clock.advance(5)
    office.desk._settle()
    assert claim.bill is not None
    assert claim.bill.reason == "meter-refused"


class Refusing:
    """A meter that cannot be read."""

    name = "refusing"
    pace = Pace(2.2, 2.2)

    def open(self) -> Sequence[Channel]:
        return ()

    def read(self) -> Sequence[Reading]:
        raise MeterError("meter-refused", "no connection")

    def close(self) -> None: ...


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("ollama:11434", Address("ollama", 11434)),
        ("Ollama", Address("ollama", None)),
        ("[::1]:8080", Address("::1", 8080)),
        ("::1", Address("::1", None)),
        (":8080", Address("", 8080)),
        ("/run/LLM.sock", Address("/run/LLM.sock", None)),
        ("@llm", Address("@llm", None)),
    ],
)
def test_address_is_read_as_clients_write_it(text: str, address: Address) -> None:
    """With or without a host or a port, IPv6 in brackets."""
    assert Address.parse(text) == address


def test_named_station_is_found_before_this_machines_own() -> None:
    """By host and port, or by either alone."""
    here, there = Office().station, Office().station
    directory = Directory(here, {Address.parse(text): there for text in ("ollama", ":9000", "/run/Named.sock")})
    assert directory.find("Ollama", 11434, "ollama") == Metered(there, "ollama", 11434)
    assert directory.find("localhost", 9000, "openai") == Metered(there, "localhost", 9000)
    assert directory.find("localhost", None, "ollama") == Metered(here, "localhost", 11434)
    assert directory.find("elsewhere.example", 80, "openai") == Unmetered("remote")
    assert directory.find("/run/Named.sock", None, "openai") == Metered(there, "/run/Named.sock", 0)
    assert directory.find("/run/Other.sock", None, "openai") == Metered(here, "/run/Other.sock", 0)
    assert directory.stations == [here, there]


def test_this_machine_is_known_by_its_names_and_addresses() -> None:
    """Without asking a name server."""
    for name in ("localhost", "a.localhost", "127.0.0.1", "127.8.8.8", "::1", "[::1]", "0.0.0.0", socket.gethostname()):
        assert is_this_machine(name), name
    for name in ("example.com", "203.0.113.7", "2001:db8::1"):
        assert not is_this_machine(name), name


def test_names_of_the_hosts_file_are_known_when_they_lead_here(tmp_path: Path) -> None:
    """Many machines call themselves by a full name there, and users give their services names."""
    hosts = tmp_path / "hosts"
    hosts.write_text("# names\n127.0.1.1\tBox.example.com box\n203.0.113.7 gpu # llm\nnonsense odd\n\n::1 llm-six\n")
    for name, here in [("box.example.com", True), ("LLM-six", True), ("gpu", False), ("llm", False), ("odd", False)]:
        assert is_this_machine(name, hosts) is here, name
    assert not is_this_machine("box", tmp_path / "missing")


def test_call_is_the_same_servers_when_it_comes_by_another_name() -> None:
    """From the first such call on; a name that leads to another process is another server's."""
    answering = {"127.0.0.1": 1, "localhost": 1, "0.0.0.0": 1, "::1": 2}

    def found(host: str, port: int) -> Server:
        pid = answering[host]
        return Server(f"pid:{pid}:0", "model", "local", pid=pid)

    servers = ServerWatch(Books(Ledger(0)), NoActivity(), found, ManualClock())
    key = servers.key("127.0.0.1", 8080)
    servers.sample()
    servers.learn_names()
    assert [servers.key(name, 8080) == key for name in answering] == [True, True, True, False]
    assert [servers.key(name, 8081) == key for name in answering] == [False] * 4

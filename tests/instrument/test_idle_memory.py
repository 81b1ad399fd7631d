"""Idle power that is kept between runs: the file, what is not believed, and that a first call has its idle power."""

from __future__ import annotations

import errno
import json
import logging
import os
import stat
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import otel_llm_energy
from otel_llm_energy import conventions as names
from otel_llm_energy.idle_memory import MAX_AGE_SECONDS, IdleMemory, default_path, machine_facts
from otel_llm_energy.ledger.ledger import Ledger
from otel_llm_energy.meters import MeterError, RaplMeter, ScaphandreMeter
from otel_llm_energy.meters.base import Meter, Pace
from otel_llm_energy.meters.discovery import Discovery, LeftOut, OpenMeter
from otel_llm_energy.quantities import ActivitySample, Channel, IdlePower, Reading
from otel_llm_energy.servers.server import Server
from otel_llm_energy.tracing.books import Books
from otel_llm_energy.tracing.claims import Claim
from otel_llm_energy.tracing.idle_measurement import measure_idle
from otel_llm_energy.tracing.station import MachineAccess, Station
from tests.instrument.asking import ask, calls
from tests.instrument.test_sampling import _nobody
from tests.support.descriptors import open_below
from tests.support.powercap import PowercapTree
from tests.support.waiting import until
from tests.tracing.fakes import ManualClock

FACTS = {"machine": "a1", "board": "b", "cpu": "2 x c", "kernel": "6.18", "governor": "powersave"}
NOW_S = 1_800_000_000.0
IDLE = IdlePower(20.0, 19.0, 60.0)
PACKAGE = Channel("package-0", "cpu", "rapl")


def meters(root: str = "/sys/class/powercap", *channels: Channel) -> list[OpenMeter]:
    return [OpenMeter(RaplMeter(root), channels or (PACKAGE,))]


def memory(path: Path | None, now_s: float = NOW_S, **facts: str) -> IdleMemory:
    return IdleMemory(path, {**FACTS, **facts}, unix_clock_s=lambda: now_s)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file that is not there yet, in a folder that is not there yet."""
    return tmp_path / "idle" / "this.json"


@pytest.fixture
def kept(path: Path) -> Path:
    """The file after a run."""
    earlier = memory(path)
    assert earlier.recall(meters()) == {}
    earlier.keep({"package-0": [IDLE]})
    return path


def test_idle_power_is_there_for_the_next_run_when_it_was_kept(kept: Path) -> None:
    """With its age."""
    later = memory(kept, NOW_S + 7200)
    assert later.recall(meters()) == {"package-0": [IDLE]}
    assert later.age_seconds("package-0") == 7200


def test_age_is_that_of_the_newest_figure_when_states_were_learned_one_after_another(path: Path) -> None:
    """In the run that learned them and in the next; what is old of one state does not make the channel's figure old."""
    now_s = [NOW_S]
    running = IdleMemory(path, FACTS, unix_clock_s=lambda: now_s[-1])
    running.recall(meters())
    running.keep({"package-0": [replace(IDLE, state="P8")]})
    now_s.append(NOW_S + 7200)
    running.keep({"package-0": [replace(IDLE, state="P0")]})
    now_s.append(NOW_S + 7260)
    later = memory(path, NOW_S + 7260)
    later.recall(meters())
    assert (running.age_seconds("package-0"), later.age_seconds("package-0")) == (60, 60)


def test_file_is_the_users_alone_when_it_is_written(kept: Path) -> None:
    """What a machine draws is nobody else's business, and nothing half written is left behind."""
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert stat.S_IMODE(kept.parent.stat().st_mode) == 0o700
    assert list(kept.parent.iterdir()) == [kept]


def test_file_names_neither_the_machine_nor_a_password_when_it_is_written(path: Path) -> None:
    """The machine's id is confidential (machine-id(5)); an exporter's address may hold a password."""
    facts = machine_facts()
    meter = OpenMeter(ScaphandreMeter("http://user:s3cr3t@host:8080/metrics"), (PACKAGE,))
    each = IdleMemory(path, facts)
    each.recall([meter])
    each.keep({"package-0": [IDLE]})
    assert "s3cr3t" not in path.read_text()
    machine_id = Path("/etc/machine-id")
    if machine_id.exists():
        assert machine_id.read_text().strip() not in path.read_text()


@pytest.mark.parametrize("fact", list(FACTS))
def test_idle_power_is_not_believed_when_the_machine_is_another(kept: Path, fact: str) -> None:
    """Another machine, board, CPU, kernel or frequency governor."""
    assert memory(kept, **{fact: "another"}).recall(meters()) == {}


@pytest.mark.parametrize("age_seconds", [MAX_AGE_SECONDS + 1, -60])
def test_idle_power_is_not_believed_when_it_is_old_or_from_the_future(kept: Path, age_seconds: float) -> None:
    """The wall clock may have been set back."""
    assert memory(kept, NOW_S + age_seconds).recall(meters()) == {}


def test_idle_power_is_not_believed_when_the_counter_is_another(kept: Path) -> None:
    """Another channel, or the same name in another tree, of another device or behind another meter."""
    assert memory(kept).recall(meters("/another/tree")) == {}
    assert memory(kept).recall(meters("/sys/class/powercap", Channel("package-1", "cpu", "rapl"))) == {}
    assert memory(kept).recall(meters("/sys/class/powercap", replace(PACKAGE, resource="another"))) == {}
    assert memory(kept).recall([OpenMeter(ScaphandreMeter(), (PACKAGE,))]) == {}


def test_idle_power_that_is_given_or_estimated_is_not_kept(path: Path) -> None:
    """It is not learned."""
    given = Channel("package-0", "cpu", "rapl", idle_watts=18.0)
    guess = Channel("cpu-estimate", "cpu", "cpu-estimate", estimated=True)
    each = memory(path)
    each.recall(meters("/tree", given, guess))
    each.keep({"package-0": [IDLE], "cpu-estimate": [IDLE]})
    assert not path.exists()


def test_idle_power_is_not_kept_when_the_meter_does_not_say_what_it_reads(path: Path) -> None:
    """A user's own: the next time it may read another machine."""

    class Own(RaplMeter):
        __repr__ = object.__repr__

    each = memory(path)
    each.recall([OpenMeter(Own("/tree"), (PACKAGE,))])
    each.keep({"package-0": [IDLE]})
    assert not path.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"[" * 100_000,
        b'{"format": 99}',
        b'{"format": 1}',
        b'{"format": 1, "machine": [], "channels": {}}',
        json.dumps({"format": 1, "machine": FACTS, "channels": {"x": {"watts": 5}}}).encode(),
        json.dumps(
            {
                "format": 1,
                "machine": FACTS,
                "channels": {"x": {"watts": -5, "lowest_watts": 1, "seconds": 1, "learned_unix_s": NOW_S}},
            }
        ).encode(),
        b" " * (1 << 21),
        json.dumps(
            {
                "format": 1,
                "machine": FACTS,
                "channels": {"x": {"watts": 10**400, "lowest_watts": 1, "seconds": 1, "learned_unix_s": NOW_S}},
            }
        ).encode(),
    ],
    ids=range(12),
)
def test_file_is_replaced_when_it_cannot_be_used(path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """One line says so, however often it is tried; the next figure makes it whole again."""
    path.parent.mkdir()
    path.write_bytes(content)
    each = memory(path)
    with caplog.at_level(logging.INFO):
        assert each.recall(meters()) == {}
        each.keep({"package-0": [IDLE]})
    assert [str(path) in record.getMessage() for record in caplog.records] == [True]
    assert memory(path).recall(meters()) == {"package-0": [IDLE]}


def test_file_of_another_user_is_not_believed(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It could say anything. (Simulated: this process says that it is another user.)"""
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert memory(kept).recall(meters()) == {}


def test_nothing_happens_when_the_file_cannot_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A read-only home: one line, and it works on without."""
    (tmp_path / "file").touch()
    each = memory(tmp_path / "file" / "idle.json")
    with caplog.at_level(logging.INFO):
        each.recall(meters())
        each.keep({"package-0": [IDLE]})
        each.keep({"package-0": [IdlePower(30.0, 29.0, 60.0)]})
    assert len(caplog.records) == 1


def test_nothing_half_written_is_left_when_the_disk_is_full(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every minute's attempt would leave one more file; the figures so far stay. (The full disk is simulated.)"""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    each = memory(kept)
    each.recall(meters())
    monkeypatch.setattr(Path, "replace", refuse)
    each.keep({"package-0": [IdlePower(30.0, 29.0, 60.0)]})
    assert list(kept.parent.iterdir()) == [kept]
    assert memory(kept).recall(meters()) == {"package-0": [IDLE]}


def test_what_is_there_stays_when_it_is_no_file(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A device such as /dev/null, which root could replace: a named pipe stands for it here. One line says so."""
    path.parent.mkdir()
    os.mkfifo(path)
    each = memory(path)
    with caplog.at_level(logging.INFO):
        each.recall(meters())
        each.keep({"package-0": [IDLE]})
    assert stat.S_ISFIFO(path.stat().st_mode)
    assert list(path.parent.iterdir()) == [path]
    assert len(caplog.records) == 1


def test_no_descriptor_is_left_when_a_folder_is_named(tmp_path: Path) -> None:
    """Each minute's news would leave one more open."""
    each = memory(tmp_path)
    assert each.recall(meters()) == {}
    each.keep({"package-0": [IDLE]})
    assert open_below(tmp_path) == []


def test_file_is_written_only_when_there_is_news(kept: Path) -> None:
    """The same figure a minute later wears out no disk."""
    before = kept.stat().st_ino
    each = memory(kept, NOW_S + 60)
    each.recall(meters())
    each.keep({"package-0": [IdlePower(20.1, 19.0, 90.0)]})
    assert kept.stat().st_ino == before
    for watts in (21.0, 19.0):  # it may fall as well as rise
        each.keep({"package-0": [IdlePower(watts, 19.0, 90.0)]})
        assert memory(kept, NOW_S + 60).recall(meters()) == {"package-0": [IdlePower(watts, 19.0, 90.0)]}
    before = kept.stat().st_ino
    each.keep({"package-0": [IdlePower(19.0, 19.0, 90.0)]})
    assert kept.stat().st_ino == before


def test_idle_power_stays_known_when_it_is_learned_anew_and_is_as_before(kept: Path) -> None:
    """The day that counts is the last one on which it was seen."""
    each = memory(kept, NOW_S + MAX_AGE_SECONDS - 60)
    each.recall(meters())
    each.keep({"package-0": [IDLE]})
    assert memory(kept, NOW_S + MAX_AGE_SECONDS + 60).recall(meters()) == {"package-0": [IDLE]}


def test_file_holds_the_newest_figures_when_there_are_too_many(path: Path) -> None:
    """Trees that come and go would fill it for ever, and then leave no room."""
    many = [Channel(f"package-{number}", "cpu", "rapl") for number in range(256)]
    earlier = memory(path)
    earlier.recall(meters("/many", *many))
    earlier.keep({channel.id: [IDLE] for channel in many})
    later = memory(path, NOW_S + 60)
    later.recall(meters())
    later.keep({"package-0": [IDLE]})
    assert memory(path, NOW_S + 60).recall(meters()) == {"package-0": [IDLE]}
    assert len(json.loads(path.read_text())["channels"]) == 256


def test_each_state_has_its_figure_when_idle_power_has_states(path: Path) -> None:
    """A GPU's, by performance state."""
    slow, fast = IdlePower(15.0, 14.0, 60.0, "P8"), IdlePower(60.0, 55.0, 20.0, "P0 resident")
    gpu = Channel("gpu-0", "gpu", "nvml", resource="gpu:a")
    earlier = memory(path)
    earlier.recall(meters("/tree", gpu))
    earlier.keep({"gpu-0": [slow]})
    earlier.keep({"gpu-0": [slow, fast]})
    later = memory(path).recall(meters("/tree", gpu))
    assert sorted(later["gpu-0"], key=lambda idle: idle.watts) == [slow, fast]


def test_figures_of_other_channels_stay_when_one_is_written(kept: Path) -> None:
    """Several programs with different meters share the file."""
    other = memory(kept)
    other.recall(meters("/another/tree"))
    other.keep({"package-0": [IdlePower(5.0, 4.0, 60.0)]})
    assert memory(kept).recall(meters()) == {"package-0": [IDLE]}
    assert memory(kept).recall(meters("/another/tree")) == {"package-0": [IdlePower(5.0, 4.0, 60.0)]}


_WRITES = """
import sys
from pathlib import Path
from tests.instrument.test_idle_memory import IdlePower, memory, meters
for turn in range(150):
    each = memory(Path(sys.argv[1]))
    each.recall(meters())
    each.keep({"package-0": [IdlePower(20.0 + turn, 19.0, 60.0)]})
"""


def test_file_is_always_whole_when_several_processes_write_at_once(path: Path) -> None:
    """Readers see one writer's file or another's."""
    writers = [subprocess.Popen([sys.executable, "-c", _WRITES, str(path)]) for _ in range(3)]
    seen = 0
    while any(writer.poll() is None for writer in writers):
        if path.exists():
            assert json.loads(path.read_text())["format"] == 1
            seen += 1
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    assert seen > 10
    assert list(path.parent.iterdir()) == [path]


def test_file_of_a_machine_stands_in_the_users_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One for each machine that shares the home; none where there is no home."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    here, there = default_path(FACTS), default_path({**FACTS, "machine": "b2"})
    assert here is not None
    assert here.parent == tmp_path / "otel-llm-energy" / "idle"
    assert here != there
    assert here == default_path({**FACTS, "kernel": "7.0"})


def test_first_call_has_its_idle_power_when_an_earlier_run_kept_it(
    client: OpenAI, provider: TracerProvider, exporter: InMemorySpanExporter, powercap: PowercapTree, tmp_path: Path
) -> None:
    """A real call right after the meter is there; its method says where the idle power comes from."""
    path = tmp_path / "idle.json"
    earlier = IdleMemory(path, machine_facts())
    package, dram = Channel("package-0", "cpu", "rapl"), Channel("package-0/dram", "memory", "rapl")
    earlier.recall(meters(str(powercap.root), package, dram))
    earlier.keep({"package-0": [IDLE], "package-0/dram": [IdlePower(2.0, 1.9, 60.0)]})
    energy = otel_llm_energy.instrument(
        tracer_provider=provider, meters="rapl", powercap_root=powercap.root, idle_cache=path, detail="full"
    )
    try:
        until(lambda: bool(energy.status().channels))
        assert all(each.idle_origin == "cached" for each in energy.status().channels)
        assert "idle 20 W (cached " in str(energy.status())
        ask(client)
        energy.force_flush()
    finally:
        energy.uninstrument()
    (span,) = calls(exporter)
    attributes = span.attributes or {}
    assert 0 < attributes[names.ABOVE_IDLE_JOULES] < attributes[names.JOULES]
    assert attributes[names.METHOD] == "above-idle/equal-time/cached-idle"


# Measuring it on purpose


@dataclass
class Constant:
    """A meter of 20 W."""

    clock: ManualClock
    name: str = "constant"
    pace: Pace = field(default_factory=lambda: Pace(idle_seconds=1.0, open_seconds=0.05))

    def open(self) -> Sequence[Channel]:
        return [Channel("package-0", "cpu", self.name)]

    def read(self) -> Sequence[Reading]:
        now_ns = self.clock.now_ns
        return [Reading("package-0", 20 * now_ns // 1000, now_ns, now_ns)]

    def close(self) -> None: ...


class BusyCpus:
    """So many CPUs are busy all the time, with no server of ours."""

    def __init__(self, clock: ManualClock, busy_cpus: float) -> None:
        self.clock = clock
        self.busy_cpus = busy_cpus

    def watch(self, server: Server) -> None: ...

    def forget(self, server_id: str) -> None: ...

    def sample(self) -> ActivitySample:
        now_ns = self.clock.now_ns
        return ActivitySample("cpu", now_ns, round(self.busy_cpus * now_ns), {}, 2, 0, 0)

    def close(self) -> None: ...


class Bench:
    """A station without threads: whoever waits on its clock makes it read its meter."""

    def __init__(self, path: Path | None, busy_cpus: float = 0.1, *, discovery: Discovery | None = None) -> None:
        self.clock = ManualClock()
        self.books = Books(Ledger(self.clock.now_ns), clock_ns=self.clock)
        meter: Meter = Constant(self.clock)
        found = discovery or Discovery((OpenMeter(meter, tuple(meter.open())),), ())
        activity = BusyCpus(self.clock, busy_cpus)
        self.station = Station(
            self.books,
            MachineAccess(lambda: found, activity, _nobody),
            lambda: None,
            idle_memory=memory(path),
            clock_ns=self.clock,
        )
        self.station._find_meters()
        for reader in self.station.meters:
            reader._poller.stop()

    def sleep(self, seconds: float) -> None:
        self.clock.advance(seconds)
        for reader in self.station.meters:
            reader._poll()

    def measure(self, seconds: float = 4) -> dict[str, float]:
        return measure_idle(self.station, self.books.settle, seconds, clock_ns=self.clock, sleep=self.sleep)


def test_idle_power_is_measured_and_kept_when_nothing_calls(path: Path) -> None:
    """Watts by channel, and the next run has them."""
    bench = Bench(path)
    assert bench.measure() == {"package-0": pytest.approx(20.0)}
    later = memory(path).recall([OpenMeter(Constant(bench.clock), (Channel("package-0", "cpu", "constant"),))])
    assert later["package-0"][0].watts == pytest.approx(20.0)


def test_idle_power_is_not_measured_when_calls_are_open(path: Path) -> None:
    """Their work is not idle."""
    bench = Bench(path)
    bench.station.open(Claim(), "127.0.0.1", 8080, "chat", reports=None)
    with pytest.raises(MeterError, match="Calls are open"):
        bench.measure()
    assert not path.exists()


def test_idle_power_is_not_measured_when_a_call_comes_meanwhile(path: Path) -> None:
    """It is noticed even if it has ended again."""
    bench = Bench(path)
    sleep, claim = bench.sleep, Claim()

    def sleep_and_call(seconds: float) -> None:
        sleep(seconds)
        if claim.books is None:
            bench.station.open(claim, "127.0.0.1", 8080, "chat", reports=None)
            bench.books.close(claim, None)

    bench.sleep = sleep_and_call  # type: ignore[method-assign]
    with pytest.raises(MeterError) as error:
        bench.measure()
    assert error.value.reason == "calls-open"
    assert not path.exists()


def test_idle_power_is_not_measured_when_other_programs_are_busy(path: Path) -> None:
    """What the CPUs draw under load is not idle; the message says what to do."""
    with pytest.raises(MeterError, match="Stop them, or give idle_watts") as error:
        Bench(path, busy_cpus=1.9).measure()
    assert error.value.reason == "idle-under-load"
    assert not path.exists()


def test_measuring_idle_says_why_when_there_is_no_meter(path: Path) -> None:
    """In the words of the meter that was tried."""
    nothing = Discovery((), (LeftOut("rapl", "meter-permission", "May not be read."),))
    with pytest.raises(MeterError, match="May not be read") as error:
        Bench(path, discovery=nothing).measure()
    assert error.value.reason == "meter-permission"


def test_measuring_idle_says_why_when_it_is_known_already(path: Path) -> None:
    """A figure that the user gave is not learned."""
    clock = ManualClock()
    given = OpenMeter(Constant(clock), (Channel("package-0", "cpu", "constant", idle_watts=18.0),))
    with pytest.raises(MeterError, match="known already"):
        Bench(path, discovery=Discovery((given,), ())).measure()


def test_measure_idle_reads_the_real_counters_when_nothing_is_instrumented(
    powercap: PowercapTree, tmp_path: Path
) -> None:
    """The whole way: at least the 20 W that the counters add when no CPU is busy, or, on a busy machine, a refusal."""
    path = tmp_path / "idle.json"
    try:
        watts = otel_llm_energy.measure_idle(2, meters="rapl", powercap_root=powercap.root, idle_cache=path)
    except MeterError as error:
        assert error.reason == "idle-under-load"
        assert not path.exists()
    else:
        assert set(watts) == {"package-0", "package-0/dram"}
        assert watts["package-0"] > 10
        assert path.exists()


def test_no_meter_is_said_to_lag_when_idle_power_was_measured(
    powercap: PowercapTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was read only meanwhile; ever since, its last reading is older at each collection."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    monkeypatch.setattr(metrics, "get_meter_provider", lambda: provider)
    with suppress(MeterError):  # a busy machine is refused
        otel_llm_energy.measure_idle(1, meters="rapl", powercap_root=powercap.root, idle_cache="off")
    data = reader.get_metrics_data()
    assert data is not None
    said = [m for of in data.resource_metrics for scope in of.scope_metrics for m in scope.metrics]
    assert names.METERED.name in [each.name for each in said]
    assert not [each.data.data_points for each in said if each.name == names.METER_LAG.name]


@pytest.mark.parametrize("seconds", [0, -1, 4000, float("nan"), "10", None])
def test_measure_idle_refuses_a_time_that_makes_no_sense(seconds: Any) -> None:
    """In the words of every other setting."""
    with pytest.raises(otel_llm_energy.SettingError, match="Allowed: 1 to 3600"):
        otel_llm_energy.measure_idle(seconds)

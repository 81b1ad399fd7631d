"""The RAPL meter, over powercap trees as the kernel lays them out."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_llm_energy.meters import LeftOut, powercap
from otel_llm_energy.meters.base import MeterError
from otel_llm_energy.meters.powercap import RaplMeter
from tests.support.descriptors import of_file, open_below
from tests.support.powercap import MEMORY, PACKAGE, PowercapTree


def zone(
    root: Path,
    folder: str,
    name: str,
    energy_uj: int | bytes = 1,
    files: Mapping[str, int | str] = MappingProxyType({}),
) -> Path:
    """One folder of a tree; ``files`` are its further files."""
    path = root / folder
    path.mkdir(parents=True)
    (path / "name").write_text(f"{name}\n")
    (path / "energy_uj").write_bytes(energy_uj if isinstance(energy_uj, bytes) else f"{energy_uj}\n".encode())
    for file, content in files.items():
        (path / file).write_text(f"{content}\n")
    return path


def channel_ids(root: Path) -> list[str]:
    """What the meter finds there."""
    meter = RaplMeter(root)
    try:
        return [channel.id for channel in meter.open()]
    finally:
        meter.close()


def test_values_are_the_counters_when_the_tree_moves(manual_powercap: PowercapTree) -> None:
    """Each reading is the counter's own value, between two looks at the clock."""
    meter = RaplMeter(manual_powercap.root)
    channels = meter.open()
    assert [(channel.id, channel.component) for channel in channels] == [
        ("package-0", "cpu"),
        ("package-0/dram", "memory"),
    ]
    assert {channel.range_uj for channel in channels} == {manual_powercap.range_uj}
    for energy_uj in (0, 1_234_567, manual_powercap.range_uj - 1):
        manual_powercap.set_uj(PACKAGE, energy_uj)
        manual_powercap.set_uj(MEMORY, energy_uj // 10)
        readings = meter.read()
        assert [reading.energy_uj for reading in readings] == [energy_uj, energy_uj // 10]
        assert all(reading.earliest_ns < reading.latest_ns for reading in readings)
    meter.close()


def test_core_uncore_mmio_and_psys_are_left_out_when_there_are_packages(tmp_path: Path) -> None:
    """They are inside a package, repeat it, or hold it."""
    zone(tmp_path, "intel-rapl:0", "package-0")
    zone(tmp_path, "intel-rapl:0:0", "core")
    zone(tmp_path, "intel-rapl:0:1", "uncore")
    zone(tmp_path, "intel-rapl:0:2", "dram")
    zone(tmp_path, "intel-rapl:1", "psys")
    zone(tmp_path, "intel-rapl:2", "package-1")
    zone(tmp_path, "intel-rapl-mmio:0", "package-0")
    assert channel_ids(tmp_path) == ["package-0", "package-1", "package-0/dram"]


def test_memory_is_found_wherever_it_stands_among_the_parts(tmp_path: Path) -> None:
    """Its number is the driver's choice; that of a package that is not there is nobody's."""
    zone(tmp_path, "intel-rapl:0", "package-0")
    zone(tmp_path, "intel-rapl:0:1", "dram")
    zone(tmp_path, "intel-rapl:1", "package-1")
    zone(tmp_path, "intel-rapl:1:0", "dram")
    zone(tmp_path, "intel-rapl:2:0", "dram")
    assert channel_ids(tmp_path) == ["package-0", "package-1", "package-0/dram", "package-1/dram"]


def test_what_is_no_zone_is_left_out_when_it_stands_in_the_tree(tmp_path: Path) -> None:
    """A folder of another name, and one that does not say what it is."""
    zone(tmp_path, "intel-rapl:0", "package-0")
    zone(tmp_path, "intel-rapl:0-subzone", "package-0")
    zone(tmp_path, "intel-rapl:1", "package-1").joinpath("name").unlink()
    assert channel_ids(tmp_path) == ["package-0"]


def test_parts_are_found_when_they_lie_in_their_packages_folder(tmp_path: Path) -> None:
    """The device tree nests what /sys/class shows side by side; found in both places it counts once."""
    zone(tmp_path / "intel-rapl:0", "intel-rapl:0:0", "dram")
    (tmp_path / "intel-rapl:0" / "name").write_text("package-0\n")
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("5\n")
    assert channel_ids(tmp_path) == ["package-0", "package-0/dram"]
    (tmp_path / "intel-rapl:0:0").symlink_to(tmp_path / "intel-rapl:0" / "intel-rapl:0:0")
    assert channel_ids(tmp_path) == ["package-0", "package-0/dram"]


def test_psys_is_the_host_when_there_is_no_package(tmp_path: Path) -> None:
    """Some laptops have nothing else."""
    zone(tmp_path, "intel-rapl:0", "psys")
    zone(tmp_path, "intel-rapl:0:0", "core")
    zone(tmp_path, "intel-rapl:1", "another")
    (channel,) = RaplMeter(tmp_path).open()
    assert (channel.id, channel.component) == ("psys", "host")


def test_channels_have_names_of_their_own_when_the_tree_repeats_one(tmp_path: Path) -> None:
    """Two dies of one package may both be called package-0."""
    zone(tmp_path, "intel-rapl:0", "package-0")
    zone(tmp_path, "intel-rapl:1", "package-0")
    assert channel_ids(tmp_path) == ["package-0", "package-0#2"]


@pytest.mark.parametrize("files", [{}, {"max_energy_range_uj": 0}, {"max_energy_range_uj": "unknown"}])
def test_no_range_is_known_when_the_tree_tells_none(files: Mapping[str, int | str], tmp_path: Path) -> None:
    """A wrap is a gap then, and no energy is made up for it."""
    zone(tmp_path, "intel-rapl:0", "package-0", files=files)
    (channel,) = RaplMeter(tmp_path).open()
    assert channel.range_uj is None


LONG, SHORT = "constraint_0", "constraint_1"


@pytest.mark.parametrize(
    ("files", "limit_watts"),
    [
        ({f"{LONG}_name": "long_term", f"{LONG}_power_limit_uw": 65_000_000}, 65.0),
        (
            {
                f"{LONG}_name": "long_term",
                f"{LONG}_power_limit_uw": 65_000_000,
                f"{SHORT}_name": "short_term",
                f"{SHORT}_power_limit_uw": 120_000_000,
            },
            120.0,
        ),
        ({f"{LONG}_name": "long_term", f"{LONG}_power_limit_uw": 0, f"{LONG}_max_power_uw": 45_000_000}, 45.0),
        ({f"{LONG}_name": "long_term", f"{LONG}_max_power_uw": 95_000_000}, 95.0),
        (
            {
                f"{LONG}_name": "long_term",
                f"{LONG}_power_limit_uw": 15_000_000,
                f"{LONG}_max_power_uw": 65_000_000,
                f"{SHORT}_name": "short_term",
                f"{SHORT}_power_limit_uw": 20_000_000,
                f"{SHORT}_max_power_uw": 0,
            },
            65.0,
        ),
        ({f"{LONG}_name": "long_term", f"{LONG}_power_limit_uw": 0}, None),
        ({f"{LONG}_name": "long_term", f"{LONG}_power_limit_uw": 4_095_999_755_859}, None),
        ({f"{LONG}_name": "long_term", f"{LONG}_power_limit_uw": "watts"}, None),
        (
            {
                f"{LONG}_name": "long_term",
                f"{LONG}_power_limit_uw": 65_000_000,
                f"{SHORT}_name": "short_term",
                f"{SHORT}_power_limit_uw": 0,
            },
            None,
        ),
        ({}, None),
    ],
)
def test_the_limit_is_the_highest_enforced_one_when_it_makes_sense(
    tmp_path: Path, files: dict[str, int | str], limit_watts: float | None
) -> None:
    """A bound that the short-term limit breaks, or that a profile of power sets for a while, or nonsense, is none."""
    zone(tmp_path, "intel-rapl:0", "package-0", files=files)
    (channel,) = RaplMeter(tmp_path).open()
    assert channel.limit_watts == limit_watts


@pytest.mark.parametrize("root", ["nowhere", "."])
def test_an_error_says_so_when_there_is_no_tree(tmp_path: Path, root: str) -> None:
    """A missing and an empty folder are the same: no meter. The option is named that users of ``rapl`` have."""
    with pytest.raises(MeterError, match=r"no RAPL package.* \(powercap_root\)") as caught:
        RaplMeter(tmp_path / root).open()
    assert caught.value.reason == "meter-not-found"


def test_the_remedy_is_named_when_only_root_may_read(tmp_path: Path) -> None:
    """Since Linux 5.10 that is the usual case. The remedy is for all sockets of this tree, not for the first alone."""
    for package in range(2):
        zone(tmp_path, f"intel-rapl:{package}", f"package-{package}").joinpath("energy_uj").chmod(0)
    reason, _, message = opening_as_nobody(tmp_path).partition(" ")
    assert reason == "meter-permission"
    assert "`sudo chmod -R a+r ./intel-rapl*/`" in message
    assert LeftOut("rapl", reason, message).mend.startswith("sudo chmod -R a+r ./intel-rapl*/ ")


def opening_as_nobody(root: Path) -> str:
    """What a process that is not root is told; run as root, a child gives that up first."""
    root.chmod(0o755)
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        os.chdir(root)  # the folders above may be closed to others
        if os.geteuid() == 0:
            os.setuid(65534)
        try:
            RaplMeter(".").open()
        except MeterError as error:
            os.write(send, f"{error.reason} {error}".encode())
        os._exit(0)
    os.close(send)
    with os.fdopen(receive, encoding="utf-8") as answer:
        told = answer.read()
    os.waitpid(child, 0)
    return told


@given(st.binary(max_size=40))
def test_a_torn_value_is_left_out_when_the_other_counter_is_good(
    tmp_path_factory: pytest.TempPathFactory, torn: bytes
) -> None:
    """Whatever stands in one file, the other is read; a number comes out only if one went in."""
    root = tmp_path_factory.mktemp("tree")
    zone(root, "intel-rapl:0", "package-0", 7)
    zone(root, "intel-rapl:0:0", "dram", torn)
    meter = RaplMeter(root)
    meter.open()
    by_channel = {reading.channel_id: reading.energy_uj for reading in meter.read()}
    meter.close()
    assert by_channel.pop("package-0") == 7
    for energy_uj in by_channel.values():
        assert energy_uj == int(torn[:32]) >= 0


def test_a_lost_counter_is_named_once_when_the_others_are_read_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In the log; no figure is made up for it."""
    zone(tmp_path, "intel-rapl:0", "package-0", 7)
    memory = zone(tmp_path, "intel-rapl:0:0", "dram", 5)
    meter = RaplMeter(tmp_path)
    meter.open()
    (memory / "energy_uj").write_bytes(b"")
    for _ in range(3):
        assert [reading.channel_id for reading in meter.read()] == ["package-0"]
    meter.close()
    (record,) = caplog.records
    assert "package-0/dram gave no number" in record.getMessage()


def test_a_counter_is_read_again_when_its_driver_was_unloaded_and_came_back(tmp_path: Path) -> None:
    """What the kernel makes then is another file of the same name; that of before never gives a number again."""
    zone(tmp_path, "intel-rapl:0", "package-0", 7)
    memory = zone(tmp_path, "intel-rapl:0:0", "dram", 0)
    counter = memory / "energy_uj"
    counter.unlink()
    with subprocess.Popen(["sleep", "60"]) as driver:  # a file in /proc ends like one of a driver
        counter.symlink_to(f"/proc/{driver.pid}/oom_score")
        meter = RaplMeter(tmp_path)
        meter.open()
        assert len(meter.read()) == 2
        driver.kill()
    assert [reading.channel_id for reading in meter.read()] == ["package-0"]
    counter.unlink()
    counter.write_text("9\n")
    assert [reading.energy_uj for reading in meter.read()] == [7, 9]
    meter.close()


@pytest.mark.parametrize("reused", [False, True])
def test_a_counter_is_read_on_when_the_app_closed_its_descriptor(tmp_path: Path, reused: bool) -> None:
    """A daemon closes all that it has; the number may be another's by now, who keeps it."""
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 7) / "energy_uj"
    meter = RaplMeter(tmp_path)
    meter.open()
    number = of_file(counter)
    os.close(number)
    with socket.socket() if reused else nullcontext() as other:
        assert other is None or other.fileno() == number
        assert [reading.energy_uj for reading in (*meter.read(), *meter.read())] == [7, 7]
        assert other is None or os.fstat(number)
        meter.close()


def test_a_lost_counter_is_not_read_from_what_the_app_opens_in_its_place(tmp_path: Path) -> None:
    """The lowest free number is given to whatever is opened next."""
    zone(tmp_path, "intel-rapl:0", "package-0", 7)
    memory = zone(tmp_path, "intel-rapl:0:0", "dram", 3)
    meter = RaplMeter(tmp_path)
    meter.open()
    number = of_file(memory / "energy_uj")
    (memory / "energy_uj").write_text("")
    (memory / "energy_uj").unlink()
    assert [reading.channel_id for reading in meter.read()] == ["package-0"]
    (tmp_path / "apps").write_text("4711\n")
    with (tmp_path / "apps").open() as apps:
        assert apps.fileno() == number
        assert [reading.channel_id for reading in meter.read()] == ["package-0"]
    meter.close()


@pytest.mark.parametrize("is_whole", [True, False])
def test_no_descriptor_is_left_when_the_meter_is_closed_or_could_not_be_opened(is_whole: bool, tmp_path: Path) -> None:
    """It is opened anew after each failure of a tree, for as long as the app runs."""
    zone(tmp_path, "intel-rapl:0", "package-0")
    second = zone(tmp_path, "intel-rapl:1", "package-1")
    meter = RaplMeter(tmp_path)
    if is_whole:
        meter.open()
        assert len(meter.open()) == 2
        assert len(open_below(tmp_path)) == 2
        meter.close()
    else:
        (second / "energy_uj").unlink()
        with pytest.raises(MeterError) as caught:
            meter.open()
        assert caught.value.reason == "meter-unreadable"
    assert open_below(tmp_path) == []


def test_an_error_is_raised_when_no_counter_gives_a_number(tmp_path: Path) -> None:
    """An unloaded driver is no energy of zero."""
    zone(tmp_path, "intel-rapl:0", "package-0", b"")
    meter = RaplMeter(tmp_path)
    meter.open()
    with pytest.raises(MeterError) as caught:
        meter.read()
    assert caught.value.reason == "meter-unreadable"


def test_an_error_is_raised_when_the_meter_is_closed(manual_powercap: PowercapTree) -> None:
    """Reading after close touches no descriptor, which may by now be another file's."""
    meter = RaplMeter(manual_powercap.root)
    meter.open()
    meter.close()
    meter.close()
    with pytest.raises(MeterError) as caught:
        meter.read()
    assert caught.value.reason == "meter-closed"
    assert [channel.id for channel in meter.open()] == ["package-0", "package-0/dram"]
    meter.close()


def test_the_age_of_a_value_is_part_of_its_time_when_it_is_read(manual_powercap: PowercapTree) -> None:
    """The hardware refreshes the counter every millisecond: a value may be that old."""
    meter = RaplMeter(manual_powercap.root, clock_ns=lambda: 5_000_000_000)
    meter.open()
    assert {(reading.earliest_ns, reading.latest_ns) for reading in meter.read()} == {(4_999_000_000, 5_000_000_000)}
    meter.close()


def test_nothing_comes_of_a_reading_within_a_reading(manual_powercap: PowercapTree) -> None:
    """As a call's edge within a garbage collection is: counters have one buffer, and it is in use."""
    within: list[object] = []

    def clock_ns() -> int:
        if not within:
            within.append(None)
            within[0] = meter.read()
        return 5_000_000_000

    meter = RaplMeter(manual_powercap.root, clock_ns=clock_ns)
    meter.open()
    manual_powercap.set_uj(PACKAGE, 42)
    assert meter.read()[0].energy_uj == 42
    assert within == [()]
    assert meter.read()
    meter.close()


def test_every_reading_is_whole_when_threads_read_while_others_reopen(manual_powercap: PowercapTree) -> None:
    """Readings at calls' edges come from any thread, also while the meter is closed and opened again."""
    manual_powercap.set_uj(PACKAGE, 1_000)
    manual_powercap.set_uj(MEMORY, 2_000)
    meter = RaplMeter(manual_powercap.root)
    meter.open()
    odd: list[object] = []

    def read() -> None:
        for _ in range(2_000):
            try:
                got = [reading.energy_uj for reading in meter.read()]
            except MeterError as error:
                got = [1_000, 2_000] if error.reason == "meter-closed" else [-1]
            if got != [1_000, 2_000]:
                odd.append(got)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        meter.close()
        meter.open()
    meter.close()
    assert odd == []


def test_the_kernels_tree_is_the_default_when_no_root_is_named() -> None:
    """A root that the user names is told from the default one, for it is trusted in a guest."""
    assert RaplMeter().root == powercap.POWERCAP_ROOT
    assert not RaplMeter().root_is_named
    assert RaplMeter("/somewhere").root_is_named


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_child_reads_the_counters_when_another_thread_read_them_at_the_fork(manual_powercap: PowercapTree) -> None:
    """It has no such thread, which would let go of the lock."""
    meter = RaplMeter(manual_powercap.root)
    meter.open()
    held, let_go = threading.Event(), threading.Event()

    def read_slowly() -> None:
        with meter._lock:
            held.set()
            assert let_go.wait(30)

    other = threading.Thread(target=read_slowly)
    other.start()
    assert held.wait(10)
    child = os.fork()
    if not child:
        signal.alarm(10)  # ends it where it waits
        meter.open()
        os._exit(0 if meter.read() else 1)
    status = os.waitpid(child, 0)[1]
    let_go.set()
    other.join()
    assert os.waitstatus_to_exitcode(status) == 0

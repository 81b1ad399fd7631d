"""What must be the same whichever Scaphandre answers: on recorded answers of each version that could be had."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from otel_llm_energy.ledger.counter import Bucket, Counter
from otel_llm_energy.meters import ScaphandreMeter, ScaphandreStream
from otel_llm_energy.meters.exposition import parse
from otel_llm_energy.meters.scaphandre_processes import POWER, PROCESS_FAMILIES, processes
from otel_llm_energy.meters.tail import RecordFile
from otel_llm_energy.quantities import Channel, ProcessPower, Reading
from otel_llm_energy.servers import Selector
from tests.meters.exporters import ManualClock, exporter
from tests.meters.record_fixtures import CONTAINER, FIXTURES, NEIGHBOUR, RANGE_UJ, SERVER

THREADS_LISTED = {"1.0.0": False, "1.0.2": True}
"""Whether a version lists threads beside their process: 1.0.0 has sysinfo 0.28, Debian's 1.0.2 has 0.30."""


@pytest.fixture(params=list(THREADS_LISTED))
def version(request: pytest.FixtureRequest) -> str:
    """Of Scaphandre."""
    return str(request.param)


def folder(version: str) -> Path:
    """Of its recorded answers; those of the version that all tests run lie at the top."""
    return FIXTURES if version == "1.0.2" else FIXTURES / version


def pages(version: str, name: str) -> list[bytes]:
    """Its recorded answers in a row, 2.2 s apart."""
    return [file.read_bytes() for file in sorted(folder(version).glob(f"{name}-[0-9].txt"))]


def read_all(answers: list[bytes]) -> list[list[Reading]]:
    """What the meter reads from them."""
    with exporter(*answers) as served:
        clock = ManualClock()
        meter = ScaphandreMeter(served.url, clock_ns=clock)
        meter.open()
        readings = []
        for _ in answers:
            readings.append(list(meter.read()))
            clock.advance(2.2)
    return readings


def buckets(readings: list[list[Reading]], channel_id: str, range_uj: int | None = None) -> list[Bucket]:
    """What the ledger makes of them."""
    counter = Counter(Channel(channel_id, "cpu", "scaphandre", range_uj=range_uj))
    of_channel = [reading for each in readings for reading in each if reading.channel_id == channel_id]
    found = [bucket for reading in of_channel if (bucket := counter.read(reading))]
    assert not [bucket.gap for bucket in found if bucket.gap]
    return found


def joules(found: list[Bucket]) -> float:
    """The sum of them."""
    return sum(bucket.energy_nj for bucket in found) / 1e9


def test_each_counter_has_its_power_when_there_are_two_sockets(version: str) -> None:
    """Labels come in any order; the third answer, asked for too early, repeats the second and is left out."""
    readings = read_all(pages(version, "two-sockets"))
    assert [len(each) for each in readings] == [4, 4, 0]
    for channel_id, watts in (("package-0", 30), ("package-0/dram", 3), ("package-1", 20), ("package-1/dram", 2)):
        assert joules(buckets(readings, channel_id)) == pytest.approx(watts * 2.2, rel=0.02)


def test_psys_is_no_socket_when_there_are_no_domains(version: str) -> None:
    """Both list it as one."""
    assert {reading.channel_id for each in read_all(pages(version, "psys")) for reading in each} == {"package-0"}


def test_no_energy_is_lost_when_a_counter_wraps(version: str) -> None:
    """The host's power is missing in that answer, and all processes' with it; the counter's range tells the rest."""
    answers = pages(version, "wrap-one-of-two")
    found = buckets(read_all(answers), "package-0", RANGE_UJ)
    assert joules(found) == pytest.approx(30 * 2.2 * (len(answers) - 1), rel=0.02)


def test_a_socket_that_cannot_be_read_stands_still(version: str) -> None:
    """Both repeat its last value as if it were alive; never made up."""
    values = [
        {reading.channel_id: reading.energy_uj for reading in each} for each in read_all(pages(version, "unreadable"))
    ]
    assert values[1]["package-1"] == values[3]["package-1"]
    assert values[1]["package-0"] < values[3]["package-0"]


def test_each_process_counts_once_whether_its_threads_are_listed_or_not(version: str) -> None:
    """Its power stands to its neighbour's as the CPU time that the kernel gave both, to a tick of each."""
    page = pages(version, "processes")[2]
    lines = [sample for sample in parse([page], {POWER}) if SERVER in sample.labels["cmdline"]]
    assert (len(lines) > 1) is THREADS_LISTED[version]
    found = processes(parse([page], PROCESS_FAMILIES))
    before, after = json.loads((folder(version) / "processes-cpu-ns.json").read_text())[1:]
    used_ns = {name: after[name] - before[name] for name in after}
    ratio = of(SERVER, found).microwatts / of(NEIGHBOUR, found).microwatts
    assert ratio == pytest.approx(used_ns[SERVER] / used_ns[NEIGHBOUR], rel=2 * 10e6 / used_ns[NEIGHBOUR])


def of(script: str, found: tuple[ProcessPower, ...]) -> ProcessPower:
    """The one process that runs this script."""
    (process,) = [each for each in found if script in each.cmdline]
    return process


def test_records_have_the_power_when_the_file_is_followed(version: str, tmp_path: Path) -> None:
    """1.0.0 puts nothing between two records, 1.0.2 a comma."""
    written = folder(version) / "stream.json"
    assert written.read_text().startswith("[") is (version == "1.0.2")
    records = RecordFile(written).read()
    times_ns = [int(record["host"]["timestamp"] * 1e9) for record in records if record]
    assert len(times_ns) == len(records) >= 8
    followed = tmp_path / "stream.json"
    followed.write_bytes(b"")
    clock = ManualClock()
    ahead_ns = times_ns[-1] - clock.now_ns
    followed.write_bytes(written.read_bytes()[: written.read_bytes().index(b'{"host":', 10)])
    meter = ScaphandreStream(followed, clock_ns=clock, unix_clock_ns=lambda: clock.now_ns + ahead_ns)
    meter.open()
    readings = [meter.read()]
    followed.write_bytes(written.read_bytes())
    readings.append(meter.read())
    found = buckets([[*each] for each in readings], "host")
    assert joules(found) == pytest.approx(55 * (times_ns[-1] - times_ns[0]) / 1e9, rel=0.02)


@pytest.mark.parametrize(
    "named",
    [f"container:{CONTAINER}", "container:ollama", "label:container_label_maintainer=llm team", "container:{id}"],
)
def test_the_server_is_named_by_its_container_when_the_exporter_labels_it(named: str) -> None:
    """By its name, its Compose service, any label of it, or the first digits of its id; the neighbour has none."""
    page = pages("1.0.0", "containers")[1]
    found = processes(parse([page], PROCESS_FAMILIES))
    container_id = of(SERVER, found).labels["container_id"]
    selector = Selector.parse(named.replace("{id}", container_id[:12]))
    assert [selector.matches(each) for each in (of(SERVER, found), of(NEIGHBOUR, found))] == [True, False]
    assert of(SERVER, found).microwatts > 1e6

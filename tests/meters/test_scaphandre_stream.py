"""The meter that follows Scaphandre's JSON file, on records of the real Scaphandre."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_llm_energy.ledger.counter import Counter
from otel_llm_energy.meters import MeterError, ScaphandreStream, meter_at
from otel_llm_energy.meters.tail import RecordFile
from otel_llm_energy.quantities import Channel, Reading
from tests.support.descriptors import of_file

FIXTURE = Path(__file__).with_name("fixtures") / "stream.json"
RECORDED: bytes = FIXTURE.read_bytes()
RECORDS: list[dict[str, Any]] = json.loads(RECORDED)
START_UNIX_NS = int(RECORDS[0]["host"]["timestamp"] * 1e9)
WATTS = 55.0
"""What the counters of the recording rose by: 30 + 3 + 20 + 2 W."""


class Clocks:
    """The two clocks of a machine, which move when told."""

    def __init__(self) -> None:
        self.monotonic_ns = 1_000_000_000
        self.unix_ns = START_UNIX_NS

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.monotonic_ns += round(seconds * 1e9)
        self.unix_ns += round(seconds * 1e9)

    def to_record(self, index: int) -> None:
        """Let time pass until just after a record was written."""
        self.advance((int(RECORDS[index]["host"]["timestamp"] * 1e9) - self.unix_ns) / 1e9 + 0.001)

    def meter(self, path: Path) -> ScaphandreStream:
        """A meter that goes by these clocks."""
        return ScaphandreStream(path, clock_ns=lambda: self.monotonic_ns, unix_clock_ns=lambda: self.unix_ns)


class Writer:
    """Writes the recorded file, as far as a test wants it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ends = [RECORDED.index(b'{"host"', end + 1) for end in self._starts()[:-1]] + [len(RECORDED)]

    @staticmethod
    def _starts() -> list[int]:
        starts, at = [], RECORDED.find(b'{"host":')
        while at >= 0:
            starts.append(at)
            at = RECORDED.find(b'{"host":', at + 1)
        return starts

    def up_to(self, records: int, extra_bytes: int = 0) -> None:
        """So many records and the beginning of the next."""
        self.path.write_bytes(RECORDED[: self.ends[records - 1] + extra_bytes])


@pytest.fixture
def writer(tmp_path: Path) -> Writer:
    """Of a file that is still empty."""
    return Writer(tmp_path / "scaphandre.json")


def followed(clocks: Clocks, writer: Writer, records: int) -> tuple[ScaphandreStream, list[Reading]]:
    """A meter that was opened just after so many records were written, and has read them."""
    clocks.to_record(records - 1)
    writer.up_to(records)
    meter = clocks.meter(writer.path)
    meter.open()
    return meter, list(meter.read())


def joules(readings: list[Reading]) -> float:
    """What the ledger makes of them: the sum of all buckets, J; gaps count nothing."""
    counter = Counter(Channel("host", "host", "scaphandre-stream"))
    buckets = [bucket for reading in readings if (bucket := counter.read(reading))]
    return sum(bucket.energy_nj for bucket in buckets if bucket.gap is None) / 1e9


def gaps(readings: list[Reading]) -> list[str]:
    """The gaps that the ledger makes of them."""
    counter = Counter(Channel("host", "host", "scaphandre-stream"))
    buckets = [bucket for reading in readings if (bucket := counter.read(reading))]
    return [bucket.gap for bucket in buckets if bucket.gap is not None]


def seconds(first: int, last: int) -> float:
    """Between two records."""
    return float(RECORDS[last]["host"]["timestamp"] - RECORDS[first]["host"]["timestamp"])


def test_each_record_is_a_reading_when_the_file_grows(writer: Writer) -> None:
    """Power times time, at the record's own time on our clock: the recorded 55 W, to the JSON's own error."""
    clocks = Clocks()
    clocks.to_record(1)
    writer.up_to(2)
    meter = clocks.meter(writer.path)
    (channel,) = meter.open()
    assert (channel.id, channel.component, channel.meter) == ("host", "host", "scaphandre-stream")
    readings = list(meter.read())
    for count in range(3, len(RECORDS) + 1):
        clocks.to_record(count - 1)
        writer.up_to(count)
        new = meter.read()
        assert len(new) == 1
        assert new[0].earliest_ns <= clocks.monotonic_ns - 1_000_000 <= new[0].latest_ns
        readings += new
    assert joules(readings) == pytest.approx(WATTS * seconds(1, len(RECORDS) - 1), rel=0.01)
    assert gaps(readings) == []


def test_all_readings_come_at_once_when_many_records_were_written_meanwhile(writer: Writer) -> None:
    """An app that hardly ever looks loses nothing."""
    clocks = Clocks()
    writer.up_to(1)
    meter = clocks.meter(writer.path)
    meter.open()
    writer.up_to(len(RECORDS))
    clocks.to_record(len(RECORDS) - 1)
    readings = meter.read()
    assert len(readings) == len(RECORDS)
    assert meter.read() == []


@given(st.lists(st.integers(0, len(RECORDED)), max_size=12))
def test_readings_are_the_same_wherever_the_writer_was_when_we_looked(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int]
) -> None:
    """A record that is half written is waited for, and never lost or taken twice."""
    path = tmp_path_factory.mktemp("stream") / "scaphandre.json"
    path.write_bytes(b"")
    file = RecordFile(path)
    got: list[Any] = []
    with path.open("ab", buffering=0) as out:
        for size in [*sorted(sizes), len(RECORDED)]:
            out.write(RECORDED[out.tell() : size])
            got += file.read()
    file.close()
    assert got == RECORDS


def test_records_of_a_former_release_are_read_when_nothing_parts_them(tmp_path: Path) -> None:
    """Up to 1.0.0 records were written one after the other, without array or comma."""
    path = tmp_path / "concatenated.json"
    path.write_bytes(b"".join(json.dumps(record, separators=(",", ":")).encode() for record in RECORDS))
    file = RecordFile(path)
    assert file.read() == RECORDS
    file.close()


def test_energy_is_a_gap_when_scaphandre_has_no_figure(writer: Writer) -> None:
    """0 W in a first record, or while a counter wraps, is no figure; never zero joules."""
    clocks = Clocks()
    records = [dict(record) for record in RECORDS[:6]]
    records[3] = {**records[3], "host": {**records[3]["host"], "consumption": 0.0}, "consumers": [], "sockets": []}
    writer.path.write_bytes(json.dumps(records[:1], separators=(",", ":")).encode()[:-1])
    meter = clocks.meter(writer.path)
    meter.open()
    writer.path.write_bytes(json.dumps(records, separators=(",", ":")).encode())
    clocks.to_record(5)
    readings = list(meter.read())
    assert gaps(readings) == ["reset"]
    assert joules(readings) == pytest.approx(WATTS * (seconds(0, 2) + seconds(3, 5)), rel=0.03)


@pytest.mark.parametrize("timestamp", [None, "soon", -1.0])
def test_energy_is_a_gap_when_a_record_has_no_time(timestamp: object, writer: Writer) -> None:
    """What it was drawn in is not known."""
    clocks = Clocks()
    records = [dict(record) for record in RECORDS[:6]]
    records[3] = {**records[3], "host": {**records[3]["host"], "timestamp": timestamp}}
    writer.up_to(1)
    meter = clocks.meter(writer.path)
    meter.open()
    writer.path.write_text(json.dumps(records, separators=(",", ":")))
    clocks.to_record(5)
    readings = list(meter.read())
    assert gaps(readings) == ["reset"]
    assert joules(readings) == pytest.approx(WATTS * (seconds(0, 2) + seconds(4, 5)), rel=0.03)


@pytest.mark.parametrize("how", ["replaced", "begun again"])
def test_the_new_file_is_followed_with_a_gap_when_the_old_one_ends(how: str, writer: Writer) -> None:
    """logrotate puts a new file in its place, or Scaphandre is started again and begins the same file anew."""
    clocks = Clocks()
    meter, readings = followed(clocks, writer, 5)
    rest = RECORDED[writer.ends[6] :]
    if how == "replaced":
        new = writer.path.with_suffix(".new")
        new.write_bytes(rest)
        new.replace(writer.path)
    else:
        writer.path.write_bytes(b"[" + rest[: writer.ends[2] - writer.ends[0]])
    clocks.to_record(len(RECORDS) - 1)
    readings += meter.read()
    assert len(readings) > 1
    assert gaps(readings) == ["reset"]


@pytest.mark.parametrize("looked", [False, True], ids=["unseen", "seen"])
def test_records_go_on_when_the_file_is_cut_off_under_its_writer(looked: bool, writer: Writer) -> None:
    """logrotate's copytruncate: the writer goes on at its old place, and what was before reads as zeros."""
    clocks = Clocks()
    meter, readings = followed(clocks, writer, 5)
    os.truncate(writer.path, 0)
    if looked:
        readings += meter.read()
    with writer.path.open("r+b") as out:
        out.seek(writer.ends[4])
        out.write(RECORDED[writer.ends[4] :])
    clocks.to_record(len(RECORDS) - 1)
    readings += meter.read()
    assert len(readings) == len(RECORDS) - 4
    assert gaps(readings) == (["reset"] if looked else [])


def test_the_file_is_followed_on_when_a_daemon_closed_all_and_opened_files_of_its_own(writer: Writer) -> None:
    """What is at the number now is neither read nor closed."""
    clocks = Clocks()
    meter, readings = followed(clocks, writer, 3)
    number = of_file(writer.path)
    os.close(number)
    with socket.socket() as other:
        assert other.fileno() == number
        clocks.to_record(3)
        writer.up_to(4)
        readings += meter.read()
        meter.close()
        assert os.fstat(number)
    assert gaps(readings) == []
    assert joules(readings) == pytest.approx(WATTS * seconds(2, 3), rel=0.01)


def test_what_is_whole_is_read_when_a_record_is_not(tmp_path: Path) -> None:
    """Power was lost in mid-record: the next one is read, and marked as not joined to the last."""
    whole = [json.dumps(record, separators=(",", ":")).encode() for record in RECORDS[:3]]
    path = tmp_path / "torn.json"
    path.write_bytes(b"[" + whole[0] + b"," + whole[1][:200] + b"\n" + whole[2])
    file = RecordFile(path)
    assert file.read() == [RECORDS[0], None, RECORDS[2]]
    file.close()


def test_the_last_records_are_enough_when_the_file_is_large(tmp_path: Path) -> None:
    """A file of many hours is neither read nor kept as a whole."""
    record = json.dumps(RECORDS[5], separators=(",", ":")).encode()
    path = tmp_path / "large.json"
    path.write_bytes(b"[" + b",".join([record] * (6_000_000 // len(record))))
    file = RecordFile(path)
    first = file.read()
    assert 0 < len(first) <= (1 << 20) // len(record)
    with path.open("ab") as out:
        out.write(b"," + b",".join([record] * (6_000_000 // len(record))))
    later = file.read()
    assert 0 < len(later) <= (1 << 20) // len(record) + 1
    assert later[0] is None, "what was skipped is missing"
    file.close()


def dated_later(seconds: float) -> list[dict[str, Any]]:
    """The records, as a wall clock has dated them that was set."""
    return [
        {**record, "host": {**record["host"], "timestamp": record["host"]["timestamp"] + seconds}} for record in RECORDS
    ]


@pytest.mark.parametrize("step_seconds", [3600, 0.1, -0.1, -3600])
def test_the_wall_clock_may_step_without_any_energy_being_made_up(step_seconds: float, writer: Writer) -> None:
    """Between two records, forward or back: one gap, and times on our clock go on evenly."""
    clocks = Clocks()
    stepped = dated_later(step_seconds)
    meter, readings = followed(clocks, writer, 4)
    clocks.to_record(7)
    clocks.unix_ns += round(step_seconds * 1e9)
    writer.path.write_text(json.dumps([*RECORDS[:4], *stepped[4:8]], separators=(",", ":")))
    readings += meter.read()
    assert gaps(readings) == ["reset"]
    assert (readings[-1].latest_ns - readings[0].latest_ns) / 1e9 == pytest.approx(seconds(3, 7), abs=0.01)
    assert joules(readings) == pytest.approx(WATTS * seconds(4, 7), rel=0.03)


@pytest.mark.parametrize("step_seconds", [-3600, 3600])
def test_readings_go_on_when_the_wall_clock_is_set_before_a_record_was_read(step_seconds: int, writer: Writer) -> None:
    """Its time is an hour to come by then: taken for that, it would keep out all others until the hour is over.

    Or it is an hour ago, before that of the last one.
    """
    clocks = Clocks()
    meter, readings = followed(clocks, writer, 4)
    clocks.to_record(4)
    clocks.unix_ns += step_seconds * 1_000_000_000
    writer.up_to(5)
    readings += meter.read()
    stepped = dated_later(step_seconds)
    clocks.advance(seconds(4, 8))
    writer.path.write_text(json.dumps([*RECORDS[:5], *stepped[5:9]], separators=(",", ":")))
    readings += meter.read()
    assert gaps(readings) == ["reset"]
    assert (readings[-1].latest_ns - readings[0].latest_ns) / 1e9 == pytest.approx(seconds(3, 8), abs=0.01)
    assert joules(readings) == pytest.approx(WATTS * seconds(5, 8), rel=0.03)


def test_the_meter_says_so_when_scaphandre_has_stopped(writer: Writer) -> None:
    """At opening and later; and it goes on by itself when records come again."""
    clocks = Clocks()
    meter, _ = followed(clocks, writer, 2)
    clocks.advance(11)
    for attempt in (meter.read, clocks.meter(writer.path).open):
        with pytest.raises(MeterError, match="still running") as caught:
            attempt()
        assert caught.value.reason == "meter-stale"
    writer.up_to(4)
    assert len(meter.read()) == 2


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "meter-not-found"), (b"", "meter-garbage"), (b"[{}]", "meter-garbage")]
)
def test_an_error_says_what_to_do_when_there_is_nothing_to_read(
    content: bytes | None, reason: str, tmp_path: Path
) -> None:
    """No file, no record; and after close the meter says that it is closed."""
    path = tmp_path / "scaphandre.json"
    if content is not None:
        path.write_bytes(content)
    meter = ScaphandreStream(path)
    with pytest.raises(MeterError, match="scaphandre json") as caught:
        meter.open()
    assert caught.value.reason == reason
    with pytest.raises(MeterError) as caught:
        meter.read()
    assert caught.value.reason == "meter-closed"


def test_a_pipe_is_refused_when_it_is_named_as_the_file(tmp_path: Path) -> None:
    """Opening one would hang until somebody writes."""
    os.mkfifo(tmp_path / "pipe")
    before = set(os.listdir("/proc/self/fd"))  # noqa: PTH208 - numbers
    with pytest.raises(MeterError) as caught:
        ScaphandreStream(tmp_path / "pipe").open()
    assert caught.value.reason == "meter-unreadable"
    assert set(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_nothing_is_left_open_when_the_meter_is_closed(writer: Writer) -> None:
    """Nor after an open that failed, nor of a file that was replaced."""
    before = set(os.listdir("/proc/self/fd"))  # noqa: PTH208 - numbers
    clocks = Clocks()
    clocks.to_record(1)
    writer.up_to(2)
    meter = clocks.meter(writer.path)
    for _ in range(3):
        meter.open()
    while_open = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for _ in range(3):
        writer.path.rename(writer.path.with_suffix(".old"))
        writer.up_to(2)
        meter.read()
    assert len(os.listdir("/proc/self/fd")) == while_open  # noqa: PTH208
    meter.close()
    clocks.advance(1000)
    with pytest.raises(MeterError):
        meter.open()
    assert set(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_a_url_names_the_file_when_it_is_given_as_text(tmp_path: Path) -> None:
    """So that the environment can name it."""
    meter = meter_at("file:///run/a%20b.json")
    assert isinstance(meter, ScaphandreStream)
    assert meter.path == Path("/run/a b.json")
    for wrong in ("file://host/run/a.json", "file:run", "file:///a.json#ollama"):
        with pytest.raises(ValueError, match="file:///"):
            meter_at(wrong)

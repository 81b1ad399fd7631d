"""The meter that asks a Prometheus, on what other stores with its API answered that got a real host's samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from otel_llm_energy.meters import MeterError, PrometheusMeter
from otel_llm_energy.quantities import Reading
from tests.meters.prometheus_replay import Replay, Time, replaying

PACKAGE_WATTS = 30.0
CHANNELS = {"package-0", "package-1", "package-0/dram", "package-1/dram"}


@pytest.fixture
def victoria_metrics() -> Iterator[Replay]:
    """It scrapes the host itself."""
    with replaying("victoria-metrics") as replay:
        yield replay


@pytest.fixture
def remote_write() -> Iterator[Replay]:
    """A Thanos Receive to which a Prometheus writes each scrape in several parts."""
    with replaying("thanos-receive") as replay:
        yield replay


def read_until_all_is_read(time: Time, meter: PrometheusMeter, replay: Replay) -> list[list[Reading]]:
    """What each poll finds, to the end of the recording."""
    found = []
    end = replay.times("one:8080")[-1]
    while replay.now < end:
        time.pass_by(meter.pace.open_seconds)
        found.append(list(meter.read()))
    return [readings for readings in found if readings]


def of_package(readings: Sequence[Reading]) -> list[Reading]:
    return [reading for reading in readings if reading.channel_id == "package-0"]


@pytest.mark.parametrize("ahead_seconds", [0.0, -3600.0])
def test_readings_are_dated_by_the_scrape_when_victoria_metrics_is_asked(
    ahead_seconds: float, victoria_metrics: Replay
) -> None:
    """By its ``now()``: its ``time()`` was half a minute ago."""
    victoria_metrics.ahead_seconds = ahead_seconds
    scraped = victoria_metrics.times("one:8080")
    victoria_metrics.now = scraped[2] + 2.5
    time = Time(victoria_metrics)
    meter = time.meter()
    assert {channel.id for channel in meter.open()} == CHANNELS
    first = meter.read()
    time.pass_by(6.0)
    readings = meter.read()
    assert {reading.channel_id for reading in readings} == CHANNELS
    before, after = of_package(first)[-1], of_package(readings)[-1]
    watts = (after.energy_uj - before.energy_uj) / (after.latest_ns - before.latest_ns) * 1e3
    assert watts == pytest.approx(PACKAGE_WATTS, rel=0.05)
    scraped_ns = time.clock.now_ns - round((victoria_metrics.now - scraped[3]) * 1e9)  # the next one is not shown yet
    assert abs(after.earliest_ns - scraped_ns) < 50_000_000
    assert after.latest_ns - after.earliest_ns < 300_000_000


def test_a_clock_that_is_none_is_an_error_when_victoria_metrics_is_asked(victoria_metrics: Replay) -> None:
    """As with a Prometheus."""
    victoria_metrics.now = victoria_metrics.times("one:8080")[3]
    meter = Time(victoria_metrics).meter()
    victoria_metrics.clocks["now()"]["answer"]["data"]["result"] = []
    with pytest.raises(MeterError) as caught:
        meter.open()
    assert caught.value.reason == "meter-garbage"


def test_a_scrape_is_used_later_when_a_new_process_was_seen_late_in_the_one_before(victoria_metrics: Replay) -> None:
    """VictoriaMetrics showed the counters of the sixth scrape at once, and the program that was new in it 3 s later."""
    victoria_metrics.now = victoria_metrics.times("one:8080")[4] + 3.5
    time = Time(victoria_metrics)
    meter = time.meter(process="exe:python3.11")
    meter.open()
    ages_seconds = []
    for readings in read_until_all_is_read(time, meter, victoria_metrics):
        ages_seconds += [(time.clock.now_ns - reading.latest_ns) / 1e9 for reading in of_package(readings)]
    assert min(ages_seconds[1:]) > 3.5
    new = [any(each.exe.endswith("python3.11") for each in power.processes) for power in meter.host_powers()]
    assert new == [False, True, True, True]
    assert meter.pace.delay_seconds > 3.0 + 3.5, "an interval, and until a scrape is whole"


def test_spans_are_held_longer_when_a_store_shows_scrapes_late(victoria_metrics: Replay) -> None:
    """A reading of this instant may take an interval and as long as one took before: VictoriaMetrics took up to 5 s."""
    victoria_metrics.now = victoria_metrics.times("one:8080")[2] + 2.0
    time = Time(victoria_metrics)
    meter = time.meter()
    meter.open()
    read_until_all_is_read(time, meter, victoria_metrics)
    assert 3.0 + 3.5 < meter.pace.delay_seconds < 3.0 + 5.0


def test_every_scrape_has_the_hosts_power_when_scrapes_come_in_parts(remote_write: Replay) -> None:
    """After the first one that was seen to grow a scrape is used only when it is as old as that one was then."""
    remote_write.now = remote_write.times("one:8080")[1] + 1.8
    time = Time(remote_write)
    meter = time.meter(process="scaphandre")
    meter.open()
    found = read_until_all_is_read(time, meter, remote_write)
    assert all({reading.channel_id for reading in readings} == CHANNELS for readings in found)
    powers = [power.microwatts for power in meter.host_powers()]
    assert len(powers) >= 8
    assert None not in powers


def test_all_counters_are_found_when_the_newest_scrape_is_there_in_part(remote_write: Replay) -> None:
    """The one before it had them. A remote write of several shards sends series in any order."""
    newest = remote_write.times("one:8080")[7]
    for each in remote_write.series:
        late = each["metric"]["__name__"] != "scaph_host_energy_microjoules"
        each["values"] = [[at, text, 3.0 * late if at == newest else age] for at, text, age in each["values"]]
    remote_write.now = newest + 0.6
    meter = Time(remote_write).meter()
    assert {channel.id for channel in meter.open()} == CHANNELS


@pytest.mark.parametrize("later", [False, True])
def test_an_error_says_what_the_store_warns_of_when_it_has_no_samples(later: bool, remote_write: Replay) -> None:
    """Thanos Query 0.42.4, its sidecar gone; it says so beside an answer that is empty."""
    remote_write.now = remote_write.times("one:8080")[3]
    time = Time(remote_write)
    meter = time.meter()
    if later:
        meter.open()
        time.pass_by(60.0)
    remote_write.series = []
    remote_write.warnings = ['fetch series for {cluster="lab"} Addr: 127.0.0.1:58099 rpc error: code = Unavailable']
    with pytest.raises(MeterError, match=r"It warns: fetch series for .*code = Unavailable") as caught:
        meter.read() if later else meter.open()
    assert caught.value.reason == ("meter-stale" if later else "meter-no-data")

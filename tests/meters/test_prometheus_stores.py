"""The meter that asks a Prometheus, on what other stores with its API answered that got a real host's samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from otel_llm_energy.meters import MeterError
from otel_llm_energy.quantities import Reading
from tests.meters.prometheus_replay import Replay, Time, replaying

PACKAGE_WATTS = 30.0
CHANNELS = {"package-0", "package-1", "package-0/dram", "package-1/dram"}


@pytest.fixture
def victoria_metrics() -> Iterator[Replay]:
    """It scrapes the host itself."""
    with replaying("victoria-metrics") as replay:
        yield replay


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

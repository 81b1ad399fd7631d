"""The Scaphandre meter against the real exporter."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import requests

from otel_llm_energy.meters import MeterError, ScaphandreMeter, ScaphandreStream
from tests.support.backends import Scaphandre, streaming_scaphandre
from tests.support.feeder import feeding
from tests.support.powercap import MEMORY, PACKAGE, PowercapTree, PowerModel
from tests.support.waiting import until


def test_readings_agree_with_the_counters_when_the_exporter_is_real(
    scaphandre: Scaphandre, powercap: PowercapTree
) -> None:
    """Each reading is a value that the counter really had between its earliest and latest instant."""
    meter = ScaphandreMeter(scaphandre.url)
    channels = {"package-0": PACKAGE, "package-0/dram": MEMORY}
    assert {channel.id for channel in meter.open()} == set(channels)
    meter.read()
    for _ in range(2):
        before_uj = {zone: powercap.read_uj(zone) for zone in channels.values()}
        time.sleep(2.2)
        before_ns = time.monotonic_ns()
        before_uj = {zone: powercap.read_uj(zone) for zone in channels.values()}
        readings = meter.read()
        after_uj = {zone: powercap.read_uj(zone) for zone in channels.values()}
        assert {reading.channel_id for reading in readings} == set(channels)
        for reading in readings:
            zone = channels[reading.channel_id]
            assert before_uj[zone] <= reading.energy_uj <= after_uj[zone]
            assert before_ns <= reading.earliest_ns <= reading.latest_ns <= time.monotonic_ns()


def test_a_stale_answer_is_left_out_when_another_client_asks_just_before_us(scaphandre: Scaphandre) -> None:
    """Two requests within 2 s of each other: the real exporter repeats itself, and the meter notices."""
    meter = ScaphandreMeter(scaphandre.url)
    meter.open()
    assert meter.read()
    time.sleep(1.2)
    requests.get(scaphandre.url, timeout=10)
    time.sleep(1.05)
    assert meter.read() == []


def test_the_other_clients_request_dates_the_reading_when_it_refreshed_the_exporter(scaphandre: Scaphandre) -> None:
    """The real exporter's power says when another client made it refresh, some 0.2 s before we asked."""
    meter = ScaphandreMeter(scaphandre.url)
    meter.open()
    meter.read()
    time.sleep(2.25)
    assert meter.read()
    time.sleep(2.05)
    asked_ns = time.monotonic_ns()
    requests.get(scaphandre.url, timeout=10)
    answered_ns = time.monotonic_ns()
    time.sleep(0.2)
    readings = meter.read()
    assert readings
    for reading in readings:
        assert reading.earliest_ns <= answered_ns
        assert reading.latest_ns >= asked_ns
        assert reading.latest_ns - reading.earliest_ns < 300_000_000


def test_the_stream_agrees_with_the_counters_when_scaphandre_is_real(scaphandre_program: Path, tmp_path: Path) -> None:
    """Over 3 s at steps of 250 ms: the power is that of the counters, which goes on evenly whatever else runs."""
    written = tmp_path / "scaphandre.json"
    model = PowerModel(watts_per_cpu=0.0)
    with feeding(tmp_path / "powercap", model) as powercap, streaming_scaphandre(powercap.root, written):
        meter = ScaphandreStream(written)
        until(lambda: _opens(meter))
        meter.read()
        at = time.monotonic_ns()
        time.sleep(3)
        readings = meter.read()
    assert len(readings) >= 6
    length_ns = readings[-1].latest_ns - readings[0].latest_ns
    watts = (readings[-1].energy_uj - readings[0].energy_uj) / length_ns * 1e3
    assert readings[0].latest_ns >= at
    assert watts == pytest.approx(model.total_watts(0), rel=0.1)


def _opens(meter: ScaphandreStream) -> bool:
    try:
        meter.open()
    except MeterError:
        return False
    return True

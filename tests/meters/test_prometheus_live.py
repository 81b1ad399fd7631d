"""The Prometheus meter against the real Prometheus that scrapes the real Scaphandre."""

from __future__ import annotations

import json
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from otel_llm_energy.meters import MeterError, PrometheusMeter
from otel_llm_energy.quantities import Reading
from tests.support.backends import Scaphandre, running_prometheus
from tests.support.powercap import PACKAGE, PowercapTree
from tests.support.waiting import until

pytestmark = pytest.mark.e2e

CONFIG = """\
scrape_configs:
  - job_name: scaphandre
    scrape_interval: 3s
    static_configs: [{{targets: {targets}, labels: {{node: gpu-1}}}}]
"""


def test_readings_are_what_the_counters_were_when_prometheus_and_scaphandre_are_real(
    scaphandre: Scaphandre, powercap: PowercapTree, tmp_path: Path
) -> None:
    """A counter never shows more than it has now, nor less than it had at the reading's earliest instant."""
    config = tmp_path / "prometheus.yml"
    config.write_text(CONFIG.format(targets=json.dumps([urlsplit(scaphandre.url).netloc])))
    seen: list[tuple[int, int]] = []  # when, what the counter was then
    got: list[Reading] = []
    with running_prometheus(config, tmp_path) as prometheus:
        meter = PrometheusMeter(prometheus.url, labels={"node": "gpu-1"}, process="scaphandre")
        until(lambda: _opens(meter))

        def read() -> bool:
            seen.append((time.monotonic_ns(), powercap.read_uj(PACKAGE)))
            got.extend(reading for reading in meter.read() if reading.channel_id == "package-0")
            return len(got) >= 2

        until(read)
    for reading in got:
        before_uj = max((uj for at_ns, uj in seen if at_ns <= reading.earliest_ns), default=0)
        after_uj = min((uj for at_ns, uj in seen if at_ns >= reading.latest_ns), default=powercap.read_uj(PACKAGE))
        assert before_uj <= reading.energy_uj <= after_uj
    assert got[-1].latest_ns - got[-1].earliest_ns < 1_000_000_000, "dated by the scrape, not by the poll"
    assert any(power.microwatts for power in meter.host_powers())


def test_a_wrong_query_is_an_error_when_prometheus_is_real(tmp_path: Path) -> None:
    """No series: it says what to configure."""
    config = tmp_path / "prometheus.yml"
    config.write_text("scrape_configs: []\n")
    with running_prometheus(config, tmp_path) as prometheus, pytest.raises(MeterError) as caught:
        PrometheusMeter(prometheus.url, labels={"node": 'a "quoted" \\ name'}).open()
    assert caught.value.reason == "meter-no-data"


def _opens(meter: PrometheusMeter) -> bool:
    try:
        meter.open()
    except MeterError as error:
        assert error.reason == "meter-no-data", error
        time.sleep(0.2)
        return False
    return True

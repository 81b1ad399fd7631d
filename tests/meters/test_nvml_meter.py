"""NVIDIA GPUs, through the real bindings and a library that plays the driver. NO GPU WAS MEASURED: there was none."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from otel_llm_energy.ledger.counter import Counter
from otel_llm_energy.meters import MeterError, NvmlMeter, discover
from otel_llm_energy.meters.nvml import POWER_SCALE_ERROR, REFRESH_NS, nvidia_driver_is_there
from tests.meters.exporters import exporter
from tests.support.fake_nvml import VARIABLE, FakeDriver
from tests.support.powercap import PowercapTree
from tests.tracing.fakes import ManualClock

NOT_SUPPORTED, NO_PERMISSION, NOT_FOUND, NO_DRIVER, LOST, UNKNOWN = 3, 4, 6, 9, 15, 999
MS = 1_000_000


@pytest.fixture
def driver(gpu_driver: FakeDriver) -> FakeDriver:
    return gpu_driver


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def meter(driver: FakeDriver, clock: ManualClock) -> Iterator[NvmlMeter]:
    meter = NvmlMeter(clock_ns=clock)
    yield meter
    meter.close()


def test_each_gpu_is_a_channel_with_its_enforced_limit(driver: FakeDriver, meter: NvmlMeter) -> None:
    """Named by index, its activity by what names the card for ever."""
    driver.say(count=2, gpu1_energy_mj=1)
    first, second = meter.open()
    assert (first.id, first.component, first.meter, first.resource) == ("gpu-0", "gpu", "nvml", "gpu:GPU-fake-0")
    assert (first.limit_watts, first.scale_error) == (300.0, 0.0)
    assert (second.id, second.limit_watts) == ("gpu-1", None)


def test_reading_is_the_counter_in_microjoules_and_may_be_as_old_as_a_refresh(
    meter: NvmlMeter, clock: ManualClock
) -> None:
    """What was there before is not known: the counter may have been refreshed up to 100 ms ago."""
    meter.open()
    (reading,) = meter.read()
    assert (reading.channel_id, reading.energy_uj) == ("gpu-0", 5_000_000_000)
    assert (reading.earliest_ns, reading.latest_ns) == (clock.now_ns - REFRESH_NS, clock.now_ns)


def test_only_readings_that_changed_are_kept_when_it_is_polled(
    driver: FakeDriver, meter: NvmlMeter, clock: ManualClock
) -> None:
    """Polled every 20 ms, a new value was refreshed since the poll before: the instant is known to 20 ms."""
    meter.open()
    meter.read()
    for _ in range(4):
        clock.advance(0.02)
        assert meter.read() == []
    clock.advance(0.02)
    driver.say(gpu0_energy_mj=5_030_000)
    (reading,) = meter.read()
    assert reading.energy_uj == 5_030_000_000
    assert (reading.earliest_ns, reading.latest_ns) == (clock.now_ns - 20 * MS, clock.now_ns)


def test_reading_is_no_older_than_a_refresh_when_it_is_seldom_polled(
    driver: FakeDriver, meter: NvmlMeter, clock: ManualClock
) -> None:
    """Once a second, while nothing calls."""
    meter.open()
    meter.read()
    clock.advance(1)
    driver.say(gpu0_energy_mj=5_050_000)
    (reading,) = meter.read()
    assert reading.earliest_ns == clock.now_ns - REFRESH_NS


def test_reading_tells_the_state_on_which_idle_power_depends(
    driver: FakeDriver, meter: NvmlMeter, clock: ManualClock
) -> None:
    """Performance state, and whether a model may be in its memory; both may be unknown."""
    meter.open()
    seen = []
    for energy_mj, answers in enumerate(
        [
            {"gpu0_pstate": 8},
            {"gpu0_pids": 4711},
            {"gpu0_pstate": 0},
            {"gpu0_pids_error": NO_PERMISSION, "gpu0_pstate": None},
        ]
    ):
        clock.advance(1)
        driver.say(gpu0_energy_mj=energy_mj, **answers)
        seen += [reading.state for reading in meter.read()]
    assert seen == ["P8", "P8 resident", "P0 resident", "P?"]


def test_power_is_integrated_when_a_card_has_no_counter(
    driver: FakeDriver, meter: NvmlMeter, clock: ManualClock
) -> None:
    """By trapezoids, with the error that says so."""
    driver.say(gpu0_energy_mj=None)
    (channel,) = meter.open()
    assert channel.scale_error == POWER_SCALE_ERROR
    meter.read()
    for power_mw in (50_000, 150_000, 150_000):
        driver.say(gpu0_power_mw=power_mw)
        clock.advance(0.5)
        (reading,) = meter.read()
    assert reading.energy_uj == 25_000_000 + 50_000_000 + 75_000_000


def test_no_power_is_made_up_when_a_card_without_a_counter_did_not_answer_for_a_while(
    driver: FakeDriver, meter: NvmlMeter, clock: ManualClock
) -> None:
    """What it drew in that minute nobody knows: for the ledger a gap, and from then on it counts again."""
    driver.say(gpu0_energy_mj=None)
    (channel,) = meter.open()
    counter = Counter(channel)
    readings = [*meter.read()]
    for seconds, problem in ((0.5, None), (1, LOST), (59, None), (0.5, None)):
        clock.advance(seconds)
        driver.say(gpu0_error=problem)
        with nullcontext() if problem is None else pytest.raises(MeterError):
            readings += meter.read()
    buckets = [bucket for reading in readings if (bucket := counter.read(reading))]
    assert [(bucket.gap, bucket.energy_nj) for bucket in buckets] == [
        (None, 25_000_000_000),
        ("reset", 0),
        (None, 25_000_000_000),
    ]


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ({"count": None}, "gpu-no-driver"),
        ({"init_error": NO_PERMISSION}, "meter-permission"),
        ({"init_error": UNKNOWN}, "gpu-error"),
        ({"count": 0}, "meter-not-found"),
        ({"gpu0_handle_error": LOST}, "gpu-lost"),
        ({"gpu0_error": LOST}, "gpu-lost"),
        ({"gpu0_energy_mj": None, "gpu0_power_mw": None}, "gpu-unsupported"),
        ({"gpu0_energy_mj_error": NO_PERMISSION}, "meter-permission"),
        ({"gpu0_mig": 1}, "gpu-mig"),
    ],
)
def test_meter_says_why_when_no_gpu_can_be_read(
    driver: FakeDriver, meter: NvmlMeter, answers: dict[str, object], reason: str
) -> None:
    """A reason for the span and a sentence for people; never another exception."""
    driver.say(**answers)
    with pytest.raises(MeterError) as error:
        meter.open()
    assert error.value.reason == reason
    assert len(str(error.value)) > 20


def test_other_gpus_are_read_when_one_cannot_be(driver: FakeDriver, meter: NvmlMeter) -> None:
    """One that is split into instances counts for all of them together."""
    driver.say(count=3, gpu0_mig=1, gpu1_energy_mj=7, gpu2_handle_error=LOST)
    assert [channel.id for channel in meter.open()] == ["gpu-1"]


def test_reading_fails_with_a_reason_when_a_gpu_is_lost(driver: FakeDriver, meter: NvmlMeter) -> None:
    """It may come back: the meter stays open."""
    meter.open()
    meter.read()
    driver.say(gpu0_error=LOST)
    with pytest.raises(MeterError) as error:
        meter.read()
    assert error.value.reason == "gpu-lost"
    assert "GPU 0 (Fake GPU)" in str(error.value)
    driver.say(gpu0_error=None, gpu0_energy_mj=6_000_000)
    assert len(meter.read()) == 1


def test_other_gpus_are_read_on_when_one_is_lost(
    driver: FakeDriver, meter: NvmlMeter, caplog: pytest.LogCaptureFixture
) -> None:
    """In the log once; no figure is made up for it, and it counts again when it comes back."""
    driver.say(count=2, gpu1_energy_mj=1)
    meter.open()
    meter.read()
    driver.say(gpu0_error=LOST)
    for energy_mj in (2, 3):
        driver.say(gpu1_energy_mj=energy_mj)
        assert [reading.channel_id for reading in meter.read()] == ["gpu-1"]
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "GPU 0" in record.getMessage()
    driver.say(gpu0_error=None, gpu0_energy_mj=6_000_000)
    assert [reading.channel_id for reading in meter.read()] == ["gpu-0"]


def test_meter_can_be_opened_again_when_it_was_closed(meter: NvmlMeter) -> None:
    """After a fork, or another `instrument()`; closed, it says so."""
    meter.open()
    meter.close()
    meter.close()
    with pytest.raises(MeterError) as error:
        meter.read()
    assert error.value.reason == "meter-closed"
    meter.open()
    assert len(meter.read()) == 1


_OPENS = """
from otel_llm_energy.meters import MeterError, NvmlMeter
try:
    NvmlMeter().open()
except MeterError as error:
    print(error.reason, error)
"""


def _opening(code: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=60
    ).stdout


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this machine has NVIDIA's driver")
def test_meter_says_why_when_the_machine_has_no_driver() -> None:
    """The real bindings, and no library at all."""
    assert _opening(_OPENS).startswith("gpu-no-driver nvmlInit: NVML says NVML Shared Library Not Found.")


def test_meter_says_what_to_install_when_the_bindings_are_missing() -> None:
    """GPUs are an extra."""
    said = _opening("import sys; sys.modules['pynvml'] = None" + _OPENS)
    assert said.startswith("nvml-not-installed")
    assert "pip install 'otel-llm-energy[nvidia]'" in said


# Discovery


@pytest.fixture
def dev(tmp_path: Path) -> Path:
    """A /dev with NVIDIA's driver."""
    folder = tmp_path / "dev"
    folder.mkdir()
    (folder / "nvidiactl").touch()
    return folder


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """The /proc of a machine of bare metal."""
    folder = tmp_path / "proc"
    folder.mkdir()
    (folder / "cpuinfo").write_text("flags : fpu\n")
    return folder


def test_gpus_stand_beside_the_cpu_when_there_is_a_driver(
    driver: FakeDriver, manual_powercap: PowercapTree, dev: Path, proc: Path
) -> None:
    """No joule of a GPU is in a CPU's counters."""
    found = discover(proc=proc, dev=dev, default_powercap_root=manual_powercap.root)
    assert [channel.id for opened in found.meters for channel in opened.channels] == [
        "package-0",
        "package-0/dram",
        "gpu-0",
    ]
    assert found.left_out == ()


@pytest.mark.parametrize(("device", "is_there"), [("nvidiactl", True), ("dxg", True), ("nvidia-caps", False)])
def test_driver_is_there_when_its_device_is(device: str, is_there: bool, tmp_path: Path) -> None:
    """Windows' GPUs have one of their own in WSL."""
    (tmp_path / device).touch()
    assert nvidia_driver_is_there(tmp_path) is is_there


def test_gpus_are_not_looked_for_when_there_is_no_driver(
    driver: FakeDriver, manual_powercap: PowercapTree, tmp_path: Path, proc: Path
) -> None:
    """Most machines have none, and need no line that says so."""
    found = discover(proc=proc, dev=tmp_path, default_powercap_root=manual_powercap.root)
    assert [opened.meter.name for opened in found.meters] == ["rapl"]
    assert found.left_out == ()


def test_discovery_says_why_when_there_is_a_driver_and_its_gpus_cannot_be_read(
    driver: FakeDriver, manual_powercap: PowercapTree, dev: Path, proc: Path
) -> None:
    """The CPU is measured all the same."""
    driver.say(gpu0_mig=1)
    found = discover(proc=proc, dev=dev, default_powercap_root=manual_powercap.root)
    assert [opened.meter.name for opened in found.meters] == ["rapl"]
    assert [(left.name, left.reason) for left in found.left_out] == [("nvml", "gpu-mig")]


def test_no_estimate_of_the_cpu_stands_beside_measured_gpus(driver: FakeDriver, dev: Path, proc: Path) -> None:
    """Their sum would be neither."""
    with exporter(b"") as nothing:
        found = discover(proc=proc, dev=dev, default_powercap_root=proc, scaphandre_url=nothing.url)
    assert [opened.meter.name for opened in found.meters] == ["nvml"]

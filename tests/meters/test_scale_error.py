"""What a meter's scale may be off by is a part of the joules, or it is refused where it is given."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from otel_llm_energy import (
    CpuEstimate,
    NvmlMeter,
    PrometheusMeter,
    RaplMeter,
    ScaphandreMeter,
    ScaphandreStream,
)
from tests.support.powercap import PowercapTree

_METERS: tuple[Callable[..., object], ...] = (
    RaplMeter,
    ScaphandreMeter,
    lambda **given: ScaphandreStream("/run/scaphandre.json", **given),
    lambda **given: PrometheusMeter("http://localhost:9090", **given),
    NvmlMeter,
    CpuEstimate,
)


@pytest.mark.parametrize("meter", _METERS)
@pytest.mark.parametrize("value", [-0.05, 1, 5, float("nan"), "0.05", None])
def test_meter_is_refused_when_its_scale_error_is_no_part(meter: Callable[..., object], value: object) -> None:
    """Percent (5) would make every bound useless, a negative one bounds that are no bounds, a text no bills at all."""
    with pytest.raises(ValueError, match=r"^scale_error cannot be .* Allowed: from 0 to below 1, 0\.05 for 5 %\.$"):
        meter(scale_error=value)


@pytest.mark.parametrize("meter", _METERS)
def test_meter_is_made_when_its_scale_error_is_a_part(meter: Callable[..., object]) -> None:
    """None at all, and nearly all."""
    assert meter(scale_error=0)
    assert meter(scale_error=0.99)


def test_channels_have_the_scale_error_that_was_given(tmp_path: Path, manual_powercap: PowercapTree) -> None:
    """Bounds are made of it."""
    record = {"host": {"consumption": 1.0, "timestamp": time.time()}}
    (tmp_path / "stream.json").write_text(json.dumps([record]))
    for meter in (
        RaplMeter(manual_powercap.root, scale_error=0.05),
        ScaphandreStream(tmp_path / "stream.json", scale_error=0.05),
    ):
        assert {channel.scale_error for channel in meter.open()} == {0.05}
        meter.close()


def test_error_names_the_keyword_when_it_is_that_of_power() -> None:
    """GPUs have one for counters and one for power."""
    with pytest.raises(ValueError, match=r"^power_scale_error cannot be 5\."):
        NvmlMeter(power_scale_error=5)

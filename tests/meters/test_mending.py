"""What would bring a meter back: a line for this meter, on this machine, or none."""

from __future__ import annotations

from pathlib import Path

import pytest

from otel_llm_energy.meters import LeftOut, PrometheusMeter, discover
from otel_llm_energy.meters.scaphandre import SCAPHANDRE_URL
from tests.support.children import free_port


def left_out(meter: str) -> LeftOut:
    """What is said of it when it is the only one that is wanted."""
    (one,) = discover([meter]).left_out
    return one


def test_a_file_is_not_taken_for_counters_when_it_is_not_there() -> None:
    """The message says which program writes it; the folder of RAPL has nothing to do with it."""
    one = left_out("file:///nonexistent.json")
    assert (one.reason, one.mend) == ("meter-not-found", "")
    assert "scaphandre json" in one.message


def test_the_writer_of_a_file_is_named_when_its_figures_are_old() -> None:
    """It was Scaphandre's, and is written on; its path is as a shell takes it."""
    mend = LeftOut("scaphandre-stream", "meter-stale", "/run/power use.json: the newest record is old.").mend
    assert mend.endswith("--file '/run/power use.json' &")


def test_no_file_is_written_over_when_it_holds_something_else(tmp_path: Path) -> None:
    """Whoever named a wrong one is not given the line that destroys it; an exporter's address would not help either."""
    (tmp_path / "notes.json").write_text("{}")
    one = left_out(f"file://{tmp_path}/notes.json")
    assert one.reason == "meter-garbage"
    assert one.mend.startswith("scaphandre json --step 0 --step-nano 500000000 --file NEW.json &")
    assert str(tmp_path) not in one.mend


def test_nothing_is_said_to_mend_a_prometheus_when_it_is_down() -> None:
    """An exporter that were started here would not answer in its place."""
    one = left_out(f"prometheus+http://127.0.0.1:{free_port()}")
    assert (one.name, one.reason, one.mend) == ("prometheus", "meter-refused", "")


def test_a_stale_prometheus_is_not_told_to_write_a_file() -> None:
    """Its message says where to look."""
    assert LeftOut(PrometheusMeter.name, "meter-stale", "http://host:9090: the newest sample is old.").mend == ""


def test_gpus_are_not_taken_for_counters_when_there_is_none() -> None:
    """The reason is the same as that of RAPL, the remedy is not."""
    assert LeftOut("nvml", "meter-not-found", "The driver knows no GPU.").mend == ""
    assert LeftOut("nvml", "meter-permission", "nvmlInit: NVML says no.").mend == ""


@pytest.mark.parametrize(
    ("url", "line"),
    [
        (SCAPHANDRE_URL, "scaphandre prometheus --port 8080 &"),
        ("http://127.0.0.1:9999/metrics", "scaphandre prometheus --port 9999 &"),
        ("http://gpu-1:8080/metrics", ""),
    ],
)
def test_the_exporter_is_started_at_its_address_when_that_is_this_machines(url: str, line: str) -> None:
    """One that is started here would not answer elsewhere."""
    mend = LeftOut("scaphandre", "meter-refused", f"{url}: no connection.").mend
    assert mend.partition("   ")[0] == line


def test_the_setting_that_was_used_is_named_when_an_address_was_given() -> None:
    """The address of the name ``scaphandre`` changes nothing for a meter that was given by its own."""
    one = left_out(f"http://127.0.0.1:{free_port()}/metrics")
    assert "OTEL_LLM_ENERGY_METERS=http://" in one.mend
    assert "OTEL_LLM_ENERGY_SCAPHANDRE_URL" not in one.mend
    assert "OTEL_LLM_ENERGY_SCAPHANDRE_URL" in LeftOut(one.name, one.reason, one.message).mend

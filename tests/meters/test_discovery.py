"""Which meters are taken, and what is said of the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from otel_llm_energy.meters import CpuEstimate, Discovery, Meter, Pace, RaplMeter, ScaphandreMeter, discover, in_guest
from otel_llm_energy.quantities import Channel, Component, Reading
from tests.meters.exporters import exporter
from tests.support.children import free_port
from tests.support.powercap import PowercapTree

BARE_METAL = "processor : 0\nflags : fpu vme de pse\n"
GUEST = "processor : 0\nflags : fpu vme hypervisor de\n"
PAGE = b'scaph_socket_energy_microjoules{socket_id="0"} 5000000\nscaph_host_energy_microjoules 5000000\n'


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """The /proc of a machine of bare metal."""
    folder = tmp_path / "proc"
    (folder / "self").mkdir(parents=True)
    (folder / "cpuinfo").write_text(BARE_METAL)
    (folder / "self" / "mounts").write_text("proc /proc proc rw 0 0\n")
    return folder


@pytest.fixture
def refused() -> str:
    """An address where no exporter is."""
    return f"http://127.0.0.1:{free_port()}/metrics"


def names(discovery: Discovery) -> list[str]:
    """The names of what is read, after closing it."""
    for opened in discovery.meters:
        opened.meter.close()
    return [opened.meter.name for opened in discovery.meters]


def reasons(discovery: Discovery) -> dict[str, str]:
    """Why the others are not."""
    return {left.name: left.reason for left in discovery.left_out}


def test_rapl_is_taken_alone_when_it_works(proc: Path, manual_powercap: PowercapTree) -> None:
    """What works best is enough: the others would count the same joules, and Scaphandre is not even asked."""
    with exporter(PAGE) as served:
        found = discover(scaphandre_url=served.url, proc=proc, default_powercap_root=manual_powercap.root)
        assert served.requests == []
    assert names(found) == ["rapl"]
    assert found.left_out == ()


def test_scaphandre_is_taken_when_there_is_no_rapl(proc: Path, tmp_path: Path) -> None:
    """The second best, and why not the best."""
    with exporter(PAGE) as served:
        found = discover(scaphandre_url=served.url, proc=proc, default_powercap_root=tmp_path)
        assert names(found) == ["scaphandre"]
    assert reasons(found) == {"rapl": "meter-not-found"}


def test_an_estimate_is_taken_when_nothing_measures(proc: Path, tmp_path: Path, refused: str) -> None:
    """It is the last resort, and labelled."""
    found = discover(scaphandre_url=refused, proc=proc, default_powercap_root=tmp_path)
    assert names(found) == ["cpu-estimate"]
    assert all(channel.estimated for opened in found.meters for channel in opened.channels)
    assert reasons(found) == {"rapl": "meter-not-found", "scaphandre": "meter-refused"}


def test_rapl_is_refused_when_a_guest_sees_the_default_root(
    proc: Path, manual_powercap: PowercapTree, refused: str
) -> None:
    """The whole host's counter would bill us for our neighbours."""
    (proc / "cpuinfo").write_text(GUEST)
    found = discover(["rapl"], proc=proc, default_powercap_root=manual_powercap.root)
    assert found.meters == ()
    assert found.reason == "guest-cpu"
    assert "powercap_root" in found.left_out[0].message


def test_rapl_is_trusted_when_the_user_of_a_guest_names_the_root(proc: Path, manual_powercap: PowercapTree) -> None:
    """By argument or as a meter: who names a root knows whose counters it holds."""
    (proc / "cpuinfo").write_text(GUEST)
    assert names(discover(powercap_root=manual_powercap.root, proc=proc)) == ["rapl"]
    assert names(discover(RaplMeter(manual_powercap.root), proc=proc)) == ["rapl"]


@pytest.mark.parametrize(
    ("cpuinfo", "mounts", "guest"),
    [
        (BARE_METAL, "proc /proc proc rw 0 0\n", False),
        (GUEST, "proc /proc proc rw 0 0\n", True),
        (BARE_METAL, "lxcfs /proc/stat fuse.lxcfs rw 0 0\n", True),
        ("model name : hypervisor of flags\n", "", False),
    ],
)
def test_a_guest_is_known_when_it_shows(proc: Path, cpuinfo: str, mounts: str, guest: bool) -> None:
    """By the CPU's flag, or by lxcfs over /proc."""
    (proc / "cpuinfo").write_text(cpuinfo)
    (proc / "self" / "mounts").write_text(mounts)
    assert in_guest(proc) is guest


def test_overlapping_meters_are_left_out_when_the_user_names_several(proc: Path, manual_powercap: PowercapTree) -> None:
    """The order says which is preferred; energy is never counted twice."""
    with exporter(PAGE) as served:
        found = discover(
            ["scaphandre", "rapl"], scaphandre_url=served.url, powercap_root=manual_powercap.root, proc=proc
        )
        assert names(found) == ["scaphandre", "rapl"]
    channels = {channel.id: channel.meter for opened in found.meters for channel in opened.channels}
    assert channels == {"package-0": "scaphandre", "package-0/dram": "rapl"}


@pytest.mark.parametrize("order", [["rapl", "cpu-estimate"], ["cpu-estimate", "rapl"]])
def test_estimates_never_stand_beside_measurements_when_both_are_named(
    proc: Path, manual_powercap: PowercapTree, order: list[str]
) -> None:
    """Not even an estimated CPU beside measured memory: their sum would be neither."""
    found = discover(order, powercap_root=manual_powercap.root, proc=proc)
    assert names(found) == order[:1]
    assert reasons(found) == {order[1]: "overlap"}


def test_nothing_is_opened_twice_when_meters_are_given_as_objects(proc: Path, refused: str) -> None:
    """Objects and names mix; what fails is told, not raised."""
    meters: list[str | Meter] = [ScaphandreMeter(refused), CpuEstimate(), "auto"]
    found = discover(meters, scaphandre_url=refused, proc=proc)
    assert names(found) == ["cpu-estimate"]
    assert found.left_out[0].name == "scaphandre"


def test_no_meter_is_a_result_when_none_is_named(proc: Path) -> None:
    """An empty list switches metering off."""
    found = discover([], proc=proc)
    assert (found.meters, found.left_out, found.reason) == ((), (), "no-meter")


def test_an_unknown_name_is_an_error_when_given() -> None:
    """It names the value and the choices, before anything is opened."""
    with pytest.raises(
        ValueError, match=r"'raple' is no meter\. Choose from auto, rapl, scaphandre, nvml, cpu-estimate"
    ):
        discover(["rapl", "raple"])


class Fixed:
    """A meter of given channels, where only what discovery makes of them matters."""

    pace = Pace(1.0, 1.0)

    def __init__(self, name: str, *channels: tuple[str, Component]) -> None:
        self.name = name
        self.is_open = False
        self._channels = [Channel(channel_id, component, name) for channel_id, component in channels]

    def open(self) -> list[Channel]:
        self.is_open = True
        return self._channels

    def read(self) -> list[Reading]:
        return []

    def close(self) -> None:
        self.is_open = False


class Broken(Fixed):
    """A meter of the user's, or one that goes by somebody's bindings, that fails in its own way."""

    def open(self) -> list[Channel]:
        raise AttributeError("module 'pynvml' has no attribute 'nvmlInit'")


GPU = Fixed("gpu", ("gpu-0", "gpu"), ("gpu-1", "gpu"))


@pytest.mark.parametrize(
    ("cpu", "taken"),
    [
        (Fixed("rapl", ("package-0", "cpu"), ("package-0/dram", "memory")), ["rapl", "gpu"]),
        (Fixed("stream", ("host", "host")), ["stream", "gpu"]),
        (Fixed("platform", ("psys", "host")), ["platform"]),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_gpus_stand_beside_the_cpu_when_its_counters_cannot_hold_them(cpu: Fixed, taken: list[str], proc: Path) -> None:
    """Sockets, or their sum, hold no GPU; psys, the whole platform's counter, may."""
    assert names(discover([cpu, GPU], proc=proc)) == taken


@pytest.mark.parametrize("order", [["host", "packages"], ["packages", "host"]])
def test_host_and_sockets_are_never_both_read_when_both_are_there(order: list[str], proc: Path) -> None:
    """The host is their sum; the one that is not read is closed again."""
    meters = {"host": Fixed("host", ("host", "host")), "packages": Fixed("packages", ("package-0", "cpu"))}
    found = discover([meters[name] for name in order], proc=proc)
    assert [meters[name].is_open for name in order] == [True, False]
    assert names(found) == order[:1]
    assert reasons(found) == {order[1]: "overlap"}


def test_the_others_are_read_when_one_fails_in_a_way_of_its_own(proc: Path) -> None:
    """It was looked for again and again, and those that had been opened before it were never read, nor closed."""
    found = discover([Fixed("rapl", ("package-0", "cpu")), Broken("nvml"), GPU], proc=proc)
    assert names(found) == ["rapl", "gpu"]
    (left_out,) = found.left_out
    assert (left_out.name, left_out.reason) == ("nvml", "meter-unreadable")
    assert "no attribute 'nvmlInit'" in left_out.message


def test_an_exporter_is_left_to_the_servers_when_the_user_has_named_it_for_them(proc: Path, tmp_path: Path) -> None:
    """A second client would freeze it; not even one request is made."""
    with exporter(PAGE) as served:
        taken = {ScaphandreMeter(served.url, process="ollama").source}
        found = discover(scaphandre_url=served.url, proc=proc, default_powercap_root=tmp_path, taken=taken)
        assert served.requests == []
    assert names(found) == ["cpu-estimate"]
    assert reasons(found)["scaphandre"] == "taken"


def test_the_line_that_mends_it_is_told_when_a_meter_is_left_out(proc: Path, tmp_path: Path, refused: str) -> None:
    """For people and for status()."""
    found = discover(scaphandre_url=refused, proc=proc, default_powercap_root=tmp_path)
    mend = {left.name: left.mend for left in found.left_out}
    names(found)
    assert "OTEL_LLM_ENERGY_POWERCAP_ROOT" in mend["rapl"]
    assert "OTEL_LLM_ENERGY_SCAPHANDRE_URL" in mend["scaphandre"]

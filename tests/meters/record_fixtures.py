"""Records what the real Scaphandre says, for tests that cannot wait for it: ``python -m tests.meters.record_fixtures``.

Each set is the real exporter over a synthetic powercap tree whose counters rise at a known power. Of the processes only
the first kernel threads and one with a hostile command line are kept: the others say what else ran on the machine.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import requests

from tests.support.backends import running_scaphandre

FIXTURES = Path(__file__).with_name("fixtures")
HOSTILE_ARGUMENT = 'a "quoted" {brace="1"} 42\nscaph_host_energy_microjoules 7\n'

Zones = Mapping[str, tuple[str, int, float]]  # folder: name, first value in microjoules, watts

SETS: Mapping[str, tuple[Zones, Sequence[float]]] = {
    # The third request comes too early, and so repeats the second's answer.
    "two-sockets": (
        {
            "intel-rapl:0": ("package-0", 100_000_000, 30),
            "intel-rapl:0:0": ("dram", 10_000_000, 3),
            "intel-rapl:0:1": ("core", 50_000_000, 15),
            "intel-rapl:1": ("package-1", 200_000_000, 20),
            "intel-rapl:1:0": ("dram", 20_000_000, 2),
        },
        (0.0, 2.2, 3.2),
    ),
    # Without domain folders Scaphandre takes psys for one more socket.
    "psys": (
        {"intel-rapl:0": ("package-0", 100_000_000, 30), "intel-rapl:1": ("psys", 900_000_000, 50)},
        (0.0, 2.2),
    ),
    # The socket passes its range between the second and the third request.
    "wrap": (
        {"intel-rapl:0": ("package-0", 262_043_000_000, 30), "intel-rapl:0:0": ("dram", 10_000_000, 3)},
        (0.0, 2.2, 4.4),
    ),
}
RANGE_UJ = 262_143_328_850


@contextmanager
def _rising(root: Path, zones: Zones) -> Iterator[None]:
    """Counters that rise every 5 ms, at a fixed width, for the length of the block."""
    for folder, (name, _, _) in zones.items():
        (root / folder).mkdir(parents=True)
        (root / folder / "name").write_text(f"{name}\n")
    stop = threading.Event()
    started = time.monotonic()

    def rise() -> None:
        while True:
            for folder, (_, start_uj, watts) in zones.items():
                energy_uj = (start_uj + round(watts * 1e6 * (time.monotonic() - started))) % RANGE_UJ
                descriptor = os.open(root / folder / "energy_uj", os.O_WRONLY | os.O_CREAT, 0o644)
                os.pwrite(descriptor, f"{energy_uj:012d}\n".encode(), 0)
                os.close(descriptor)
            if stop.wait(0.005):
                return

    thread = threading.Thread(target=rise)
    thread.start()
    time.sleep(0.05)
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _kept(line: bytes) -> bool:
    if not line.startswith(b"scaph_process_"):
        return True
    return b"brace=" in line or any(b'pid="%d"' % pid in line for pid in range(2, 8))


def record(name: str, zones: Zones, instants: Sequence[float], folder: Path) -> None:
    """Ask at the given instants (s), and keep the answers as ``name-0.txt`` and so on."""
    with _rising(folder / name, zones), running_scaphandre(folder / name, folder) as exporter:
        first = time.monotonic()
        for index, instant in enumerate(instants):
            time.sleep(max(0.0, first + instant - time.monotonic()))
            body = requests.get(exporter.url, timeout=10).content
            lines = [line for line in body.split(b"\n") if _kept(line)]
            (FIXTURES / f"{name}-{index}.txt").write_bytes(b"\n".join(lines))


def main() -> None:
    FIXTURES.mkdir(exist_ok=True)
    hostile = subprocess.Popen(["/bin/sh", "-c", "sleep 30; :", HOSTILE_ARGUMENT])
    try:
        with tempfile.TemporaryDirectory() as folder:
            for name, (zones, instants) in SETS.items():
                record(name, zones, instants, Path(folder))
    finally:
        hostile.kill()
        hostile.wait()


if __name__ == "__main__":
    main()

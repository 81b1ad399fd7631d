"""Records what the real Scaphandre says, for tests that cannot wait for it: ``python -m tests.meters.record_fixtures``.

Of another version than the one that tests run, named by ``SCAPHANDRE_BIN``, into a folder of its own: ``... 1.0.0``.

Each set is the real exporter over a synthetic powercap tree whose counters rise at a known power. Of the processes only
the first kernel threads and one with a hostile command line are kept: the others say what else ran on the machine.
The set ``processes`` keeps two busy programs and the exporter too; beside it is the CPU time that the kernel gave them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests

from otel_llm_energy.servers import process_cpu_ns
from tests.support.backends import Scaphandre, running_prometheus, running_scaphandre, streaming_scaphandre
from tests.support.burner import burning
from tests.support.docker import contained, docker_api
from tools.backends import obtain

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
    # The same, of one socket only.
    "wrap-one-of-two": (
        {
            "intel-rapl:0": ("package-0", 262_043_000_000, 30),
            "intel-rapl:0:0": ("dram", 10_000_000, 3),
            "intel-rapl:1": ("package-1", 200_000_000, 20),
            "intel-rapl:1:0": ("dram", 20_000_000, 2),
        },
        (0.0, 2.2, 4.4, 6.6),
    ),
}
RANGE_UJ = 262_143_328_850


@contextmanager
def rising(root: Path, zones: Zones, broken: Collection[str] = ()) -> Iterator[None]:
    """Counters that rise every 5 ms, at a fixed width, for the length of the block; ``broken`` ones are left alone."""
    for folder, (name, _, _) in zones.items():
        (root / folder).mkdir(parents=True)
        (root / folder / "name").write_text(f"{name}\n")
    stop = threading.Event()
    started = time.monotonic()

    def rise() -> None:
        while True:
            for folder, (_, start_uj, watts) in zones.items():
                if folder in broken:
                    continue
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


def record(name: str, zones: Zones, instants: Sequence[float], folder: Path, into: Path) -> None:
    """Ask at the given instants (s), and keep the answers as ``name-0.txt`` and so on."""
    with rising(folder / name, zones), running_scaphandre(folder / name, folder) as exporter:
        first = time.monotonic()
        for index, instant in enumerate(instants):
            time.sleep(max(0.0, first + instant - time.monotonic()))
            body = requests.get(exporter.url, timeout=10).content
            lines = [line for line in body.split(b"\n") if _kept(line)]
            (into / f"{name}-{index}.txt").write_bytes(b"\n".join(lines))


def record_unreadable(folder: Path, into: Path) -> None:
    """The second socket's counter cannot be read any more after the second request."""
    zones, _ = SETS["two-sockets"]
    broken: set[str] = set()
    root = folder / "unreadable"
    with rising(root, zones, broken), running_scaphandre(root, folder) as exporter:
        for index in range(4):
            body = requests.get(exporter.url, timeout=10).content
            lines = [line for line in body.split(b"\n") if _kept(line)]
            (into / f"unreadable-{index}.txt").write_bytes(b"\n".join(lines))
            if index == 1:
                broken.add("intel-rapl:1")
                time.sleep(0.05)
                (root / "intel-rapl:1" / "energy_uj").unlink()
                (root / "intel-rapl:1" / "energy_uj").mkdir()
            time.sleep(2.2)


SERVER, NEIGHBOUR = "llm_server.py", "neighbour.py"


def record_processes(folder: Path, into: Path) -> None:
    """A server of three threads, Scaphandre's own threads, and a neighbour of one thread, busy between two requests."""
    zones, _ = SETS["two-sockets"]
    with (
        rising(folder / "processes", zones),
        burning(SERVER, folder, threads=3) as server,
        burning(NEIGHBOUR, folder, duty=0.4) as neighbour,
    ):
        time.sleep(1)  # Scaphandre knows the command lines of those processes only that were there before it
        with running_scaphandre(folder / "processes", folder) as exporter:
            _record_processes(exporter, server.pid, neighbour.pid, folder, into)


def _record_processes(exporter: Scaphandre, server_pid: int, neighbour_pid: int, folder: Path, into: Path) -> None:
    used_ns: list[dict[str, int | None]] = []
    for index in range(3):
        body = requests.get(exporter.url, timeout=10).content
        used_ns.append({SERVER: process_cpu_ns(server_pid), NEIGHBOUR: process_cpu_ns(neighbour_pid)})
        shown = (server_pid, neighbour_pid, exporter.pid)
        lines = [line for line in body.split(b"\n") if _kept(line) or _of(line, shown)]
        text = b"\n".join(lines).decode()
        (into / f"processes-{index}.txt").write_text(anonymous(text, folder))
        time.sleep(2.2)
    (into / "processes-cpu-ns.json").write_text(json.dumps(used_ns) + "\n")


CONTAINER = "llm-ollama-1"
CONTAINER_LABELS = {"com.docker.compose.service": "ollama", "maintainer": "llm team"}


def record_containers(folder: Path, into: Path) -> None:
    """The server in a container beside the neighbour outside. Needs root, and a Scaphandre that was built with its
    feature ``containers``: Debian's takes the option and gives no labels."""
    zones, _ = SETS["two-sockets"]
    with (
        rising(folder / "containers", zones),
        burning(SERVER, folder, threads=2) as server,
        burning(NEIGHBOUR, folder, duty=0.4) as neighbour,
        contained(CONTAINER, CONTAINER_LABELS) as (container, processes),
    ):
        processes.write_text(str(server.pid))
        time.sleep(1)
        with (
            docker_api(folder, [container]) as host,
            running_scaphandre(folder / "containers", folder, host, "--containers") as exporter,
        ):
            for index in range(2):
                body = requests.get(exporter.url, timeout=10).content
                lines = [line for line in body.split(b"\n") if _kept(line) or _of(line, (server.pid, neighbour.pid))]
                (into / f"containers-{index}.txt").write_text(anonymous(b"\n".join(lines).decode(), folder))
                time.sleep(2.2)


def record_stream(folder: Path, into: Path) -> None:
    """Some records of the JSON exporter; of the consumers one busy program with its threads."""
    zones, _ = SETS["two-sockets"]
    written = folder / "stream.json"
    with rising(folder / "stream", zones), burning(SERVER, folder, threads=3):
        time.sleep(1)
        with streaming_scaphandre(folder / "stream", written):
            time.sleep(3)
    records = _records(written.read_text())
    for each in records:
        each["consumers"] = [one for one in each["consumers"] if SERVER in one["cmdline"]]
        each["host"]["components"] = {"disks": []}
    kept = [json.dumps(each, separators=(",", ":")) for each in records]
    text = f"[{','.join(kept)}]" if written.read_text().startswith("[") else "".join(kept)
    (into / "stream.json").write_text(anonymous(text, folder))


def _records(text: str) -> list[dict[str, Any]]:
    """Of an array; or, before 1.0.1, of whole records one after the other, of which the last is written in part."""
    if text.startswith("["):
        array: list[dict[str, Any]] = json.loads(text)
        return array
    decode = json.JSONDecoder().raw_decode
    records: list[dict[str, Any]] = []
    with suppress(ValueError):
        while text:
            record, end = decode(text)
            records.append(record)
            text = text[end:]
    return records


PROMETHEUS_CONFIG = """\
scrape_configs:
  - job_name: scaphandre
    scrape_interval: 3s
    static_configs: [{{targets: {targets}}}]
"""


def record_prometheus(folder: Path, into: Path) -> None:
    """The raw samples of two hosts that Prometheus scraped every 3 s; of the processes only the two exporters."""
    zones, _ = SETS["two-sockets"]
    one, two = folder / "one", folder / "two"
    with (
        rising(one, zones),
        rising(two, {zone: (name, 2 * start_uj, 2 * watts) for zone, (name, start_uj, watts) in zones.items()}),
        running_scaphandre(one, one) as first,
        running_scaphandre(two, two) as second,
    ):
        hosts = {urlsplit(each.url).netloc: f"{name}:8080" for each, name in ((first, "one"), (second, "two"))}
        config = folder / "prometheus.yml"
        config.write_text(PROMETHEUS_CONFIG.format(targets=json.dumps(list(hosts))))
        with running_prometheus(config, folder) as prometheus:
            time.sleep(20)
            found = prometheus.query('{__name__=~"scaph_.*energy.*|scaph_.*power.*|scaph_.*memory.*|scrape.*"}[5m]')
    kept = [each for each in found if "pid" not in each["metric"] or "/scaphandre" in each["metric"].get("exe", "")]
    text = anonymous(json.dumps(kept, indent=0, separators=(",", ":")), folder)
    for address, name in hosts.items():
        text = text.replace(address, name).replace(f"--port{address.rpartition(':')[2]}", "--port8080")
    (into / "prometheus.json").write_text(text)


def _of(line: bytes, pids: Iterable[int]) -> bool:
    """A line of one of these processes, or of a thread of theirs."""
    threads = {task.name.encode() for pid in pids for task in Path(f"/proc/{pid}/task").iterdir()}
    return any(b'pid="%s"' % thread in line for thread in threads)


def anonymous(text: str, folder: Path) -> str:
    """Without this machine's paths."""
    python = Path(sys.executable)
    for path, instead in (
        (python, "/usr/bin/python3"),
        (python.resolve(), "/usr/bin/python3.11"),
        (folder, "/srv"),
        (obtain("scaphandre"), "/usr/bin/scaphandre"),
    ):
        text = text.replace(str(path), instead)
    return text


def main() -> None:
    into = FIXTURES / "".join(sys.argv[1:])
    into.mkdir(exist_ok=True)
    hostile = subprocess.Popen(["/bin/sh", "-c", "sleep 30; :", HOSTILE_ARGUMENT])
    try:
        with tempfile.TemporaryDirectory() as folder:
            for name, (zones, instants) in SETS.items():
                record(name, zones, instants, Path(folder), into)
            record_unreadable(Path(folder), into)
            record_processes(Path(folder), into)
            record_stream(Path(folder), into)
            if into != FIXTURES:
                record_containers(Path(folder), into)
            if into == FIXTURES:
                record_prometheus(Path(folder), into)
    finally:
        hostile.kill()
        hostile.wait()


if __name__ == "__main__":
    main()

"""Records what other stores than Prometheus answer its meter: ``python -m tests.meters.record_stores``.

``VICTORIA_METRICS_BIN`` and ``THANOS_BIN`` name the programs, which no test runs. A recording is of one host's real
Scaphandre over a synthetic powercap tree; a busy program is started meanwhile, whose series are new. Beside each sample
is how old it was when the store first showed it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests

from otel_llm_energy.meters.prometheus import SCRAPE_SECONDS
from otel_llm_energy.meters.scaphandre_counters import COUNTER_FAMILIES
from otel_llm_energy.meters.scaphandre_processes import MEMORY, POWER
from tests.meters.record_fixtures import FIXTURES, SERVER, SETS, anonymous, rising
from tests.support.backends import running_prometheus, running_scaphandre
from tests.support.burner import burning
from tests.support.children import answers, free_port, running

FAMILIES = "|".join(sorted({*COUNTER_FAMILIES, POWER, MEMORY, SCRAPE_SECONDS}))
SCRAPES = """\
scrape_configs:
  - job_name: scaphandre
    scrape_interval: 3s
    static_configs: [{{targets: ['{target}']}}]
"""
SMALL_BATCHES = "{max_samples_per_send: 40}"  # so that many a scrape is parted near its end, where the counters are
BEFORE_SECONDS, AFTER_SECONDS = 15, 24

Seen = dict[str, dict[tuple[float, str], float]]  # series: time and value of a sample, its age when it was first seen


@contextmanager
def scraping_itself(target: str, folder: Path) -> Iterator[str]:
    """VictoriaMetrics scrapes the target."""
    config = folder / "scrape.yml"
    config.write_text(SCRAPES.format(target=target))
    with victoria_metrics(folder, f"-promscrape.config={config}") as url:
        yield url


@contextmanager
def written_by_prometheus(target: str, folder: Path) -> Iterator[str]:
    """Prometheus scrapes the target and writes to Thanos Receive, whose samples Thanos Query shows."""
    write, write_grpc, write_http, http, grpc = (free_port() for _ in range(5))
    thanos, loopback = os.environ["THANOS_BIN"], "127.0.0.1"
    receive = [thanos, "receive", f"--tsdb.path={folder / 'receive'}", '--label=receive="one"']
    receive += [f"--grpc-address={loopback}:{write_grpc}", f"--http-address={loopback}:{write_http}"]
    receive += [f"--remote-write.address={loopback}:{write}"]
    query = [thanos, "query", f"--http-address={loopback}:{http}", f"--grpc-address={loopback}:{grpc}"]
    query += [f"--endpoint={loopback}:{write_grpc}"]
    config = folder / "prometheus.yml"
    config.write_text(
        SCRAPES.format(target=target)
        + f"remote_write: [{{url: 'http://{loopback}:{write}/api/v1/receive', queue_config: {SMALL_BATCHES}}}]\n"
    )
    url = f"http://{loopback}:{http}"
    with (
        running(receive, lambda: answers(f"http://{loopback}:{write_http}/-/ready"), folder / "receive.log", kill=True),
        running(query, lambda: answers(f"{url}/-/ready"), folder / "query.log", kill=True),
        running_prometheus(config, folder),
    ):
        yield url


@contextmanager
def victoria_metrics(folder: Path, *options: str) -> Iterator[str]:
    """A single node on loopback."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [os.environ["VICTORIA_METRICS_BIN"], f"-httpListenAddr=127.0.0.1:{port}", *options]
    command += [f"-storageDataPath={folder / 'victoria-metrics'}", "-memory.allowedBytes=256MB"]
    with running(command, lambda: answers(f"{url}/health"), folder / "victoria-metrics.log"):
        yield url


def record(store: Callable[[str, Path], Any], folder: Path, program: str) -> dict[str, Any]:
    """What a store answers while it gets the samples of a host on which a program is started."""
    zones, _ = SETS["two-sockets"]
    seen: Seen = {}
    with ExitStack() as stack:
        stack.enter_context(rising(folder / "one", zones))
        exporter = stack.enter_context(running_scaphandre(folder / "one", folder / "one"))
        target = urlsplit(exporter.url).netloc
        url = stack.enter_context(store(target, folder))
        watch(url, seen, BEFORE_SECONDS)
        server = stack.enter_context(burning(SERVER, folder, threads=2))
        watch(url, seen, AFTER_SECONDS)
        shown = threads(exporter.pid) | threads(server.pid)
        clocks = {query: clock(url, query) for query in ("time()", "now()")}
    series = [{"metric": json.loads(metric), "values": values(samples)} for metric, samples in seen.items()]
    kept = [each for each in series if each["metric"].get("pid", "") in {"", *shown}]
    text = anonymous(json.dumps({"program": program, "clocks": clocks, "series": kept}, separators=(",", ":")), folder)
    port = f"--port{target.rpartition(':')[2]}"
    found: dict[str, Any] = json.loads(text.replace(target, "one:8080").replace(port, "--port8080"))
    return found


def threads(pid: int) -> set[str]:
    """Debian's Scaphandre lists them as processes."""
    return {task.name for task in Path(f"/proc/{pid}/task").iterdir()}


def watch(url: str, seen: Seen, seconds: float) -> None:
    """Ask again and again for raw samples, and note which are new."""
    end = time.monotonic() + seconds
    with requests.Session() as session:
        while time.monotonic() < end:
            asked = time.time()
            for each in query(session, url, f'{{__name__=~"{FAMILIES}"}}[60s]').json()["data"]["result"]:
                samples = seen.setdefault(json.dumps(each["metric"], sort_keys=True), {})
                for at, text in each["values"]:
                    samples.setdefault((at, text), round(asked - at, 3))
            time.sleep(0.1)


def values(samples: dict[tuple[float, str], float]) -> list[list[Any]]:
    return [[at, text, age] for (at, text), age in sorted(samples.items())]


def clock(url: str, promql: str) -> dict[str, Any]:
    """What the store answers, and when it was asked."""
    with requests.Session() as session:
        asked = time.time()
        answer = query(session, url, promql)
        return {"asked": round(asked, 3), "status": answer.status_code, "answer": answer.json()}


def query(session: requests.Session, url: str, promql: str) -> requests.Response:
    return session.get(f"{url}/api/v1/query", params={"query": promql}, timeout=10)


def version(variable: str, option: str) -> str:
    program = os.environ[variable]
    done = subprocess.run([program, option], capture_output=True, text=True, check=True)
    return (done.stdout or done.stderr).splitlines()[0]


STORES = {
    "victoria-metrics": (scraping_itself, "VICTORIA_METRICS_BIN", "-version"),
    "thanos-receive": (written_by_prometheus, "THANOS_BIN", "--version"),
}


def main() -> None:
    for name in sys.argv[1:] or STORES:
        store, variable, option = STORES[name]
        with tempfile.TemporaryDirectory() as folder:
            found = record(store, Path(folder), version(variable, option))
        (FIXTURES / f"{name}.json").write_text(json.dumps(found, indent=0, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()

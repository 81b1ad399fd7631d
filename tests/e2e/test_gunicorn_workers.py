"""Four real gunicorn workers, a real model, the real Scaphandre: what was metered is said once; nobody freezes it."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests

from otel_llm_energy import conventions as names
from tests.conftest import LlamaServerFactory
from tests.support.backends import Scaphandre
from tests.support.children import free_port, listens, running

pytestmark = pytest.mark.e2e

_APPS = Path(__file__).with_name("apps")
_REPOSITORY = Path(__file__).parents[2]
_TWO_POLLS_SECONDS = 6
_COUNTER = b"scaph_host_energy_microjoules"


@contextmanager
def overheard(url: str) -> Iterator[tuple[str, list[bytes]]]:
    """An address that passes requests on to the exporter, and the host counter in each of its answers."""
    heard: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = requests.get(url, timeout=60).content
            heard.extend(line for line in page.splitlines() if line.startswith(_COUNTER))
            self.send_response(200)
            self.send_header("content-length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            """Not to standard error."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/metrics", heard
        server.shutdown()


@contextmanager
def gunicorn(folder: Path, base_url: str, scaphandre_url: str) -> Iterator[str]:
    """Four workers; the address of the app. They have written their results into the folder when the block ends."""
    port = free_port()
    env = {
        "OPENAI_BASE_URL": base_url,
        "OPENAI_API_KEY": "unused",
        "OTEL_LLM_ENERGY_BOARD": str(folder / "board"),
        "OTEL_LLM_ENERGY_METERS": "scaphandre",
        "OTEL_LLM_ENERGY_SCAPHANDRE_URL": scaphandre_url,
        "PYTHONPATH": f"{_REPOSITORY}:{_REPOSITORY / 'instrumentation'}:{_APPS}",
        "RESULTS": str(folder),
    }
    command = [sys.executable, "-m", "gunicorn", "--workers", "4", "--worker-class", "uvicorn.workers.UvicornWorker"]
    command += ["--bind", f"127.0.0.1:{port}", "--graceful-timeout", "60", "workers:app"]
    with running(command, lambda: listens(port), folder / "gunicorn.log", env) as process:
        yield f"http://127.0.0.1:{port}"
        process.send_signal(signal.SIGTERM)
        process.wait(90)


def seats(url: str, count: int) -> dict[int, dict[str, int | str | None]]:
    """Where so many workers sit; they are found by asking again and again."""
    found: dict[int, dict[str, int | str | None]] = {}
    deadline = time.monotonic() + 60
    while len(found) < count or any(seat["holder"] not in found for seat in found.values()):
        assert time.monotonic() < deadline, found
        seat = requests.get(f"{url}/seat", timeout=60).json()
        found[seat["pid"]] = seat
        time.sleep(0.02)
    return found


def ask(url: str, count: int) -> list[int | None]:
    """Calls, four at a time; the workers that made them, ``None`` for one that was killed meanwhile."""

    def one(_: int) -> int | None:
        try:
            return int(requests.get(f"{url}/ask", timeout=120).json())
        except requests.ConnectionError:
            return None

    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(one, range(count)))


def test_all_that_was_metered_is_said_once_when_four_workers_call(
    tmp_path: Path, llama_server: LlamaServerFactory, scaphandre: Scaphandre
) -> None:
    """Spans of all workers + nobody's = metered, within 0.1 %; the exporter's counter moves at every poll."""
    with overheard(scaphandre.url) as (url, heard), gunicorn(tmp_path, llama_server(slots=2).base_url, url) as app:
        roles = [seat["role"] for seat in seats(app, 4).values()]
        assert sorted(map(str, roles)) == ["holder", "member", "member", "member"]
        assert None not in ask(app, 40)
        time.sleep(_TWO_POLLS_SECONDS)
        in_service = len(heard)
    results = [json.loads(file.read_text()) for file in tmp_path.glob("*.json")]
    assert len(results) == 4
    calls = [call for each in results for call in each["calls"]]
    assert len(calls) == 40
    said_joules = sum(call.get(names.JOULES, 0.0) for call in calls)
    metered_joules, unattributed_joules = (
        sum(each["totals"].get(metric.name, 0.0) for each in results) for metric in (names.METERED, names.UNATTRIBUTED)
    )
    sys.stdout.write(f"{said_joules:.2f} J on spans + {unattributed_joules:.2f} J nobody's of {metered_joules:.2f} J\n")
    assert metered_joules > 0
    assert said_joules + unattributed_joules == pytest.approx(metered_joules, rel=1e-3)
    assert all(names.JOULES in call for call in calls), [call.get(names.REASON) for call in calls]
    assert in_service > 5
    assert len(set(heard[:in_service])) == in_service, "The exporter was frozen."


def test_others_go_on_when_the_worker_that_polls_is_killed(
    tmp_path: Path, llama_server: LlamaServerFactory, scaphandre: Scaphandre
) -> None:
    """In the middle of forty calls; all of the other workers' have joules, those under way in that instant too."""
    with overheard(scaphandre.url) as (url, _), gunicorn(tmp_path, llama_server(slots=2).base_url, url) as app:
        found = seats(app, 4)
        (holder,) = {int(seat["holder"] or 0) for seat in found.values()}
        time.sleep(_TWO_POLLS_SECONDS)  # a call before the first readings has no joules in any case
        threading.Timer(4, os.kill, (holder, signal.SIGKILL)).start()
        makers = ask(app, 40)
        assert makers.count(None) <= 4
        assert holder not in makers[-10:]
        time.sleep(_TWO_POLLS_SECONDS)
        assert holder not in {seat["holder"] for seat in seats(app, 4).values()}
    results = [json.loads(file.read_text()) for file in tmp_path.glob("*.json")]
    calls = [call for each in results for call in each["calls"] if "error.type" not in call]
    assert len(calls) == sum(maker not in (None, holder) for maker in makers)
    assert not [call.get(names.REASON) for call in calls if names.JOULES not in call]

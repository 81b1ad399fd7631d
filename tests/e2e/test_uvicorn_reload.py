"""A service under real ``uvicorn --reload``: at each change another process answers, and goes on metering."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from otel_llm_energy import conventions as names
from tests.conftest import LlamaServerFactory
from tests.support.children import free_port, listens, running
from tests.support.powercap import MEMORY, PACKAGE, PowercapTree
from tests.support.waiting import until

pytestmark = pytest.mark.e2e

_APPS = Path(__file__).with_name("apps")
_REPOSITORY = Path(__file__).parents[2]
_SECONDS = 60


def by_uvicorn(port: int, watched: Path) -> list[str]:
    """The parent knows nothing of us: its children meter one after the other, and nobody does between two of them."""
    options = ["--port", str(port), "--reload", "--reload-dir", str(watched), "--reload-delay", "0.1"]
    return [sys.executable, "-m", "uvicorn", "workers:app", *options]


def by_script(port: int, watched: Path) -> list[str]:
    """The parent has imported the app, and so reads the meters for its children."""
    return [sys.executable, str(_APPS / "reloading.py"), str(port), str(watched)]


@contextmanager
def service(command: Sequence[str], port: int, folder: Path, base_url: str, powercap: PowercapTree) -> Iterator[str]:
    """The address of the service; it is asked to end, and has ended, when the block does."""
    env = {
        "OPENAI_BASE_URL": base_url,
        "OPENAI_API_KEY": "unused",
        "OTEL_LLM_ENERGY_BOARD": str(folder / "board"),
        "OTEL_LLM_ENERGY_METERS": "rapl",
        "OTEL_LLM_ENERGY_POWERCAP_ROOT": str(powercap.root),
        "OTEL_LLM_ENERGY_IDLE_WATTS": "package-0=20,package-0/dram=2",
        "PYTHONPATH": f"{_REPOSITORY}:{_REPOSITORY / 'instrumentation'}:{_APPS}",
        "RESULTS": str(folder),
    }
    with running(command, lambda: listens(port), folder / "uvicorn.log", env) as process:
        yield f"http://127.0.0.1:{port}"
        process.send_signal(signal.SIGTERM)
        process.wait(_SECONDS)


def asked(url: str) -> int:
    """A call; which process has made it."""
    return int(requests.get(f"{url}/ask", timeout=_SECONDS).json())


def reloaded(url: str, watched: Path, old: int) -> None:
    """Change the source while a call is under way, and wait for the next process."""
    made: list[int] = []
    call = threading.Thread(target=lambda: made.append(asked(url)))
    call.start()
    (watched / "changed.py").write_text("# changed\n" + (watched / "changed.py").read_text())
    call.join()
    until(lambda: requests.get(f"{url}/seat", timeout=_SECONDS).json()["pid"] != old, _SECONDS)
    assert len(made) == 1


@pytest.mark.parametrize(("command", "without_break"), [(by_uvicorn, False), (by_script, True)])
def test_no_joule_is_lost_or_doubled_when_the_service_is_reloaded(
    tmp_path: Path,
    llama_server: LlamaServerFactory,
    powercap: PowercapTree,
    command: Callable[[int, Path], list[str]],
    without_break: bool,
) -> None:
    """Twice: each call has its joules; what was metered is on spans or nobody's, and no more than the counters rose by;
    no less either, if one process is there all the time. No file of an earlier turn is left."""
    watched, port = tmp_path / "watched", free_port()
    watched.mkdir()
    (watched / "changed.py").write_text("")
    first_uj = energy_uj(powercap)
    with service(command(port, watched), port, tmp_path, llama_server(slots=2).base_url, powercap) as url:
        process = asked(url)
        started_uj = energy_uj(powercap)
        for _ in range(2):
            reloaded(url, watched, process)
            process = asked(url)
        ended_uj = energy_uj(powercap)
    last_uj = energy_uj(powercap)
    results = [json.loads(file.read_text()) for file in tmp_path.glob("*.json")]
    calls = [call for each in results for call in each["calls"]]
    assert len(calls) == 5
    assert all(names.JOULES in call for call in calls), calls
    said_joules = sum(call[names.JOULES] for call in calls)
    metered_joules, unattributed_joules = (
        sum(each["totals"].get(metric.name, 0.0) for each in results) for metric in (names.METERED, names.UNATTRIBUTED)
    )
    assert said_joules + unattributed_joules == pytest.approx(metered_joules, rel=1e-3)
    assert metered_joules <= (last_uj - first_uj) / 1e6
    assert metered_joules >= (ended_uj - started_uj) / 1e6 or not without_break
    assert len({file.name.split(".")[1] for file in (tmp_path / "board").iterdir()}) == 1


def energy_uj(powercap: PowercapTree) -> int:
    """What the counters show."""
    return powercap.read_uj(PACKAGE) + powercap.read_uj(MEMORY)

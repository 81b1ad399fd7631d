"""Processes of an app that share their metering, as the tests see them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from otel_llm_energy import conventions as names
from tests.support.waiting import until

_SCRIPT = Path(__file__).with_name("apps") / "worker.py"
_REPOSITORY = Path(__file__).parents[2]
_SECONDS = 30.0


class Worker:
    """One process; see ``apps/worker.py`` for what it can be told."""

    def __init__(self, environment: Mapping[str, str], before: Sequence[str] = ()) -> None:
        self._process = subprocess.Popen(
            [*before, sys.executable, str(_SCRIPT)],
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid
        said = self._answer()
        assert before or said == self.pid

    def tell(self, command: str) -> Any:
        """Have it do something; its answer."""
        self.say(command)
        return self._answer()

    def say(self, command: str) -> None:
        """The same, without waiting for the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            assert self._process.stderr is not None
            raise AssertionError(f"The worker has ended:\n{self._process.stderr.read()}")
        return json.loads(line)

    @property
    def role(self) -> str:
        """Where it sits now."""
        return str(self.tell("status")["role"])

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def finish(self) -> Results:
        """What it has measured, after it was undone."""
        told = self.tell("finish")
        return Results(told["calls"], told["totals"])

    def exit(self) -> Results:
        """What it has measured until the last of its exit hooks, and so exported; its threads go on for a while."""
        told = self.tell("exit")
        return Results(told["calls"], told["totals"])

    def end(self) -> str:
        """End it, however it is; what it has said on standard error."""
        self._process.kill()
        _, said = self._process.communicate()
        return said


@dataclass
class Results:
    """Attributes of the spans of calls, and totals of the counters."""

    calls: list[dict[str, Any]] = field(default_factory=list)
    totals: dict[str, float] = field(default_factory=dict)

    def __repr__(self) -> str:
        """What was said of each call's energy."""
        shown = (names.QUALITY, names.REASON, names.JOULES)
        said = [tuple(call.get(name) for name in shown) for call in self.calls]
        return f"{said} {self.totals}"

    @property
    def joules(self) -> float:
        """On spans."""
        return sum(call.get(names.JOULES, 0.0) for call in self.calls)

    @property
    def metered_joules(self) -> float:
        return self.totals.get(names.METERED.name, 0.0)

    @property
    def unattributed_joules(self) -> float:
        return self.totals.get(names.UNATTRIBUTED.name, 0.0)

    @property
    def reasons(self) -> set[str]:
        """Why calls are degraded or unavailable."""
        return {str(call[names.REASON]) for call in self.calls if names.REASON in call}


def together(results: list[Results]) -> Results:
    """Of all processes."""
    totals: dict[str, float] = {}
    for each in results:
        for name, value in each.totals.items():
            totals[name] = totals.get(name, 0.0) + value
    return Results([call for each in results for call in each.calls], totals)


@dataclass
class Crew:
    """Starts workers with the same environment."""

    environment: Mapping[str, str]
    board: Path
    workers: list[Worker] = field(default_factory=list)

    def hire(self, **settings: str) -> Worker:
        """One more."""
        worker = Worker({**self.environment, **settings})
        self.workers.append(worker)
        return worker

    def hire_in_container(self) -> Worker:
        """One more, among processes of its own, of which it is the first."""
        own_processes = ["--map-root-user", "--mount", "--pid", "--mount-proc", "--fork", "--kill-child"]
        worker = Worker(self.environment, ["unshare", *own_processes])
        self.workers.append(worker)
        return worker

    def hire_metered(self, count: int) -> list[Worker]:
        """So many, the first of which reads the meters and knows the server, and all others of which have found it."""
        hired = [self.hire() for _ in range(count)]

        def is_ready() -> bool:
            status = hired[0].tell("status")
            return status["members"] == count - 1 and bool(status["channels"] and status["servers"])

        until(is_ready)
        return hired


@contextmanager
def crew(base_url: str, powercap_root: Path, board: Path) -> Iterator[Crew]:
    """Workers that are ended with the block; of the environment's settings none is theirs."""
    own = {key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "OPENAI_"))}
    environment = {
        **own,
        "OPENAI_BASE_URL": base_url,
        "OPENAI_API_KEY": "unused",
        "OTEL_LLM_ENERGY_BOARD": str(board),
        "OTEL_LLM_ENERGY_IDLE_CACHE": "off",
        "OTEL_LLM_ENERGY_METERS": "rapl",
        "OTEL_LLM_ENERGY_POWERCAP_ROOT": str(powercap_root),
        "OTEL_LLM_ENERGY_IDLE_WATTS": "package-0=20,package-0/dram=2",
        "PYTHONPATH": f"{_REPOSITORY}:{_REPOSITORY / 'instrumentation'}",
    }
    hired = Crew(environment, board)
    with ExitStack() as stack:

        @stack.callback
        def end() -> None:
            for worker in hired.workers:
                worker.end()

        yield hired

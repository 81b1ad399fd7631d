"""Moves the counters of a synthetic powercap tree as the machine's real CPU use goes, from a process of its own.

``python -m tests.support.feeder ROOT`` prints ``ready`` and feeds until its standard input ends. With the default
linear shape a stretch of T seconds in which the CPUs were busy for C seconds costs exactly ``idle_watts * T +
watts_per_cpu * C``, however short the steps.
"""

from __future__ import annotations

import argparse
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.cpu_time import BusyClock, busy_clock
from tests.support.powercap import MEMORY, PACKAGE, PowercapTree, PowerModel

_STEP_SECONDS = 0.002
_STOP_SECONDS = 5


class Feeder:
    """One step: what the CPUs did since the last one goes onto the counters."""

    def __init__(
        self,
        tree: PowercapTree,
        model: PowerModel,
        clock: BusyClock,
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._tree = tree
        self._model = model
        self._clock = clock
        self._now_ns = now_ns
        self._package_nj = tree.read_uj(PACKAGE) * 1000
        self._memory_nj = tree.read_uj(MEMORY) * 1000
        self._at_ns = now_ns()
        self._busy_ns = clock.read_ns()

    def step(self) -> None:
        """Bring both counters up to now."""
        busy_ns, at_ns = self._clock.read_ns(), self._now_ns()
        length_ns = at_ns - self._at_ns
        watts = self._model.package_watts((busy_ns - self._busy_ns) / length_ns)
        self._at_ns, self._busy_ns = at_ns, busy_ns
        self._package_nj += round(watts * length_ns)  # W * ns = nJ
        self._memory_nj += round(watts * self._model.memory_part * length_ns)
        self._tree.set_uj(PACKAGE, self._package_nj // 1000)
        self._tree.set_uj(MEMORY, self._memory_nj // 1000)


@contextmanager
def feeding(root: Path, model: PowerModel | None = None, step_seconds: float = _STEP_SECONDS) -> Iterator[PowercapTree]:
    """A tree below ``root`` whose counters a feeder process moves for the length of the block.

    A concave shape wants steps of 20 ms or more: CPU time is accounted in ticks, so in a shorter step a busy CPU
    looks now idle, now doubly busy.
    """
    model = model or PowerModel()
    options = {
        "--idle-watts": model.idle_watts,
        "--watts-per-cpu": model.watts_per_cpu,
        "--exponent": model.exponent,
        "--memory-part": model.memory_part,
        "--step-seconds": step_seconds,
    }
    command = [sys.executable, "-m", "tests.support.feeder", str(root)]
    command += [str(word) for pair in options.items() for word in pair]
    repository = Path(__file__).parents[2]
    with PowercapTree(root) as tree:
        process = subprocess.Popen(
            command, cwd=repository, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        with process:
            assert process.stdout is not None
            if process.stdout.readline() != b"ready\n":
                raise RuntimeError("The feeder of the synthetic counters did not start; its words are above.")
            try:
                yield tree
            finally:
                process.communicate(timeout=_STOP_SECONDS)  # closes its standard input


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests.support.feeder", description=__doc__)
    parser.add_argument("root", type=Path, help="folder that holds or gets intel-rapl:0")
    parser.add_argument("--idle-watts", type=float, default=20.0)
    parser.add_argument("--watts-per-cpu", type=float, default=60.0)
    parser.add_argument("--exponent", type=float, default=1.0)
    parser.add_argument("--memory-part", type=float, default=0.1)
    parser.add_argument("--step-seconds", type=float, default=_STEP_SECONDS)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    asked = _parse(arguments)
    model = PowerModel(asked.idle_watts, asked.watts_per_cpu, asked.exponent, asked.memory_part)
    with PowercapTree(asked.root) as tree:
        feeder = Feeder(tree, model, busy_clock())
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while not select.select([0], [], [], asked.step_seconds)[0]:
            feeder.step()


if __name__ == "__main__":
    main()

"""Moves the counters of a synthetic powercap tree as the machine's real CPU use goes, from a process of its own.

``python -m tests.support.feeder ROOT`` prints ``ready`` and feeds until its standard input ends. With the default
linear shape a stretch of T seconds in which the CPUs were busy for C seconds costs exactly ``idle_watts * T +
watts_per_cpu * C``, however short the steps.

It moves them step by step, and at once for each byte that comes on its standard input, which it answers with one:
a reader that asks before it reads finds the counters as fresh as the hardware's, at no more steps than readings.

It alone knows what each joule was for, so it can write that down: see `Truth`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import struct
import subprocess
import sys
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path

from tests.support.cpu_time import BusyClock, ProcessSumClock, busy_clock, process_tree
from tests.support.powercap import MEMORY, PACKAGE, PowercapTree, PowerModel

_STEP_SECONDS = 0.002
# To look for new processes of a model server every 20 ms took 4 % of a CPU.
_LOOK_SECONDS = 0.25
_STOP_SECONDS = 5
_RECORD = struct.Struct("<3q")
_NOW = b"."


@dataclass(frozen=True, slots=True)
class Watched:
    """A model server whose part of the energy is written down.

    Attributes:
        pid: its process; the tree below it counts.
        truth: the file to write; for `Truth`.
        prefilling: a file whose first byte is ``1`` while the server reads a prompt, for `PowerModel.prefill_factor`.
    """

    pid: int
    truth: Path
    prefilling: Path | None = None


class Truth:
    """What a watched server really used: idle energy and its own above that, cumulative, step by step.

    A server's own part of a step is its part of the CPU time in it.
    """

    def __init__(self, path: Path) -> None:
        records = list(_RECORD.iter_unpack(path.read_bytes()))
        self._times_ns = [record[0] for record in records]
        self._idle_nj = [record[1] for record in records]
        self._server_nj = [record[2] for record in records]

    def idle_joules(self, start_ns: int, end_ns: int) -> float:
        """Idle energy of all counters, J."""
        return (self._at(self._idle_nj, end_ns) - self._at(self._idle_nj, start_ns)) / 1e9

    def server_joules(self, start_ns: int, end_ns: int) -> float:
        """What the server added to that, J."""
        return (self._at(self._server_nj, end_ns) - self._at(self._server_nj, start_ns)) / 1e9

    def _at(self, values_nj: list[int], time_ns: int) -> float:
        right = min(max(bisect_left(self._times_ns, time_ns), 1), len(values_nj) - 1)
        start_ns, end_ns = self._times_ns[right - 1], self._times_ns[right]
        before_nj, after_nj = values_nj[right - 1], values_nj[right]
        return float(before_nj + (after_nj - before_nj) * (time_ns - start_ns) / (end_ns - start_ns))


class ServerMeter:
    """Splits off the watched server's part of each step, and writes it down.

    Args:
        watched: the server.
        clock: its CPU time; ``None`` for that of its process tree.
    """

    def __init__(self, watched: Watched, clock: BusyClock | None = None) -> None:
        self._clock = clock or ProcessSumClock(partial(process_tree, watched.pid), look_seconds=_LOOK_SECONDS)
        self._journal = os.open(watched.truth, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC)
        self._flag = None if watched.prefilling is None else os.open(watched.prefilling, os.O_RDONLY | os.O_CLOEXEC)
        self._busy_ns = self._clock.read_ns()
        self._waiting_ns = 0
        self._idle_nj = self._server_nj = 0

    def part_of(self, busy_ns: int) -> float:
        """The server's part of the machine's busy time in this step.

        The two are accounted at different ticks: what is more than the machine's waits for the next step.
        """
        server_ns = self._clock.read_ns()
        self._waiting_ns += server_ns - self._busy_ns
        self._busy_ns = server_ns
        taken_ns = min(self._waiting_ns, busy_ns)
        self._waiting_ns -= taken_ns
        return taken_ns / busy_ns if busy_ns > 0 else 0.0

    @property
    def prefilling(self) -> bool:
        return self._flag is not None and os.pread(self._flag, 1, 0) == b"1"

    def write_down(self, at_ns: int, idle_nj: float, server_nj: float) -> None:
        self._idle_nj += round(idle_nj)
        self._server_nj += round(server_nj)
        os.write(self._journal, _RECORD.pack(at_ns, self._idle_nj, self._server_nj))


class Feeder:
    """One step: what the CPUs did since the last one goes onto the counters."""

    def __init__(
        self,
        tree: PowercapTree,
        model: PowerModel,
        clock: BusyClock,
        now_ns: Callable[[], int] = time.monotonic_ns,
        server: ServerMeter | None = None,
    ) -> None:
        self._tree = tree
        self._model = model
        self._clock = clock
        self._now_ns = now_ns
        self._server = server
        self._package_nj = tree.read_uj(PACKAGE) * 1000
        self._memory_nj = tree.read_uj(MEMORY) * 1000
        self._at_ns = self._start_ns = now_ns()
        self._busy_ns = clock.read_ns()

    def step(self) -> None:
        """Bring both counters up to now."""
        busy_ns, at_ns = self._clock.read_ns(), self._now_ns()
        length_ns, worked_ns = at_ns - self._at_ns, busy_ns - self._busy_ns
        idle_nj = self._model.idle_watts_at((at_ns - self._start_ns) / 1e9) * length_ns  # W * ns = nJ
        above_nj = self._model.above_idle_watts(worked_ns / length_ns) * length_ns
        if self._server is not None:
            above_nj += self._split_off(self._server, at_ns, idle_nj, above_nj, worked_ns)
        self._at_ns, self._busy_ns = at_ns, busy_ns
        self._package_nj += round(idle_nj + above_nj)
        self._memory_nj += round((idle_nj + above_nj) * self._model.memory_part)
        self._tree.set_uj(PACKAGE, self._package_nj // 1000)
        self._tree.set_uj(MEMORY, self._memory_nj // 1000)

    def _split_off(self, server: ServerMeter, at_ns: int, idle_nj: float, above_nj: float, worked_ns: int) -> float:
        """Write down the server's part; what it adds because it reads a prompt, nJ."""
        server_nj = above_nj * server.part_of(worked_ns)
        extra_nj = server_nj * (self._model.prefill_factor - 1) if server.prefilling else 0.0
        whole = 1 + self._model.memory_part
        server.write_down(at_ns, idle_nj * whole, (server_nj + extra_nj) * whole)
        return extra_nj


class FedTree(PowercapTree):
    """A tree whose counters a feeder process moves.

    Args:
        root: of the tree.
        command: that starts the feeder.
    """

    def __init__(self, root: Path, command: Sequence[str]) -> None:
        super().__init__(root)
        self._asking = threading.Lock()
        repository = Path(__file__).parents[2]
        self._process = subprocess.Popen(
            command, cwd=repository, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, start_new_session=True
        )
        try:
            self._expect(b"ready\n", "did not start")
        except RuntimeError:
            self.close()
            raise

    def catch_up(self) -> None:
        """Bring the counters up to now."""
        assert self._process.stdin is not None
        with self._asking:
            self._process.stdin.write(_NOW)
            self._expect(_NOW, "has ended")

    def _expect(self, answer: bytes, otherwise: str) -> None:
        assert self._process.stdout is not None
        if self._process.stdout.read(len(answer)) != answer:
            raise RuntimeError(f"The feeder of the synthetic counters {otherwise}; its words are above.")

    def close(self) -> None:
        """End the feeder, too."""
        with self._process:
            self._process.communicate(timeout=_STOP_SECONDS)  # closes its standard input
        super().close()


@contextmanager
def feeding(
    root: Path,
    model: PowerModel | None = None,
    step_seconds: float = _STEP_SECONDS,
    watched: Watched | None = None,
) -> Iterator[FedTree]:
    """A tree below ``root`` whose counters a feeder process moves for the length of the block.

    A concave shape wants steps of 20 ms or more: CPU time is accounted in ticks, so in a shorter step a busy CPU
    looks now idle, now doubly busy.
    """
    options: dict[str, object] = {**asdict(model or PowerModel()), "step_seconds": step_seconds}
    if watched is not None:
        options.update({name: value for name, value in asdict(watched).items() if value is not None})
    command = [sys.executable, "-m", "tests.support.feeder", str(root)]
    for name, value in options.items():
        command += ["--" + name.replace("_", "-"), str(value)]
    with contextlib.closing(FedTree(root, command)) as tree:
        yield tree


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests.support.feeder", description=__doc__)
    parser.add_argument("root", type=Path, help="folder that holds or gets intel-rapl:0")
    for field in fields(PowerModel):
        parser.add_argument("--" + field.name.replace("_", "-"), type=float, default=field.default)
    parser.add_argument("--step-seconds", type=float, default=_STEP_SECONDS)
    parser.add_argument("--pid", type=int, help="a model server whose part is written down")
    parser.add_argument("--truth", type=Path, help="where to")
    parser.add_argument("--prefilling", type=Path, help="a file whose first byte is 1 while it reads a prompt")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    asked = _parse(arguments)
    with contextlib.suppress(PermissionError):  # a hardware counter waits for no CPU
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    model = PowerModel(**{field.name: getattr(asked, field.name) for field in fields(PowerModel)})
    server = None if asked.pid is None else ServerMeter(Watched(asked.pid, asked.truth, asked.prefilling))
    with PowercapTree(asked.root) as tree:
        feeder = Feeder(tree, model, busy_clock(), server=server)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while True:
            asked_for = select.select([0], [], [], asked.step_seconds)[0]
            if asked_for and not os.read(0, 1):
                return
            feeder.step()
            if asked_for:
                os.write(1, _NOW)


if __name__ == "__main__":
    main()

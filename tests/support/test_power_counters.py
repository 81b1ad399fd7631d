"""The synthetic counters say what they promise, or every accuracy figure made with them is void."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from tests.support.backends import Scaphandre
from tests.support.cpu_time import ProcessSumClock, busy_clock, process_cpu_ns, tree_cpu_ns
from tests.support.feeder import Feeder, ServerMeter, Truth, Watched, feeding
from tests.support.powercap import MEMORY, PACKAGE, PowercapTree, PowerModel

_SPIN = "end = __import__('time').monotonic() + {seconds}\nwhile __import__('time').monotonic() < end: pass"


class StepClock:
    """A busy clock that a test sets."""

    def __init__(self) -> None:
        self.busy_ns = 0

    def read_ns(self) -> int:
        return self.busy_ns


@contextmanager
def _spinning(seconds: float) -> Iterator[subprocess.Popen[bytes]]:
    """A process that keeps one CPU busy."""
    with subprocess.Popen([sys.executable, "-c", _SPIN.format(seconds=seconds)]) as process:
        yield process


def test_counters_hold_idle_and_busy_power_when_one_cpu_was_busy_for_half_the_time(
    manual_powercap: PowercapTree,
) -> None:
    """A linear shape costs idle watts times time plus watts per CPU times CPU time, and memory its part of that."""
    clock = StepClock()
    feeder = Feeder(manual_powercap, PowerModel(), clock, now_ns=itertools.count(0, 2_000_000).__next__)
    for step in range(1, 501):
        clock.busy_ns = step * 1_000_000
        feeder.step()
    assert manual_powercap.read_uj(PACKAGE) == 20_000_000 + 30_000_000
    assert manual_powercap.read_uj(MEMORY) == 2_000_000 + 3_000_000


def test_second_cpu_adds_less_when_the_shape_is_concave() -> None:
    """A concave shape is one in which each further busy CPU adds less power than the one before."""
    model = PowerModel(exponent=0.7)
    watts = [model.package_watts(cpus) for cpus in (0, 1, 2)]
    assert watts[1] - watts[0] == pytest.approx(60)
    assert 0 < watts[2] - watts[1] < 40


def test_true_joules_are_refused_when_the_shape_is_concave() -> None:
    """With a concave shape nobody can say what one server's CPU seconds cost."""
    assert PowerModel().joules(seconds=2, cpu_seconds=1) == pytest.approx(110)
    with pytest.raises(ValueError, match="linear"):
        PowerModel(exponent=0.7).joules(seconds=2, cpu_seconds=1)


@pytest.mark.parametrize(
    ("model", "server_joules", "idle_joules"),
    [
        (PowerModel(), 0.25 * 60 * 1.1, 20 * 1.1),
        (PowerModel(exponent=0.5), 0.25 / 0.75 * 60 * 0.75**0.5 * 1.1, 20 * 1.1),
        (PowerModel(prefill_factor=1.4), 0.25 * 60 * 1.4 * 1.1, 20 * 1.1),
        (PowerModel(idle_swing_watts=5, idle_swing_seconds=2), 0.25 * 60 * 1.1, (20 + 5 * 2 / math.pi) * 1.1),
    ],
)
def test_truth_is_the_servers_part_of_what_was_fed_when_another_program_works_too(
    tmp_path: Path, model: PowerModel, server_joules: float, idle_joules: float
) -> None:
    """In a second the server has a quarter of a CPU, another program half of one; it reads a prompt throughout."""
    machine, server = StepClock(), StepClock()
    watched = Watched(0, tmp_path / "truth", tmp_path / "prefilling")
    (tmp_path / "prefilling").write_text("1")
    with PowercapTree(tmp_path / "tree") as tree:
        meter = ServerMeter(watched, server)
        feeder = Feeder(tree, model, machine, itertools.count(0, 2_000_000).__next__, meter)
        for step in range(1, 501):
            machine.busy_ns = step * 1_500_000
            server.busy_ns = step * 500_000
            feeder.step()
        fed_joules = (tree.read_uj(PACKAGE) + tree.read_uj(MEMORY)) / 1e6
    truth = Truth(watched.truth)
    served, idle = (measure(2_000_000, 1_000_000_000) for measure in (truth.server_joules, truth.idle_joules))
    assert served == pytest.approx(server_joules, rel=0.01)
    assert idle == pytest.approx(idle_joules, rel=0.01)
    assert served + idle < fed_joules


def test_counter_wraps_when_it_passes_its_range(tmp_path: Path) -> None:
    """The counter goes on from zero at the range that its own file names, at the same width."""
    with PowercapTree(tmp_path, range_uj=1_000) as tree:
        tree.set_uj(PACKAGE, 990)
        tree.advance_uj(PACKAGE, 25)
    zone = tmp_path / PACKAGE
    assert (zone / "energy_uj").read_text() == f"{15:020d}\n"
    assert (zone / "max_energy_range_uj").read_text() == "1000\n"


def test_fed_counters_agree_with_the_cpu_time_when_the_machine_works(powercap: PowercapTree) -> None:
    """The feeder's energy over two seconds is what the CPU time of those seconds says."""
    clock = busy_clock()
    start_uj, start_ns, start_busy_ns = powercap.read_uj(PACKAGE), time.monotonic_ns(), clock.read_ns()
    with _spinning(2):
        pass
    joules = (powercap.read_uj(PACKAGE) - start_uj) / 1e6
    seconds, busy_seconds = (time.monotonic_ns() - start_ns) / 1e9, (clock.read_ns() - start_busy_ns) / 1e9
    assert joules == pytest.approx(20 * seconds + 60 * busy_seconds, rel=0.02)


def test_counters_are_those_of_now_when_a_reader_asks_before_the_next_step(tmp_path: Path) -> None:
    """The feeder makes a step for whoever asks, however long its own ones are."""
    with feeding(tmp_path, step_seconds=3600) as tree:
        tree.catch_up()
        start_uj, start_ns = tree.read_uj(PACKAGE), time.monotonic_ns()
        with _spinning(0.2):
            pass
        assert tree.read_uj(PACKAGE) == start_uj
        end_ns = time.monotonic_ns()
        tree.catch_up()
        idle_joules = PowerModel().idle_watts * (end_ns - start_ns) / 1e9
        assert (tree.read_uj(PACKAGE) - start_uj) / 1e6 > idle_joules


def test_sum_over_processes_holds_the_work_of_one_that_ended_when_it_was_seen(powercap: PowercapTree) -> None:
    """Where no control group keeps the account, a process's time stays in the sum after its end."""
    clock = ProcessSumClock()
    start_ns = clock.read_ns()
    with _spinning(0.5) as process:
        while process.poll() is None:
            worked_ns = process_cpu_ns(process.pid) or 0
            seen_ns = clock.read_ns()
    assert seen_ns - start_ns >= worked_ns - 1_000_000
    assert clock.read_ns() >= seen_ns


def test_cpu_time_of_a_tree_holds_its_children_when_they_work() -> None:
    """The tree's time is the process's own and that of its living descendants."""
    with _spinning(0.3) as child:
        while (child_ns := process_cpu_ns(child.pid) or 0) < 50_000_000:
            time.sleep(0.01)
        assert tree_cpu_ns(os.getpid()) >= child_ns
    assert process_cpu_ns(child.pid) is None


def test_scaphandre_reports_the_synthetic_energy_when_it_is_asked(
    scaphandre: Scaphandre, powercap: PowercapTree
) -> None:
    """The real exporter reads the tree: its socket counter lies between the file's values before and after."""
    before_uj = powercap.read_uj(PACKAGE)
    text = requests.get(scaphandre.url, timeout=5).text
    after_uj = powercap.read_uj(PACKAGE)
    (value,) = (line.split()[-1] for line in text.splitlines() if line.startswith("scaph_socket_energy_microjoules"))
    assert before_uj <= int(value) <= after_uj

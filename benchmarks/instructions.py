"""How many instructions does a call cost more with energy on? Beside other instrumentations, and the same on any day.

Where a machine's speed changes from second to second, time tells candidates apart only after hours. This counts what
the processor executes instead (valgrind's cachegrind, which must be installed: ``apt install valgrind``), which differs
by a third of a percent of a whole call between runs. It says nothing of caches, of the kernel, of threads that wait for
each other, or of garbage collections that go through what was there before.

Ours comes in two rows: what the thread executes that makes the call, and with all that our other threads do for it. As
valgrind makes a program some fifty times slower, clocks would give these the work of fifty calls for each; they are
not started, and what they do is done by hand: a reading at every fourteenth call edge, as where 700 calls a second are
read 100 times, and a sample and a settling after every hundred calls.
"""

from __future__ import annotations

import argparse
import gc
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.overhead import CHUNKS, PEERS, askers, set_up, tracer_provider

_OURS, _ALL = "ours, caller", "ours, all"
_CANDIDATES = ("none", "bare-span", _OURS, _ALL, "ours-no-energy", *PEERS)
_CALLS_PER_READING = 7
_CALLS_PER_SETTLING = 100
_WARM_UP = 100
_NOT_INSTALLED = 3
_COMMAND = ("valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks instructions", description=__doc__)
    parser.add_argument("--calls", type=int, default=300, help="at each candidate")
    parser.add_argument("--streams", type=int, default=20, help=f"of {CHUNKS} chunks, at each candidate")
    parser.add_argument("--only", nargs="+", choices=_CANDIDATES, default=_CANDIDATES, help="beside 'none'")
    parser.add_argument("--child", choices=_CANDIDATES, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        os._exit(_child(options.child, options.calls, options.streams))  # what is held then is settled in no row
    if shutil.which(_COMMAND[0]) is None:
        print("This needs valgrind, which is not there: apt install valgrind.", file=sys.stderr)
        return 2
    print(f"{'in thousands':16} {'a call':>8} {'added':>8} {'a chunk':>8} {'added':>8}")
    bare = None
    for name in ("none", *[each for each in _CANDIDATES[1:] if each in options.only]):
        each = _per_call_and_chunk(name, options.calls, options.streams)
        if each is None:
            print(f"{name:16} not installed")
            continue
        bare = bare or each
        columns = [f"{value:8.1f} {value - without:8.1f}" for value, without in zip(each, bare, strict=True)]
        print(f"{name:16}", *columns, flush=True)
    return 0


def _per_call_and_chunk(name: str, calls: int, streams: int) -> tuple[float, float] | None:
    """Thousands of instructions, as differences of runs; ``None`` where the candidate is not there."""
    with ThreadPoolExecutor(2) as pool:
        counts = list(pool.map(lambda work: _count(name, *work), ((0, 0), (calls, 0), (0, streams))))
    neither, with_calls, with_streams = counts
    if neither is None or with_calls is None or with_streams is None:
        return None
    call = (with_calls - neither) / calls / 1000
    stream = (with_streams - neither) / streams / 1000
    return call, (stream - call) / CHUNKS


def _count(name: str, calls: int, streams: int) -> int | None:
    child = [sys.executable, "-m", "benchmarks", "instructions", "--child", name]
    child += ["--calls", str(calls), "--streams", str(streams)]
    settings = {"PYTHONHASHSEED": "0", "OTEL_LLM_ENERGY_BOARD": "off", "OTEL_LLM_ENERGY_IDLE_CACHE": "off"}
    with tempfile.TemporaryDirectory() as folder:  # a child leaves its own files behind
        env = os.environ | settings | {"TMPDIR": folder}
        done = subprocess.run([*_COMMAND, *child], env=env, capture_output=True, text=True, check=False)
    if done.returncode == _NOT_INSTALLED:
        return None
    found = re.search(r"I +refs: +([\d,]+)", done.stderr)
    if done.returncode or found is None:
        raise RuntimeError(f"{name} failed: {done.stderr[-2000:]}")
    return int(found[1].replace(",", ""))


def _child(name: str, calls: int, streams: int) -> int:
    with ExitStack() as stack:
        try:
            after = _ours(stack, settling=name == _ALL) if name in (_OURS, _ALL) else None
            wrap = set_up(name, stack) if after is None else nullcontext
        except ImportError:
            return _NOT_INSTALLED
        call, stream = askers(stack, wrap, CHUNKS)
        for number, ask in enumerate([*[call] * (_WARM_UP + calls), *[stream] * (1 + streams)]):
            if number == _WARM_UP:
                # A collection that goes through all the modules costs as much as dozens of calls, and comes by chance.
                gc.collect()
                gc.freeze()
            ask()
            if after is not None:
                after(number)
    return 0


def _ours(stack: ExitStack, *, settling: bool) -> Callable[[int], None]:
    """Instrument, without threads of ours; what is to be done after each call."""
    import otel_llm_energy
    from otel_llm_energy import RaplMeter
    from otel_llm_energy.tracing.edges import EdgeAllowance
    from otel_llm_energy.tracing.forward import Forwarder
    from otel_llm_energy.tracing.pollers import Poller
    from tests.support.powercap import MEMORY, PACKAGE, PowercapTree

    edges = 0

    def take(*_: object) -> bool:
        nonlocal edges
        edges += 1
        return edges % (2 * _CALLS_PER_READING) == 0

    for owner, method, stand_in in (
        (Poller, "start", lambda _: None),
        (Forwarder, "start", lambda _: None),
        (EdgeAllowance, "take", take),
        (RaplMeter, "pace", replace(RaplMeter.pace, edge_gap_seconds=0.0)),
    ):
        stack.enter_context(patch.object(owner, method, stand_in))
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    tree = stack.enter_context(PowercapTree(folder))
    handle = otel_llm_energy.instrument(tracer_provider=tracer_provider(), meters=RaplMeter(tree.root))
    by_hand = _ByHand(handle)

    def after(number: int) -> None:
        if number % _CALLS_PER_READING == 0:
            for zone in (PACKAGE, MEMORY):
                tree.advance_uj(zone, 300_000)  # 30 W at 100 readings a second
        if settling and number % _CALLS_PER_SETTLING == _CALLS_PER_SETTLING - 1:
            by_hand.settle()

    return after


class _ByHand:
    """What the threads of an instrumentation do, where they were not started."""

    def __init__(self, handle: Any) -> None:
        self._runtime = handle._runtime
        self._station = self._runtime.desk.stations[0]
        self._station._find_meters()

    def settle(self) -> None:
        """Read the meter, sample activity, settle, hand spans on."""
        self._station._servers.final = True
        for reader in self._station.meters:
            reader._poll()
        self._runtime.desk._settle()
        for gate in self._runtime.gates:
            gate.tick()
            gate._forwarder.flush(1.0)

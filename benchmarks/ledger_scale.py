"""How many claims a second does the ledger settle on one core, and does its memory stay flat?

Calls to one server that reports its timings, so that each work window comes at the call's end, two channels, a reading
of each every 10 ms (as with RAPL files at the edges of many calls) and a sample of activity every 250 ms. A claim's
cost is all of it: opening, closing, its part of the sweep, its bill.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import resource
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from otel_llm_energy.ledger.bill import Window
from otel_llm_energy.ledger.entry import Entry
from otel_llm_energy.ledger.ledger import Ledger
from otel_llm_energy.ledger.sweep import BATCH_SHARINGS, BatchSharing
from otel_llm_energy.quantities import NS_PER_SECOND, ActivitySample, Channel, Reading

# Idle power is known, so that a claim takes the whole way; it is learned only while no call is open.
_CHANNELS = (
    Channel("package-0", "cpu", "rapl", idle_watts=20),
    Channel("package-0/dram", "memory", "rapl", idle_watts=2),
)
_READING_NS = 10_000_000
_SAMPLE_NS = 250_000_000
_SETTLE_NS = 250_000_000
_TARGET_CLAIMS = 50_000
_TARGET_IDLE = 0.002
_AT_OPEN = 1_000
_BAR = 50


class Machine:
    """A ledger, and a machine on which ``open_calls`` calls are open at any time, each for as long as the others.

    Where they are not ``apart``, one begins as another ends: the number at work never changes.
    """

    def __init__(self, open_calls: int, calls_per_second: int, share: BatchSharing, *, apart: bool = False) -> None:
        self._between_ns = NS_PER_SECOND // calls_per_second
        self._later_ns = self._between_ns // 3 if apart else 0
        self._open: deque[Entry] = deque()
        self._now_ns = 0
        self._next_reading_ns = self._next_sample_ns = self._next_settling_ns = 0
        self._ledger = Ledger(0, share=share)
        self._weights = (2000, 800) if share == "phase-tokens" else (0, 0)
        for channel in _CHANNELS:
            self._ledger.add_channel(channel)
        self._ledger.add_server("server", reports=True)
        self.settled = 0
        for _ in range(open_calls):
            self._open.append(self._ledger.open("server", self._advance(), "chat"))

    def run(self, calls: int) -> None:
        """As many calls begin, and as many end."""
        for _ in range(calls):
            now_ns = self._advance()
            self._open.append(self._ledger.open("server", now_ns, "chat"))
            self._close(self._open.popleft(), now_ns + self._later_ns)

    def _close(self, entry: Entry, now_ns: int) -> None:
        turn_ns = entry.opened_ns + (now_ns - entry.opened_ns) // 4
        prefill = Window(entry.opened_ns, turn_ns, "prefill", self._weights[0])
        decode = Window(turn_ns, now_ns, "decode", self._weights[1])
        self._ledger.close(entry, (prefill, decode), reported=True)

    def _advance(self) -> int:
        """Let time pass until the next call; whatever is due in between happens."""
        self._now_ns += self._between_ns
        while self._next_reading_ns <= self._now_ns:
            self._read(self._next_reading_ns)
            self._next_reading_ns += _READING_NS
        return self._now_ns

    def _read(self, at_ns: int) -> None:
        for channel in _CHANNELS:
            self._ledger.read(Reading(channel.id, at_ns // 10, at_ns, at_ns))  # 100 W
        if at_ns >= self._next_sample_ns:
            self._next_sample_ns = at_ns + _SAMPLE_NS
            self._ledger.sample(ActivitySample("cpu", at_ns, 2 * at_ns, {"server": at_ns}, 2, 0, 0))
        if at_ns >= self._next_settling_ns:
            self._next_settling_ns = at_ns + _SETTLE_NS
            self.settled += len(self._ledger.settle(at_ns))


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks ledger_scale", description=__doc__)
    parser.add_argument("--calls", type=int, default=1_000_000, help="calls in a row for the memory")
    parser.add_argument("--at-each", type=int, default=30_000, help="calls at each number of open ones")
    parser.add_argument(
        "--rate", type=int, default=10_000, help="calls that begin in each second of the machine's time"
    )
    parser.add_argument("--apart", action="store_true", help="no call ends at the very instant at which another begins")
    parser.add_argument("--share", choices=BATCH_SHARINGS, default="equal-time")
    parser.add_argument("--part", nargs="+", choices=("cost", "memory", "thread"), default=["cost", "memory", "thread"])
    parser.add_argument("--profile", action="store_true", help="print where the time goes at 1,000 open calls")
    options = parser.parse_args(arguments)
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cpus)})
    if options.profile:
        _profile(options)
        return 0
    if "cost" in options.part:
        _cost(options)
    if "memory" in options.part:
        _memory(options)
    os.sched_setaffinity(0, cpus)
    if "thread" in options.part:
        _thread()
    return 0


def _cost(options: argparse.Namespace) -> None:
    """Of a claim, against the number of calls that are open at the same time."""
    print("open calls   us a claim   claims/s")
    worst_us = 0.0
    for open_calls in (10, 30, 100, 300, 1_000, 3_000, 10_000):
        cost_us = min(_claim_us(open_calls, options) for _ in range(2))
        worst_us = worst_us or 1.5 * cost_us
        verdict = ""
        if open_calls == _AT_OPEN:
            verdict = f"  target >= {_TARGET_CLAIMS}: {'met' if 1e6 / cost_us >= _TARGET_CLAIMS else 'MISSED'}"
        bar = "#" * max(round(_BAR * cost_us / (2 * worst_us)), 1)
        print(f"{open_calls:10d} {cost_us:12.1f} {1e6 / cost_us:10.0f}  {bar}{verdict}", flush=True)


def _claim_us(open_calls: int, options: argparse.Namespace) -> float:
    machine = Machine(open_calls, options.rate, options.share, apart=options.apart)
    machine.run(max(2 * open_calls, options.rate))  # from now on as many are settled as begin
    started_ns = time.process_time_ns()
    machine.run(options.at_each)
    return (time.process_time_ns() - started_ns) / 1e3 / int(options.at_each)


def _memory(options: argparse.Namespace) -> None:
    """Of the process, after each tenth of so many calls in a row."""
    machine = Machine(_AT_OPEN, options.rate, options.share, apart=options.apart)
    sizes = []
    started_ns = time.process_time_ns()
    for _ in range(10):
        machine.run(options.calls // 10)
        sizes.append(_resident_mib())
    seconds = (time.process_time_ns() - started_ns) / 1e9
    shown = ", ".join(f"{size:.1f}" for size in sizes)
    print(f"{options.calls} calls in a row, {_AT_OPEN} open: {machine.settled / seconds:.0f} claims/s of CPU time")
    print(f"  resident MiB after each tenth: {shown}; growth over the last half {sizes[-1] - sizes[4]:+.1f}")


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def _profile(options: argparse.Namespace) -> None:
    machine = Machine(_AT_OPEN, options.rate, options.share, apart=options.apart)
    machine.run(2 * _AT_OPEN)
    with cProfile.Profile() as profile:
        machine.run(options.at_each)
    pstats.Stats(profile).sort_stats("tottime").print_stats(25)


def _thread(seconds: float = 20.0) -> None:
    """CPU time of all our threads while no call is open, with RAPL files."""
    from benchmarks.bench import session

    with session("rapl", os.getpid()):  # which waits until meters are found and idle power is learned
        before_ns, started_ns = dict(_threads_ns()), time.monotonic_ns()
        time.sleep(seconds)
        wall_ns = time.monotonic_ns() - started_ns
        used = {name: after - before_ns.get(name, 0) for name, after in _threads_ns()}
    total = sum(used.values()) / wall_ns
    verdict = "met" if total <= _TARGET_IDLE else "MISSED"
    print(f"no call open, {seconds:g} s: {100 * total:.3f} % of a core (target <= {100 * _TARGET_IDLE:g} %: {verdict})")
    for name, used_ns in sorted(used.items(), key=lambda pair: -pair[1])[:5]:
        print(f"  {name:40} {used_ns / 1e6:8.2f} ms")


def _threads_ns() -> Iterator[tuple[str, int]]:
    """CPU time of this process's threads but the main one, ns, from their schedstat."""
    for thread in threading.enumerate():
        if thread is not threading.main_thread() and thread.native_id is not None:
            text = Path(f"/proc/self/task/{thread.native_id}/schedstat").read_text()
            yield f"{thread.name} {thread.native_id}", int(text.split()[0])

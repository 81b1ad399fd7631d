"""A whole study on any machine: 200 calls of the small real model, the report, a forecast and its error.

The model, its server, the calls and the CPU time are real. The counters are synthetic, since most small machines have
no meter: a second process moves them as the CPUs are really used, 20 W and 60 W more for each busy CPU, and a tenth of
that for memory. So the physics of a call is known: idle power times its time, and watts times the CPU seconds of its
prefill and decode. ``--meter auto`` reads this machine's own meter instead, or estimates.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from otel_llm_energy.cli import main as otel_llm_energy
from tests.support.feeder import feeding

_MAX_TOKENS = ("16", "64")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks study", description=__doc__)
    parser.add_argument("--meter", choices=("synthetic", "auto"), default="synthetic")
    parser.add_argument("--repeats", type=int, default=2, help="50 prompts, two limits and so many repeats (2)")
    parser.add_argument("--rest", default="0.4", help="pause between calls, s (0.4)")
    parser.add_argument("--out", default="study-starter", help="folder of the study; taken up again if it is there")
    options = parser.parse_args(arguments)
    with _meter(options.meter) as meter:
        collect = ["collect", "starter", "--repeats", str(options.repeats), "--max-tokens", *_MAX_TOKENS]
        _run(*collect, "--rest", options.rest, "--out", options.out, *meter)
    _run("report", options.out)
    _run("forecast", "fit", options.out, "--out", str(Path(options.out, "forecast.json")))
    for target in ((), ("--above-idle",)):
        print(f"\nHeld-out error, {'above idle' if target else 'with idle power'}:", flush=True)
        _run("forecast", "evaluate", options.out, *target)
    return 0


@contextmanager
def _meter(kind: str) -> Iterator[list[str]]:
    if kind == "auto":
        yield []
        return
    print(
        "Synthetic counters: 20 W, and 60 W for each CPU that is really busy; a tenth of that for memory.", flush=True
    )
    with tempfile.TemporaryDirectory() as folder, feeding(Path(folder, "powercap")) as tree:
        yield ["--powercap", str(tree.root)]


def _run(*words: str) -> None:
    print(f"$ otel-llm-energy study {' '.join(words)}", flush=True)
    code = otel_llm_energy(["study", *words])
    if code:
        raise SystemExit(code)

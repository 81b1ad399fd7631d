"""Collects in a process of its own, which a test can kill: ``python -m tests.study.collecting PLAN DIR``."""

from __future__ import annotations

import sys
from pathlib import Path

from otel_llm_energy.study.collect import Options, collect
from otel_llm_energy.study.plan import read_plan


def main() -> None:
    # Nothing to discover: a row says that there is no meter, and is a row all the same.
    options = Options(energy={"meters": "rapl", "powercap_root": "/nonexistent"})
    plan, folder = Path(sys.argv[1]), Path(sys.argv[2])
    progress = collect(read_plan(plan), folder, options, before_calls=lambda energy: print("asking", flush=True))
    print(progress.done_now, flush=True)


if __name__ == "__main__":
    main()

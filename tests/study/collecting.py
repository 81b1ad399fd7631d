"""Collects in a process of its own, which a test can kill: ``python -m tests.study.collecting PLAN DIR``."""

from __future__ import annotations

import argparse
import resource
import sys
from pathlib import Path

from otel_llm_energy.study import StudyError
from otel_llm_energy.study.collect import Options, collect
from otel_llm_energy.study.plan import read_plan


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("plan", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--most-bytes", type=int, help="no file may become larger: a disk that is full")
    asked = parser.parse_args()
    # Nothing to discover: a row says that there is no meter, and is a row all the same.
    options = Options(energy={"meters": "rapl", "powercap_root": "/nonexistent"})

    def before_calls(energy: object) -> None:
        if asked.most_bytes:
            resource.setrlimit(resource.RLIMIT_FSIZE, (asked.most_bytes, asked.most_bytes))
        print("asking", flush=True)

    try:
        progress = collect(read_plan(asked.plan), asked.folder, options, before_calls=before_calls)
    except StudyError as error:
        print(error)
        return 1
    print(progress.done_now, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

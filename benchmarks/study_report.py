"""How long does the report of a million calls take, and how much memory? A generated dataset of known physics.

The report is made by the command itself, in a process of its own; memory is the most that the process ever held.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import polars as pl

from tests.study.physics import dataset, write

_CHUNK_ROWS = 250_000
_MOST_SECONDS = 60.0
_MOST_BYTES = 2_000_000_000


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks study_report", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--prompts", type=int, default=20_000)
    parser.add_argument("--keep", metavar="FILE", help="keep the page there")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        study = _generate(Path(folder), options.rows, options.prompts)
        size = (study / "calls.parquet").stat().st_size
        page = Path(options.keep) if options.keep else Path(folder, "report.html")
        seconds, most_bytes = _measured("study", "report", str(study), "--out", str(page))
        print(
            f"report of {options.rows:,} calls ({size / 1e6:,.0f} MB of Parquet, texts among it): {seconds:.1f} s"
            f" (wanted: {_MOST_SECONDS:.0f}), {most_bytes / 1e9:.2f} GB (wanted: {_MOST_BYTES / 1e9:.0f}),"
            f" page of {page.stat().st_size / 1e3:.0f} kB"
        )
    return int(seconds > _MOST_SECONDS or most_bytes > _MOST_BYTES)


def _generate(folder: Path, rows: int, prompts: int) -> Path:
    parts = []
    for number, start in enumerate(range(0, rows, _CHUNK_ROWS)):
        part = dataset(min(_CHUNK_ROWS, rows - start), prompts=prompts, seed=number)
        part = part.with_columns(call_id=pl.format("{}-{}", pl.lit(number), pl.col("call_id")))
        parts.append(write(folder / f"part-{number}", part) / "calls.parquet")
    (folder / "study").mkdir()
    pl.scan_parquet(parts).sink_parquet(folder / "study" / "calls.parquet")
    return folder / "study"


def _measured(*words: str) -> tuple[float, int]:
    """Seconds and most resident memory, in bytes, of a command of ours."""
    started_seconds = time.monotonic()
    child = os.spawnv(os.P_NOWAIT, sys.executable, [sys.executable, "-m", "otel_llm_energy.cli", *words])
    _, status, usage = os.wait4(child, 0)
    if os.waitstatus_to_exitcode(status) != 0:
        raise SystemExit("The report was not made; its words are above.")
    return time.monotonic() - started_seconds, usage.ru_maxrss * 1024


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

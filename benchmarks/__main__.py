"""``python -m benchmarks [NAME ...]``: run these benchmarks, or list them."""

from __future__ import annotations

import importlib
import os
import sys
import tempfile

NAMES = (
    "accuracy",
    "first_call",
    "queue",
    "shapley",
    "overhead",
    "instructions",
    "bare_http",
    "throughput",
    "memory",
    "ledger_scale",
    "study_report",
    "study",
)


def main(arguments: list[str]) -> int:
    if not arguments:
        print("usage: python -m benchmarks", "[" + " | ".join(NAMES) + "] [options; --help]")
        return 2
    name, *rest = arguments
    if name not in NAMES:
        print(f"There is no benchmark {name!r}. Choose from {', '.join(NAMES)}.", file=sys.stderr)
        return 2
    # Apart from whatever else is metered on this machine just now.
    with tempfile.TemporaryDirectory() as board:
        os.environ.setdefault("OTEL_LLM_ENERGY_BOARD", board)
        result = importlib.import_module(f"benchmarks.{name}").main(rest)
    return int(result or 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

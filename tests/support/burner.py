"""Keeps CPUs busy: ``python burner.py THREADS DUTY`` burns in so many threads, each the part DUTY of the time.

Runs no code of ours, so that it may stand in for any program. Until it is killed.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PERIOD_SECONDS = 0.1
_SCRIPT = Path(__file__)


@contextmanager
def burning(script_name: str, folder: Path, threads: int = 1, duty: float = 1.0) -> Iterator[subprocess.Popen[bytes]]:
    """Burn as a script of that name in ``folder`` for the length of the block."""
    script = folder / script_name
    script.write_text(_SCRIPT.read_text())
    with subprocess.Popen([sys.executable, str(script), str(threads), str(duty)]) as process:
        try:
            yield process
        finally:
            process.kill()


def _burn(duty: float) -> None:
    while True:
        end = time.monotonic() + _PERIOD_SECONDS * duty
        while time.monotonic() < end:
            sum(range(10_000))
        if duty < 1:
            time.sleep(_PERIOD_SECONDS * (1 - duty))


if __name__ == "__main__":
    for _ in range(int(sys.argv[1])):
        threading.Thread(target=_burn, args=(float(sys.argv[2]),)).start()

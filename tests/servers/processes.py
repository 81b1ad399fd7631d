"""Starts `working_server` under any name and talks to it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

SCRIPT = Path(__file__).with_name("working_server.py")


class WorkingServer:
    """The running process and its port."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.pid = process.pid
        self.port = int(self._answer())

    def do(self, what: str) -> str:
        """Give an order and wait for its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        return self._answer()

    def kill(self) -> None:
        """End it at once, and take note of its end."""
        self.process.kill()
        self.process.wait()

    def _answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


@contextmanager
def working_server(
    folder: Path | None = None, name: str = "", arguments: Sequence[str] = (), env: dict[str, str] | None = None
) -> Iterator[WorkingServer]:
    """The server for the length of the block, at work in ``folder``; with a name, as a script of that name there."""
    script = SCRIPT
    if folder is not None and name:
        script = Path(shutil.copy(SCRIPT, folder / name))
    process = subprocess.Popen(
        [sys.executable, str(script), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={**os.environ, **(env or {})},
    )
    try:
        yield WorkingServer(process)
    finally:
        process.kill()
        process.communicate()

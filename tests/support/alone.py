"""What of this machine only one test can have at a time, though tests run side by side in several processes."""

from __future__ import annotations

import fcntl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def alone_with(what: str) -> Iterator[None]:
    """Wait until no other process is in such a block, and keep others out."""
    with Path(tempfile.gettempdir(), f"otel-llm-energy-tests-{what}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield

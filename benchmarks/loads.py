"""Other programs on the same CPUs: one that is busy at random, one that takes a constant part of a CPU."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Each ends with its standard input: a benchmark that is killed leaves none of them behind.
_NEIGHBOUR = """
import random, select, time
rng = random.Random({seed})
while not select.select([0], [], [], rng.uniform(0.1, 1.5))[0]:
    end = time.monotonic() + rng.uniform(0.1, 1.5)
    while time.monotonic() < end:
        pass
"""
_BACKGROUND = """
import select, time
while not select.select([0], [], [], {idle_seconds})[0]:
    end = time.monotonic() + {busy_seconds}
    while time.monotonic() < end:
        pass
"""
_TURN_SECONDS = 0.02


@contextmanager
def noisy_neighbour(seed: int) -> Iterator[None]:
    """A program that is now busy, now not, for 0.1 to 1.5 s each."""
    with _running(_NEIGHBOUR.format(seed=seed)):
        yield


@contextmanager
def background(cpus: float) -> Iterator[None]:
    """A program that takes a constant part of one CPU."""
    with _running(_BACKGROUND.format(busy_seconds=_TURN_SECONDS * cpus, idle_seconds=_TURN_SECONDS * (1 - cpus))):
        yield


@contextmanager
def _running(code: str) -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, start_new_session=True)
    try:
        yield
    finally:
        process.kill()
        process.wait()

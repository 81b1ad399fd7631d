"""Child processes that end with their test: started, waited for, stopped, and shown when they fail."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import requests

_STOP_SECONDS = 5
_PLACES = ("OTEL_LLM_ENERGY_CACHE", "OTEL_LLM_ENERGY_IDLE_CACHE", "OTEL_LLM_ENERGY_BOARD")


def environment_without_settings(**variables: str) -> dict[str, str]:
    """This process's own, without settings that change what a command does; what is kept stays where it is."""
    kept = {
        key: value for key, value in os.environ.items() if key in _PLACES or not key.startswith(("OTEL_", "OPENAI_"))
    }
    return kept | variables


def free_port() -> int:
    """A TCP port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int, address: str = "127.0.0.1") -> bool:
    """Whether somebody accepts connections on this port; sends nothing."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((address, port)) == 0


def answers(url: str) -> bool:
    """Whether a GET of this URL is answered with 200."""
    try:
        return requests.get(url, timeout=2).status_code == 200
    except requests.RequestException:
        return False


@contextmanager
def running(
    command: Sequence[str],
    ready: Callable[[], bool],
    log: Path,
    env: Mapping[str, str] | None = None,
    timeout_seconds: float = 60,
    kill: bool = False,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server for the length of the block, which begins once ``ready()``; its words go to ``log``.

    ``kill`` ends it without asking: for one that takes long to say goodbye.

    Raises:
        RuntimeError: it ended, or was not ready in time; with the end of its log.
    """
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
            start_new_session=True,
        )
    try:
        _wait_until_ready(process, ready, log, timeout_seconds)
        yield process
    finally:
        if kill:
            process.kill()
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask the process to end, then make it."""
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _wait_until_ready(
    process: subprocess.Popen[bytes], ready: Callable[[], bool], log: Path, timeout_seconds: float
) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not ready():
        ended = process.poll()
        if ended is None and time.monotonic() < deadline:
            time.sleep(0.05)
            continue
        state = f"is not ready after {timeout_seconds} s" if ended is None else f"ended with {ended}"
        raise RuntimeError(f"{process.args!r} {state}:\n{log.read_text(errors='replace')[-4000:]}")

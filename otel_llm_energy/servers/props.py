"""What llama.cpp's server tells of itself: how many calls it works on at once.

Source: ``GET /props`` of llama.cpp's ``tools/server/README.md``.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from typing import Final

_LOADING: Final = 503
_SECONDS: Final = 1.0
_MOST_BYTES: Final = 1 << 20  # a model's chat template is in it, too


class LoadingError(Exception):
    """The server loads its model, and tells nothing until it has."""


def slots_told(host: str, port: int, timeout_seconds: float = _SECONDS) -> int | None:
    """``total_slots`` of the server at an address of this machine; ``None`` where it does not say, or wants a key.

    Waits so long for a connection, and then for all of the answer. Raises `LoadingError`, and nothing else.
    """
    connection = HTTPConnection(host, port, timeout=timeout_seconds)
    try:
        connection.connect()
        with _hanging_up(connection.sock, timeout_seconds):
            connection.request("GET", "/props")
            response = connection.getresponse()
            if response.status == _LOADING:
                raise LoadingError
            props = json.loads(response.read(_MOST_BYTES))
    except (OSError, HTTPException, ValueError, RuntimeError):  # no thread can be started, or too many brackets
        return None
    finally:
        connection.close()
    slots = props.get("total_slots") if isinstance(props, dict) else None
    return slots if type(slots) is int and slots > 0 else None


@contextmanager
def _hanging_up(connected: socket.socket, after_seconds: float) -> Iterator[None]:
    """Have whoever reads an answer find its end then: it may come one byte after another, each in time."""

    def hang_up() -> None:
        with suppress(OSError):  # it has been closed just now
            connected.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(after_seconds, hang_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()

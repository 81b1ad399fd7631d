"""What llama.cpp's server tells of itself: how many calls it works on at once.

Source: ``GET /props`` of llama.cpp's ``tools/server/README.md``.
"""

from __future__ import annotations

import json
from http.client import HTTPConnection, HTTPException
from typing import Final

_LOADING: Final = 503
_SECONDS: Final = 1.0
_MOST_BYTES: Final = 1 << 20  # a model's chat template is in it, too


class LoadingError(Exception):
    """The server loads its model, and tells nothing until it has."""


def slots_told(host: str, port: int) -> int | None:
    """``total_slots`` of the server at an address of this machine; ``None`` where it does not say, or wants a key.

    Waits a second for the answer. Raises `LoadingError`, and nothing else.
    """
    connection = HTTPConnection(host, port, timeout=_SECONDS)
    try:
        connection.request("GET", "/props")
        response = connection.getresponse()
        if response.status == _LOADING:
            raise LoadingError
        props = json.loads(response.read(_MOST_BYTES))
    except (OSError, HTTPException, ValueError, RecursionError):
        return None
    finally:
        connection.close()
    slots = props.get("total_slots") if isinstance(props, dict) else None
    return slots if type(slots) is int and slots > 0 else None

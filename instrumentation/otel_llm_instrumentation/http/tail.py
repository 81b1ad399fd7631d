"""What is kept of a body that passes by, so that its facts can be read at its end."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable
from typing import Final

# Facts stand in short answers or at the end of long ones. Of what is longer nothing is kept or parsed; bytes.
_LONGEST: Final = 4 << 20


class Tail:
    """Keeps of a body that comes in pieces what its facts are read from; bounded in memory.

    Args:
        lines: how many of the last lines count, where each line (NDJSON) or event (SSE) is a payload; ``None`` where
            the whole body is the payload.
    """

    __slots__ = ("_last", "_pieces", "_size")

    def __init__(self, lines: int | None) -> None:
        self._last: deque[bytes] | None = None if lines is None else deque(maxlen=lines)
        self._pieces: list[bytes] = []  # of the line that has not ended yet, or of the whole body
        self._size = 0

    def feed(self, data: bytes) -> None:
        """The next bytes of the body."""
        last = self._last
        if last is not None and b"\n" in data:
            first, *lines, data = data.split(b"\n")
            self._keep(first)
            for line in (b"".join(self._pieces), *lines):
                _add_payload(last, line)
            self._pieces, self._size = [], 0
        self._keep(data)

    def payloads(self) -> list[object]:
        """What is kept and is JSON, oldest first."""
        rest = b"".join(self._pieces)
        if self._last is None:
            return _parsed([rest])
        last = self._last.copy()
        _add_payload(last, rest)
        return _parsed(last)

    def _keep(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size > _LONGEST:
            self._pieces = []
        elif piece:
            self._pieces.append(piece)


def _add_payload(last: deque[bytes], line: bytes) -> None:
    """Add what is the payload of a line: the data of an event, or a line of NDJSON."""
    payload = (line[5:] if line.startswith(b"data:") else line).strip()
    if payload.startswith(b"{"):
        last.append(payload)


def _parsed(texts: Iterable[bytes]) -> list[object]:
    payloads: list[object] = []
    for text in texts:
        try:
            payloads.append(json.loads(text))
        except (ValueError, RecursionError):
            continue  # what is no JSON says nothing
    return payloads

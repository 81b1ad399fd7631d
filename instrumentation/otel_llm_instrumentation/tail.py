"""What is kept of a body that passes by, so that its facts can be read at its end."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Final

# Facts stand in short answers or at the end of long ones. Of what is longer nothing is kept or parsed; bytes.
_LONGEST: Final = 4 << 20
# A stream is looked through for what to keep each time that so much has come, or as much again as is kept; bytes.
_AT_A_TIME: Final = 1 << 15
_CUT: Final = b"\0"  # begins what is left of a line that was too long: no payload begins so


class Tail:
    """Keeps of a body that comes in pieces what its facts are read from; bounded in memory.

    Args:
        lines: how many of the last lines count, where each line (NDJSON) or event (SSE) is a payload; ``None`` where
            the whole body is the payload.
    """

    __slots__ = ("_lines", "_pieces", "_room", "_size")

    def __init__(self, lines: int | None) -> None:
        self._lines = lines
        self._pieces: list[bytes] = []
        self._size = 0
        self._room = _LONGEST if lines is None else _AT_A_TIME

    def feed(self, data: bytes) -> None:
        """The next bytes of the body."""
        self._pieces.append(data)
        self._size += len(data)
        if self._size > self._room:
            self._thin_out()

    def payloads(self) -> list[object]:
        """What is kept and is JSON, oldest first."""
        text = b"".join(self._pieces)
        return _parsed([text] if self._lines is None else self._last_payloads(text.split(b"\n")))

    def _thin_out(self) -> None:
        *lines, rest = b"".join(self._pieces).split(b"\n") if self._lines is not None else [_CUT]
        if len(rest) > _LONGEST:
            rest = _CUT
        self._pieces = [b"\n".join([*self._last_payloads(lines), rest])]
        self._size = len(self._pieces[0])
        self._room = max(_AT_A_TIME, 2 * self._size) if self._lines is not None else _LONGEST

    def _last_payloads(self, lines: list[bytes]) -> list[bytes]:
        """The payloads of the last lines: the data of events, or lines of NDJSON."""
        wanted = self._lines or 0
        found: list[bytes] = []
        for line in reversed(lines):
            if len(found) == wanted:
                break
            payload = (line[5:] if line.startswith(b"data:") else line).strip()
            if payload.startswith(b"{"):
                found.append(payload)
        return found[::-1]


def _parsed(texts: Iterable[bytes]) -> list[object]:
    payloads: list[object] = []
    for text in texts:
        try:
            payloads.append(json.loads(text))
        except (ValueError, RecursionError):
            continue  # what is no JSON says nothing
    return payloads

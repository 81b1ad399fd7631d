"""Whose turn it is to hold the board: numbered turns, each with a lock that ends with its holder's process.

A holder that has died has let go of its lock, and the next turn is taken under it. One that is stopped keeps its
lock, so the next turn may be taken over its head; once it goes on, it finds that its turn is over.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re

from otel_llm_energy.host.folder import Folder, unusable
from otel_llm_energy.syscalls import Held


class Turn:
    """The right to hold the board, from `succeed` or `overtake` until `end`.

    Attributes:
        folder, board: where the turn's files are, and the name of the board.
        number: 1 and up; the next turn has the next number.
    """

    def __init__(self, folder: Folder, board: str, number: int, lock: int) -> None:
        self.folder = folder
        self.board = board
        self.number = number
        self._lock: Held | None = Held.of(lock)

    @property
    def name(self) -> str:
        """Its files' names begin with this."""
        return turn_name(self.board, self.number)

    @property
    def is_over(self) -> bool:
        """Somebody has taken the next turn meanwhile, or removed the files of this one, or closed them; or it ended."""
        lock = self._lock
        if lock is None or self.folder.has(f"{turn_name(self.board, self.number + 1)}.lock"):
            return True
        try:
            removed = os.fstat(lock.number).st_nlink == 0
        except OSError:  # another thread has just ended it
            return True
        return removed or not lock.is_ours or self._lock is None

    def clear_earlier(self) -> None:
        """Remove what earlier turns have left behind."""
        for name in self.folder.names():
            number = _number(self.board, name)
            if number is not None and number < self.number:
                self.folder.remove(name)

    def end(self) -> None:
        """Let somebody else have it."""
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.close()


def turn_name(board: str, number: int) -> str:
    """What the names of a turn's files begin with."""
    return f"{board}.{number}"


def newest(folder: Folder, board: str, kind: str = "lock") -> int:
    """The number of the newest turn that has such a file, whether or not it is over; 0 if there is none."""
    numbers = (_number(board, name) for name in folder.names() if name.endswith(f".{kind}"))
    return max((number for number in numbers if number is not None), default=0)


def succeed(folder: Folder, board: str) -> Turn | None:
    """Take the next turn if nobody holds the newest one. Raises `BoardError`."""
    last = newest(folder, board)
    if not last:
        return overtake(folder, board, 0)
    lock = _lock(folder, board, last)
    if lock is None:
        return None
    try:
        return overtake(folder, board, last)
    finally:
        os.close(lock)


def overtake(folder: Folder, board: str, number: int) -> Turn | None:
    """Take the turn after ``number``, whoever holds that; ``None`` if somebody was faster. Raises `BoardError`."""
    lock = _lock(folder, board, number + 1)
    if lock is None:
        return None
    turn = Turn(folder, board, number + 1, lock)
    if newest(folder, board) != number + 1 or turn.is_over:
        turn.end()
        return None
    return turn


def _lock(folder: Folder, board: str, number: int) -> int | None:
    try:
        descriptor = folder.open(f"{turn_name(board, number)}.lock", os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise unusable(folder.path, error.strerror or str(error)) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError as error:  # a file system without locks
        with contextlib.suppress(OSError):
            os.close(descriptor)
        raise unusable(folder.path, error.strerror or str(error)) from error
    return descriptor


def _number(board: str, name: str) -> int | None:
    match = re.fullmatch(rf"{re.escape(board)}\.(\d{{1,12}})\.[a-z]+", name)
    return int(match[1]) if match else None

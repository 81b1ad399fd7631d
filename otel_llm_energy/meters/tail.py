"""Follows a file of JSON objects that another program is writing, and may replace or cut off at any time."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

from otel_llm_energy.meters.base import MeterError
from otel_llm_energy.syscalls import Held

_OPENING = b'{"host":'
"""Every record of ``scaphandre json`` begins like this, and nothing inside of one does: quotes in texts are escaped."""

_BETWEEN = b"[], \t\r\n\0"  # zeros: logrotate cut off a file whose writer goes on at its old place
_LOOK_BACK_BYTES = 1 << 20
_MOST_BYTES = 4 << 20  # more unread than this is skipped; a minute of full records at 4 Hz

_decode = json.JSONDecoder().raw_decode


Record = dict[str, Any]


class RecordFile:
    """The records of a file that grows, from the last megabyte on. Not thread-safe.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._held = self._open()
        self._rest = b""  # a record that is not whole yet
        self._missing = False
        self._offset = max(self._held.file.st_size - _LOOK_BACK_BYTES, 0)

    def read(self) -> list[Record | None]:
        """The records that have become whole since the last time; ``None`` where some may be missing in between.

        Raises:
            MeterError: ``meter-not-found``, ``meter-permission`` or ``meter-unreadable``.
        """
        if not self._held.is_ours:  # a daemon closes all that it has
            self._follow(self._open())
        records = self._read_on()
        if self._was_replaced():
            self._follow(self._open())
            records += self._read_on()
        return records

    def close(self) -> None:
        """Give back the descriptor."""
        self._held.close()

    def _read_on(self) -> list[Record | None]:
        size = os.fstat(self._held.number).st_size
        if size < self._offset:  # cut off: its writer has started again
            self._start_again(0)
        if size - self._offset > _MOST_BYTES:
            self._start_again(size - _LOOK_BACK_BYTES)
        new = os.pread(self._held.number, size - self._offset, self._offset)
        self._offset += len(new)
        return self._whole_records(self._rest + new) if new else []

    def _whole_records(self, text: bytes) -> list[Record | None]:
        before, *beginnings = text.split(_OPENING)
        records: list[Record | None] = []
        for beginning in beginnings:
            self._drop(before)
            record, after = _record(_OPENING + beginning)
            if record is not None:
                records += [None, record] if self._missing else [record]
                self._missing = False
            before = after
        if before.startswith(_OPENING):  # a record that is not whole yet
            self._rest = before
        else:
            at = max(len(before) - len(_OPENING), 0)  # the next opening may have begun
            self._drop(before[:at])
            self._rest = before[at:]
        return records

    def _drop(self, text: bytes) -> None:
        """More than what stands between records is part of one that was not read."""
        self._missing |= bool(text.strip(_BETWEEN))

    def _start_again(self, offset: int) -> None:
        self._offset, self._rest, self._missing = offset, b"", True

    def _was_replaced(self) -> bool:
        try:
            named = os.stat(self.path)  # noqa: PTH116 - compared with a descriptor's
        except OSError:
            return False  # the new file is about to come
        return not os.path.samestat(named, self._held.file)

    def _follow(self, held: Held) -> None:
        former, self._held = self._held, held
        former.close()
        if not os.path.samestat(former.file, held.file):
            self._start_again(0)

    def _open(self) -> Held:
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise self._error(error) from None
        held = Held.of(descriptor)
        if not stat.S_ISREG(held.file.st_mode):
            held.close()
            raise MeterError("meter-unreadable", f"{self.path}: not a file that can be followed.")
        return held

    def _error(self, error: OSError) -> MeterError:
        if error.errno == errno.ENOENT:
            how = f"Let Scaphandre write it: scaphandre json --step 0 --step-nano 500000000 --file {self.path}"
            return MeterError("meter-not-found", f"{self.path}: no such file. {how}")
        reason = "meter-permission" if error.errno in (errno.EACCES, errno.EPERM) else "meter-unreadable"
        return MeterError(reason, f"{self.path}: {error.strerror}.")


def _record(text: bytes) -> tuple[Record | None, bytes]:
    """The object at the beginning of the text and what follows; ``None`` and the text if the object is not whole."""
    words = text.decode(errors="surrogateescape")
    try:
        record, end = _decode(words)
    except (ValueError, RecursionError):
        return None, text
    return record, words[end:].encode(errors="surrogateescape")

"""Rows on disk, each there for good before the next is asked for; whatever kills the process, none is lost or doubled.

A row is appended to ``rows.jsonl`` as one line and synchronised. A line without its end was being written when the
process died: it never was a row. When a study is complete, or is taken up again, rows move to ``calls.parquet``.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from otel_llm_energy.study import StudyError

ROWS: Final = "rows.jsonl"
_LOCK: Final = ".lock"
_TAIL_BYTES: Final = 1 << 16


class Journal:
    """The rows of one folder while they are written; a context manager. Only one process can have it open.

    Args:
        folder: made if it is not there.

    Raises:
        StudyError: another process collects into the folder, or it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / ROWS
        self._append_lock = threading.Lock()
        insist_on_text(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock_file = (folder / _LOCK).open("w")
        except OSError as error:
            raise StudyError(
                f"{folder}: cannot be written: {error.strerror}. Choose another folder with --out."
            ) from error
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock_file.close()
            raise StudyError(
                f"{folder}: another process collects into it. Wait for it, or choose another --out."
            ) from None
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._cut_torn_line()
        _sync(folder)

    def append(self, row: Mapping[str, Any]) -> None:
        """Keep a row for good; it is on the disk when this returns.

        Raises:
            OSError: it could not be written, and nothing of it was: the disk is full, or the journal closed.
        """
        # No table can hold half a character, which a server may have cut an error's words in: with one none of the rows
        # could be read.
        line = json.dumps(row, ensure_ascii=False, allow_nan=False).encode(errors="replace") + b"\n"
        with self._append_lock:
            if self._lock_file.closed:  # its descriptor may be another file's by now
                raise OSError(errno.EBADF, "the journal is closed")
            size = os.fstat(self._descriptor).st_size
            try:
                self._write(line)
                os.fsync(self._descriptor)
            except OSError:
                os.ftruncate(self._descriptor, size)
                raise

    def clear(self) -> None:
        """All rows are elsewhere, for good."""
        with self._append_lock:
            os.ftruncate(self._descriptor, 0)
            os.fsync(self._descriptor)

    def close(self) -> None:
        """Let another process have the folder. A repeat does nothing."""
        with self._append_lock:
            if not self._lock_file.closed:
                os.close(self._descriptor)
                self._lock_file.close()

    def _write(self, line: bytes) -> None:
        while line:
            line = line[os.write(self._descriptor, line) :]

    def _cut_torn_line(self) -> None:
        """Everything after the last line's end."""
        size = os.fstat(self._descriptor).st_size
        end = size
        while end > 0:
            start = max(end - _TAIL_BYTES, 0)
            last = os.pread(self._descriptor, end - start, start).rfind(b"\n")
            if last >= 0:
                end = start + last + 1
                break
            end = start
        if end != size:
            os.ftruncate(self._descriptor, end)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def insist_on_text(folder: Path) -> None:
    """Linux takes any bytes for a name; polars takes only UTF-8. Raises `StudyError`."""
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        raise StudyError(f"{str(folder)!r}: its name is no UTF-8, which tables need. Choose another folder.") from None


def rows_in(path: Path) -> Iterator[dict[str, Any]]:
    """The whole rows of a journal that may be written to just now; none if there is no such file.

    Raises:
        StudyError: a line in it is no row.
    """
    if not path.exists():
        return
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                yield json.loads(line)
            except ValueError as error:
                raise StudyError(f"{path}, line {number}: not a row of a study: {error}. Remove that line.") from None


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives the place of a new file, which then takes that of an old one: never half of either. Raises `OSError`."""
    partial = path.parent / f"{path.name}.partial"  # of "." and "/", too, which cannot be replaced
    try:
        yield partial
        _sync(partial)
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def replace_file(path: Path, content: bytes) -> None:
    """Put a whole file in place of an old one, or leave the old one. Raises `OSError`.

    A link stays one, to the new file; what is no file, as ``/dev/stdout`` and pipes, is written to.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        path.write_bytes(content)
        return
    with replacing(Path(os.path.realpath(path)) if path.is_symlink() else path) as partial:
        partial.write_bytes(content)


def _sync(path: Path) -> None:
    """Make a file's content, or a folder's names, new and renamed, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""System calls that keep the interpreter lock, for what the kernel answers from memory in a microsecond.

Python's own functions let go of the lock around each call, `os.listdir` around each name. Beside a thread that computes
whoever does so has the lock again only after 5 ms or more: to find out who listens at a port took seconds in a busy
app, and a counter read at a call's edge held the call up. Nothing that may wait belongs here: it would hold up the
whole app.

Where the C library is of another kind these are Python's own functions.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeVar

_T = TypeVar("_T")

_PART_BYTES: Final = 4096


def monotonic_ns(clock_ns: Callable[[], int] = time.monotonic_ns) -> int:
    """The monotonic clock as it is, ns.

    A test that freezes time (freezegun) puts other functions under the names in `time`; readings go on meanwhile, also
    for other processes, which share them. What is bound as a default is not replaced.
    """
    return clock_ns()


class _DirectoryEntry(ctypes.Structure):
    """``struct dirent`` of glibc and musl on 64 bits. Source: readdir(3)."""

    _fields_ = (
        ("d_ino", ctypes.c_uint64),
        ("d_off", ctypes.c_int64),
        ("d_reclen", ctypes.c_ushort),
        ("d_type", ctypes.c_ubyte),
        ("d_name", ctypes.c_char * 256),
    )


def _c_library() -> Any:
    """The functions used here, with their types; ``None`` where they may be others."""
    if sys.platform != "linux" or sys.maxsize < 2**32:
        return None
    library = ctypes.PyDLL(None, use_errno=True)
    number, size, text, pointer = ctypes.c_int, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_void_p
    signed_size, offset, entry = ctypes.c_ssize_t, ctypes.c_long, ctypes.POINTER(_DirectoryEntry)
    types: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "open": (number, (text, number)),
        "close": (number, (number,)),
        "read": (signed_size, (number, pointer, size)),
        "pread": (signed_size, (number, pointer, size, offset)),
        "readlink": (signed_size, (text, pointer, size)),
        "opendir": (pointer, (text,)),
        "readdir": (entry, (pointer,)),
        "closedir": (number, (pointer,)),
    }
    for name, (result, arguments) in types.items():
        function = getattr(library, name, None)
        if function is None:
            return None
        function.restype, function.argtypes = result, arguments
    return library


_libc: Final = _c_library()
# Of a library of its own: it takes C types as they are, and does not note `errno`, which costs as much as the call.
_pread_of_c_types: Final[Any] = None if _libc is None else ctypes.PyDLL(None).pread


def pread(descriptor: int, most_bytes: int) -> bytes:
    """`os.pread` from the start of a file. Raises `OSError`."""
    if _libc is None:
        return os.pread(descriptor, most_bytes, 0)
    buffer = (ctypes.c_char * most_bytes)()  # its own: the garbage collector may read a counter in between
    size = _size(_libc.pread(descriptor, buffer, most_bytes, 0))
    return buffer.raw[:size]


def prepared_pread(descriptor: int, most_bytes: int) -> Callable[[], bytes]:
    """`pread` of one descriptor, for whoever calls it often: at less than half the price, as all is converted once.

    There is one buffer: what is returned must not be called while it runs, be it by a garbage collection.
    """
    again = functools.partial(os.pread, descriptor, most_bytes, 0)
    if _libc is None:
        return again
    buffer = (ctypes.c_char * most_bytes)()
    arguments = (ctypes.c_int(descriptor), ctypes.byref(buffer), ctypes.c_size_t(most_bytes), ctypes.c_long(0))

    def read() -> bytes:
        size: int = _pread_of_c_types(*arguments)
        return buffer.raw[:size] if size >= 0 else again()  # which raises what is wrong

    return read


class Held(NamedTuple):
    """A descriptor, and the file that it was opened for.

    The number may be another file's by now: a daemon closes all that it has inherited, and opens files of its own.
    """

    number: int
    file: os.stat_result

    @classmethod
    def of(cls, number: int) -> Held:
        """A descriptor that is ours now."""
        return cls(number, os.fstat(number))

    @property
    def is_ours(self) -> bool:
        """It is still of the file that it was opened for."""
        try:
            return os.path.samestat(os.fstat(self.number), self.file)
        except OSError:
            return False

    def close(self) -> None:
        """Give it back, if it is ours. Never raises."""
        if self.is_ours:
            with contextlib.suppress(OSError):
                os.close(self.number)


class HeldFile:
    """A file of the kernel's that is held open as it is read often. Neither thread-safe nor reentrant.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str], most_bytes: int) -> None:
        self._path = path
        self._most_bytes = most_bytes
        self._open()

    def _open(self) -> None:
        self._held = Held.of(os.open(self._path, os.O_RDONLY | os.O_CLOEXEC))
        self._text: Callable[[], bytes] = prepared_pread(self._held.number, self._most_bytes)

    def read(self, parse: Callable[[bytes], _T]) -> _T:
        """What ``parse``, which raises `ValueError` for anything else, makes of it. Raises that, or `OSError`."""
        try:
            return parse(self._text())
        except (OSError, ValueError):
            # What comes back, such as the counter of a driver that was loaded anew, is another file of the same name.
            self.close()
            self._open()
            return parse(self._text())

    def close(self) -> None:
        """Give back the descriptor. Never raises."""
        if self._text is not bytes:
            self._held.close()
        self._text = bytes  # nothing, until it is open again: the number may soon be that of a file of the app's


def read_file(path: str) -> bytes:
    """All of a file. Raises `OSError`."""
    if _libc is None:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - hundreds of them
            return file.readall()
    descriptor = _size(_libc.open(os.fsencode(path), os.O_RDONLY | os.O_CLOEXEC), path)
    try:
        buffer, parts = (ctypes.c_char * _PART_BYTES)(), []
        while size := _size(_libc.read(descriptor, buffer, _PART_BYTES), path):
            parts.append(buffer.raw[:size])
        return b"".join(parts)
    finally:
        _libc.close(descriptor)


def read_link(path: str) -> str:
    """`os.readlink`. Raises `OSError`."""
    if _libc is None:
        return os.readlink(path)  # noqa: PTH115 - thousands of them
    buffer = (ctypes.c_char * _PART_BYTES)()
    size = _size(_libc.readlink(os.fsencode(path), buffer, _PART_BYTES), path)
    return os.fsdecode(buffer.raw[:size])


def names_in(folder: str) -> list[str]:
    """`os.listdir`. Raises `OSError`."""
    if _libc is None:
        return os.listdir(folder)  # noqa: PTH208 - as fast as can be
    stream = _libc.opendir(os.fsencode(folder))
    if not stream:
        raise _error(folder)
    try:
        names = []
        while entry := _libc.readdir(stream):
            names.append(os.fsdecode(entry.contents.d_name))
        return [name for name in names if name not in (".", "..")]
    finally:
        _libc.closedir(stream)


def _size(result: int, path: str | None = None) -> int:
    """What a function returned that is below zero if it failed."""
    if result < 0:
        raise _error(path)
    return result


def _error(path: str | None) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), path)

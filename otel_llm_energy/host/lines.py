"""A socket that carries lines in both directions without ever blocking, and a way to wake the thread that serves it."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading

from otel_llm_energy.host.wire import LONGEST_LINE

_PART_BYTES = 1 << 16
_MOST_WAITING_BYTES = 1 << 26


class Waker:
    """Wakes a thread that selects on it. `wake` and `close` are for any thread."""

    def __init__(self) -> None:
        # A descriptor that is closed may be another file's by the time of the write. Reentrant, as a garbage collection
        # may end a call anywhere.
        self._lock = threading.RLock()
        self._read_end, self._write_end = os.pipe()
        for end in (self._read_end, self._write_end):
            os.set_blocking(end, False)

    def fileno(self) -> int:
        return self._read_end

    def wake(self) -> None:
        """Never blocks."""
        with self._lock, contextlib.suppress(BlockingIOError):  # it is awake already
            if self._write_end >= 0:
                os.write(self._write_end, b"\0")

    def drain(self) -> None:
        """The thread is awake."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._read_end, _PART_BYTES)

    def close(self) -> None:
        with self._lock:
            ends, self._read_end, self._write_end = (self._read_end, self._write_end), -1, -1
        for end in ends:
            if end >= 0:
                os.close(end)

    def renew_lock(self) -> None:
        """In a forked child: another thread of the parent may hold the lock for ever."""
        self._lock = threading.RLock()


class LineSocket:
    """Lines over a connected socket. `send` is for any thread, the rest for the one that serves the socket."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._lock = threading.RLock()
        self._incoming = bytearray()
        self._outgoing = bytearray()

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def has_outgoing(self) -> bool:
        return bool(self._outgoing)

    def send(self, lines: bytes) -> None:
        """Have lines sent; they wait until the other side takes them."""
        with self._lock:
            self._outgoing += lines

    def flush(self) -> None:
        """Send what the other side takes now. Raises `ConnectionError` if it is gone, or takes nothing for too long."""
        with self._lock:
            if len(self._outgoing) > _MOST_WAITING_BYTES:
                raise ConnectionError("The other side has stopped reading.")
            with contextlib.suppress(BlockingIOError):
                while self._outgoing:
                    del self._outgoing[: self._socket.send(self._outgoing[:_PART_BYTES])]

    def receive(self) -> list[bytes]:
        """The lines that have come. Raises `ConnectionError` if the other side is gone, or sends no lines."""
        try:
            part = self._socket.recv(_PART_BYTES)
        except BlockingIOError:
            return []
        if not part:
            raise ConnectionError("The other side is gone.")
        *lines, rest = (bytes(self._incoming) + part).split(b"\n")
        self._incoming = bytearray(rest)
        if len(rest) > LONGEST_LINE:
            raise ConnectionError("The other side sends no lines.")
        return lines

    def close(self) -> None:
        self._socket.close()


def peer_pid(connection: socket.socket) -> int:
    """Which process is at the other end; 0 if it is of another process namespace."""
    return _credentials(connection)[0]


def peer_user_id(connection: socket.socket) -> int:
    """Whose process is at the other end."""
    return _credentials(connection)[1]


def _credentials(connection: socket.socket) -> tuple[int, int, int]:
    """Process, user and group at the other end (SO_PEERCRED, unix(7))."""
    form = "3i"
    pid, user_id, group_id = struct.unpack(
        form, connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize(form))
    )
    return pid, user_id, group_id

"""A socket that carries lines in both directions without ever blocking, and a way to wake the thread that serves it."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading

from otel_llm_energy.host.wire import LONGEST_LINE
from otel_llm_energy.syscalls import Held

_PART_BYTES = 1 << 16
_MOST_WAITING_BYTES = 1 << 26


class Waker:
    """Wakes a thread that selects on it. `wake` and `close` are for any thread."""

    def __init__(self) -> None:
        # A descriptor that is closed may be another file's by the time of the write. Reentrant, as a garbage collection
        # may end a call anywhere.
        self._lock = threading.RLock()
        read_end, write_end = os.pipe()
        for end in (read_end, write_end):
            os.set_blocking(end, False)
        self._ends: tuple[Held, Held] | None = Held.of(read_end), Held.of(write_end)

    def fileno(self) -> int:
        ends = self._ends  # another thread may close it
        return -1 if ends is None else ends[0].number

    @property
    def works(self) -> bool:
        """Nobody else has closed it."""
        ends = self._ends
        return ends is not None and ends[0].is_ours and ends[1].is_ours

    def wake(self) -> None:
        """Never blocks."""
        with self._lock, contextlib.suppress(BlockingIOError):  # it is awake already
            if self._ends is not None and self._ends[1].is_ours:
                os.write(self._ends[1].number, b"\0")

    def drain(self) -> None:
        """The thread is awake."""
        with contextlib.suppress(BlockingIOError):
            if self.works:
                os.read(self.fileno(), _PART_BYTES)

    def close(self) -> None:
        with self._lock:
            ends, self._ends = self._ends, None
        for end in ends or ():
            end.close()

    def renew_lock(self) -> None:
        """In a forked child: another thread of the parent may hold the lock for ever."""
        self._lock = threading.RLock()


class LineSocket:
    """Lines over a connected socket. `send` is for any thread, the rest for the one that serves the socket."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._held = Held.of(connection.fileno())
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
        self._see_that_it_is_ours()
        with self._lock:
            if len(self._outgoing) > _MOST_WAITING_BYTES:
                raise ConnectionError("The other side has stopped reading.")
            with contextlib.suppress(BlockingIOError):
                while self._outgoing:
                    del self._outgoing[: self._socket.send(self._outgoing[:_PART_BYTES])]

    def receive(self) -> list[bytes]:
        """The lines that have come. Raises `ConnectionError` if the other side is gone, or sends no lines."""
        self._see_that_it_is_ours()
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
        close_socket(self._socket, self._held)

    def _see_that_it_is_ours(self) -> None:
        if not self._held.is_ours:
            raise ConnectionError("Somebody else has closed the connection.")


def close_socket(opened: socket.socket, held: Held) -> None:
    """Give back a socket's descriptor, if that is ours: `socket.socket.close` would close whatever has its number."""
    if held.is_ours:
        opened.close()
    else:
        opened.detach()


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

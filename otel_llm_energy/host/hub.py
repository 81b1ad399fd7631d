"""The holder's end: takes members in, passes on what they say, and sends them questions and bills."""

from __future__ import annotations

import contextlib
import math
import os
import select
import socket
import time
from collections import deque
from collections.abc import Iterable
from typing import Protocol

from otel_llm_energy.host.folder import Folder, unusable
from otel_llm_energy.host.lines import LineSocket, Waker, close_socket, peer_pid, peer_user_id
from otel_llm_energy.host.wire import Ask, Hello, Message, Ping, Pong, Refused, Welcome, WireError, decode, encode
from otel_llm_energy.syscalls import Held

_MOST_MEMBERS = 1024
_ACCEPT_AGAIN_SECONDS = 0.1  # after an accept that failed: a connection that stays pending would keep a CPU busy


class Holder(Protocol):
    """Who holds the board, told of its members by the thread that serves them."""

    def examine(self, hello: Hello) -> str | None:
        """Why this process cannot be a member; ``None`` if it can."""

    def joined(self, hello: Hello) -> None:
        """It is one now."""

    def said(self, member: str, message: Message) -> None:
        """It says something."""

    def left(self, member: str) -> None:
        """It is none any more."""

    def estranged(self, strangers: int) -> None:
        """So many processes that cannot be members are there."""

    def patience_seconds(self) -> float | None:
        """How long the next member that has not answered is waited for; ``None`` if nobody is."""

    def patience_ended(self) -> None:
        """That time has passed."""


class Hub:
    """A listening socket and its connections, from `serve` to `close`. The other methods are for any thread.

    Args:
        folder: of the board.
        name: of the turn.
        holder: who holds the board.

    Raises:
        BoardError: there can be no socket in the folder.
    """

    def __init__(self, folder: Folder, name: str, holder: Holder) -> None:
        self._holder = holder
        self._listener = _listening(folder, f"{name}.sock")
        self._waker = Waker()
        self._listener_held = Held.of(self._listener.fileno())
        # It has no descriptor, which somebody else could close. Looked up by name: gevent has one of its own.
        self._poll = select.poll()
        self._poll.register(self._listener, select.POLLIN)
        self._poll.register(self._waker, select.POLLIN)
        self._connections: dict[int, _Connection] = {}  # by descriptor
        self._members: dict[str, _Connection] = {}
        self._posts: deque[tuple[str, bytes]] = deque()
        self._going = True

    def serve(self) -> None:
        """Serve the members until `stop`, or until somebody else has closed our descriptors, as a daemon does."""
        while self._going and self._waker.works and self._listener_held.is_ours:
            seconds = self._holder.patience_seconds()
            ready = self._poll.poll(None if seconds is None else math.ceil(seconds * 1000))
            if not ready:
                self._holder.patience_ended()
            for number, events in ready:
                if number == self._waker.fileno():
                    self._waker.drain()
                elif number == self._listener.fileno():
                    self._accept()
                elif number in self._connections:
                    self._serve(self._connections[number], events)
            self._send_posts()

    def stop(self) -> None:
        """Have `serve` return."""
        self._going = False
        self.wake()

    def wake(self) -> None:
        """Look at the holder's patience again."""
        self._waker.wake()

    def ask(self, members: Iterable[str]) -> None:
        """Ask these members what has happened until now."""
        for member in members:
            self._posts.append((member, encode(Ask())))
        self.wake()

    def send(self, member: str, message: Message) -> None:
        """Say something to one member, if it is there."""
        self._posts.append((member, encode(message)))
        self.wake()

    def close(self) -> None:
        """Give back all descriptors: the members notice that this holder is gone."""
        self._going = False
        for connection in list(self._connections.values()):
            connection.lines.close()
        self._connections.clear()
        self._members.clear()
        close_socket(self._listener, self._listener_held)
        self._waker.close()

    def close_in_child(self) -> None:
        """`close` in a forked child."""
        self._waker.renew_lock()
        self.close()

    def _accept(self) -> None:
        try:
            accepted, _ = self._listener.accept()
        except OSError:  # the other side is gone already; or no descriptor is left, and the connection stays pending
            time.sleep(_ACCEPT_AGAIN_SECONDS)
            return
        with contextlib.suppress(OSError):
            if peer_user_id(accepted) != os.geteuid() or len(self._connections) >= _MOST_MEMBERS:
                accepted.close()
                return
            connection = _Connection(LineSocket(accepted), peer_pid(accepted))
            self._connections[connection.lines.fileno()] = connection
            self._poll.register(connection.lines, select.POLLIN)

    def _serve(self, connection: _Connection, events: int) -> None:
        try:
            if events & ~select.POLLOUT:
                for line in connection.lines.receive():
                    self._hear(connection, line)
            self._flush(connection)
        except (OSError, WireError):
            self._drop(connection)

    def _hear(self, connection: _Connection, line: bytes) -> None:
        if connection.member is None:
            self._greet(connection, _greeting(line, connection.pid))
            return
        message = decode(line)
        if isinstance(message, Hello):
            self._greet(connection, message)
        elif isinstance(message, Ping):
            connection.lines.send(encode(Pong()))
        else:
            self._holder.said(connection.member, message)

    def _greet(self, connection: _Connection, hello: Hello) -> None:
        refusal = self._holder.examine(hello)
        if refusal is not None:
            connection.is_stranger = hello.calls_servers
            connection.lines.send(encode(Refused(refusal)))
            self._count_strangers()
            return
        connection.member = hello.member
        self._members[hello.member] = connection
        connection.lines.send(encode(Welcome(os.getpid())))
        self._holder.joined(hello)

    def _send_posts(self) -> None:
        flush: set[_Connection] = set()
        while self._posts:
            member, line = self._posts.popleft()
            connection = self._members.get(member)
            if connection is not None:
                connection.lines.send(line)
                flush.add(connection)
        for connection in flush:
            try:
                self._flush(connection)
            except OSError:
                self._drop(connection)

    def _flush(self, connection: _Connection) -> None:
        connection.lines.flush()
        writes = select.POLLOUT if connection.lines.has_outgoing else 0
        self._poll.register(connection.lines, select.POLLIN | writes)

    def _drop(self, connection: _Connection) -> None:
        del self._connections[connection.lines.fileno()]
        self._poll.unregister(connection.lines)
        connection.lines.close()
        if connection.is_stranger:
            self._count_strangers()
        if connection.member is not None and self._members.get(connection.member) is connection:
            del self._members[connection.member]
            self._holder.left(connection.member)

    def _count_strangers(self) -> None:
        self._holder.estranged(sum(connection.is_stranger for connection in self._connections.values()))


class _Connection:
    """A process at the other end: a member, or a stranger, or one that has not said yet what it is."""

    def __init__(self, lines: LineSocket, pid: int) -> None:
        self.lines = lines
        self.pid = pid
        self.member: str | None = None
        self.is_stranger = False


def _greeting(line: bytes, pid: int) -> Hello:
    """What a process says first. One whose words make no sense here is of a version that this one cannot know."""
    try:
        message = decode(line)
    except WireError:
        message = None
    return message if isinstance(message, Hello) else Hello("unknown", "", "", pid, 0, ())


def _listening(folder: Folder, name: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        folder.remove(name)
        listener.bind(folder.socket_path(name))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise unusable(folder.path, error.strerror or str(error)) from error
    listener.setblocking(False)
    return listener

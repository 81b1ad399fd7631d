"""A member's end: its connection to the holder."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable
from typing import Protocol

from otel_llm_energy.host.folder import BoardError, Folder
from otel_llm_energy.host.lines import LineSocket, Waker, peer_user_id
from otel_llm_energy.host.wire import (
    Ask,
    Billed,
    Hello,
    Message,
    Ping,
    Refused,
    State,
    Welcome,
    WireError,
    decode,
    encode,
)
from otel_llm_energy.quantities import NS_PER_SECOND
from otel_llm_energy.syscalls import monotonic_ns

PATIENCE_SECONDS = 5.0
"""A holder from which nothing has come for so long, although it was asked, is taken to be stopped."""

_PING_SECONDS = 2.0


class LinkError(Exception):
    """There is no holder at the other end (any more)."""


class StuckError(LinkError):
    """There is one, but it does not answer."""


class Member(Protocol):
    """Who is a member, told what the holder says by the thread that serves the link."""

    def welcomed(self, pid: int) -> None:
        """The holder, process ``pid``, takes this process as a member."""

    def informed(self, state: State) -> None:
        """The holder says what it reads."""

    def asked(self) -> None:
        """It wants to know all that has happened until now."""

    def billed(self, message: Billed) -> None:
        """A call has its bill."""

    def waits(self) -> bool:
        """Whether anything is expected of the holder."""


class Link:
    """A connection to the holder of a turn, from `serve` to `close`.

    Args:
        folder: of the board.
        name: of the turn.
        member: who is told.
        is_over: whether somebody else has taken the next turn.

    Raises:
        LinkError: nobody listens there.
    """

    def __init__(self, folder: Folder, name: str, member: Member, is_over: Callable[[], bool]) -> None:
        self._member = member
        self._is_over = is_over
        self._heard_ns = monotonic_ns()
        self._pinged = False
        self._welcomed = False
        self._going = True
        self._waker = Waker()
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(PATIENCE_SECONDS)
        try:
            connection.connect(folder.socket_path(f"{name}.sock"))
            if peer_user_id(connection) != os.geteuid():
                raise ConnectionError("Another user listens there.")
        except OSError as error:
            connection.close()
            self._waker.close()
            kind = StuckError if isinstance(error, TimeoutError) else LinkError
            raise kind(f"{folder.path}/{name}.sock: {error}") from error
        self._lines = LineSocket(connection)
        self._poll = select.poll()  # select() takes no descriptor above 1023
        self._poll.register(self._waker, select.POLLIN)

    def serve(self, hello: Hello) -> None:
        """Introduce this process and take in what comes, until `stop`.

        Raises:
            LinkError: the holder is gone, or (`StuckError`) does not answer.
            BoardError: the holder refuses this process.
        """
        self._lines.send(encode(hello))
        self._pinged = True  # a welcome is due
        while self._going:
            try:
                self._step()
            except (OSError, WireError) as error:
                raise LinkError(str(error)) from error

    def send(self, *messages: Message) -> None:
        """Say something; for any thread."""
        self._lines.send(b"".join([encode(message) for message in messages]))
        self.wake()

    def wake(self) -> None:
        """Look again whether something is expected of the holder."""
        self._waker.wake()

    def stop(self) -> None:
        """Have `serve` return."""
        self._going = False
        self.wake()

    def close(self) -> None:
        """Hang up."""
        self._going = False
        self._lines.close()
        self._waker.close()

    def close_in_child(self) -> None:
        """`close` in a forked child."""
        self._waker.renew_lock()
        self.close()

    def _step(self) -> None:
        if not self._waker.works:
            raise ConnectionError("Somebody else has closed the connection.")
        self._lines.flush()
        writes = select.POLLOUT if self._lines.has_outgoing else 0
        self._poll.register(self._lines, select.POLLIN | writes)
        ready = {descriptor for descriptor, _ in self._poll.poll(self._timeout_millis())}
        if self._waker.fileno() in ready:
            self._waker.drain()
        if self._lines.fileno() in ready:
            for line in self._lines.receive():
                self._hear(self._understood(line))
        self._see_that_it_lives()

    def _understood(self, line: bytes) -> Message:
        try:
            return decode(line)
        except WireError:
            if self._welcomed:
                raise
        # Not to be taken for a holder that is gone: it lives, and would be overtaken again and again.
        raise BoardError(
            "board-mismatch",
            "The process that reads the meters has another version of otel-llm-energy, which this one does not"
            " understand: neither sees the other's calls. Give all processes of this host the same version, or boards"
            " of their own by OTEL_LLM_ENERGY_BOARD if they call different servers.",
        )

    def _hear(self, message: Message) -> None:
        self._heard_ns, self._pinged = monotonic_ns(), False
        if isinstance(message, Welcome):
            self._welcomed = True
            self._member.welcomed(message.pid)
        elif isinstance(message, Refused):
            raise BoardError("board-mismatch", message.message)
        elif isinstance(message, State):
            self._member.informed(message)
        elif isinstance(message, Ask):
            self._member.asked()
        elif isinstance(message, Billed):
            self._member.billed(message)

    def _timeout_millis(self) -> int | None:
        return int(_PING_SECONDS * 500) if self._pinged or self._member.waits() else None

    def _see_that_it_lives(self) -> None:
        if self._is_over():
            raise LinkError("Another process holds the board now.")
        silent_ns = monotonic_ns() - self._heard_ns
        if self._pinged and silent_ns > PATIENCE_SECONDS * NS_PER_SECOND:
            raise StuckError("The holder of the board does not answer.")
        if not self._pinged and self._member.waits() and silent_ns > _PING_SECONDS * NS_PER_SECOND:
            # A silence from before anything was expected counts for nothing.
            self._heard_ns, self._pinged = monotonic_ns(), True
            self._lines.send(encode(Ping()))

"""HTTP servers on loopback that answer as an exporter does, or as it should not."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

Answer = Callable[[socket.socket], None]

FIXTURES = Path(__file__).with_name("fixtures")


def recorded(name: str) -> bytes:
    """One answer of the real Scaphandre."""
    return (FIXTURES / f"{name}.txt").read_bytes()


def page(body: bytes, status: str = "200 OK") -> bytes:
    """A whole answer as Scaphandre gives it: a length, no content type."""
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


def say(answer: bytes) -> Answer:
    """Answer with these bytes and hang up."""
    return lambda connection: connection.sendall(answer)


class Exporter:
    """Its address, and the requests it got."""

    def __init__(self, port: int, answers: Sequence[Answer]) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}/metrics"
        self.requests: list[bytes] = []
        self.answers = list(answers)

    def serve(self, connection: socket.socket) -> None:
        """Give the next answer; the last one again and again."""
        with connection, suppress(OSError):
            request = b""
            while b"\r\n\r\n" not in request:
                request += connection.recv(4096) or b"\r\n\r\n"
            self.requests.append(request)
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            answer(connection)


@contextmanager
def exporter(*answers: Answer | bytes) -> Iterator[Exporter]:
    """A server that gives these answers in turn for the length of the block; bytes are the body of a good page."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        served = Exporter(
            listener.getsockname()[1],
            [say(page(answer)) if isinstance(answer, bytes) else answer for answer in answers],
        )

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=served.serve, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield served
        listener.shutdown(socket.SHUT_RDWR)


class ManualClock:
    """A clock in nanoseconds that moves only when told."""

    def __init__(self) -> None:
        self.now_ns = 1_000_000_000_000

    def __call__(self) -> int:
        return self.now_ns

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now_ns += round(seconds * 1e9)

"""A loopback HTTP server that replays recorded bytes, and breaks off where it is told to.

It stands in for a model server only where the fault or the odd payload under test cannot be had from a real one.
"""

from __future__ import annotations

import json
import socket
import socketserver
import struct
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class Reply:
    """One answer.

    Attributes:
        body: sent piece by piece.
        chunked: else with its length in a header, in one piece.
        headers: further ones.
        raw: all that goes over the wire, instead of everything else; then the connection is closed.
        breaks_off: reset the connection after the last piece.
        hangs: keep the connection open after the last piece, until the server stops.
    """

    body: Sequence[bytes]
    status: int = 200
    content_type: str = "application/json"
    breaks_off: bool = False
    hangs: bool = False
    chunked: bool = True
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None


@dataclass
class ReplayServer:
    """Answers every POST with ``reply`` and every GET with ``get_reply``; keeps what was posted."""

    port: int
    reply: Reply = field(default_factory=lambda: json_reply({}))
    get_reply: Reply = field(default_factory=lambda: json_reply({}))
    requests: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def json_reply(payload: object, status: int = 200) -> Reply:
    """A whole answer in JSON."""
    return Reply([json.dumps(payload).encode()], status)


def sse_reply(chunks: Sequence[object], *, done: bool = True, breaks_off: bool = False, hangs: bool = False) -> Reply:
    """A stream as OpenAI sends it."""
    pieces = [b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks]
    if done:
        pieces.append(b"data: [DONE]\n\n")
    return Reply(pieces, content_type="text/event-stream", breaks_off=breaks_off, hangs=hangs)


def ndjson_reply(chunks: Sequence[object], *, breaks_off: bool = False, hangs: bool = False) -> Reply:
    """A stream as Ollama sends it."""
    pieces = [json.dumps(chunk).encode() + b"\n" for chunk in chunks]
    return Reply(pieces, content_type="application/x-ndjson", breaks_off=breaks_off, hangs=hangs)


@contextmanager
def replaying(path: Path | None = None) -> Iterator[ReplayServer]:
    """A replay server on a free loopback port, or at a Unix socket."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            server.requests.append((self.path, dict(self.headers), self.rfile.read(length)))
            self._answer(server.reply)

        def do_GET(self) -> None:
            self._answer(server.get_reply)

        def _answer(self, reply: Reply) -> None:
            try:
                self._send(reply)
            except OSError:
                self.close_connection = True  # the client went away first

        def _send(self, reply: Reply) -> None:
            if reply.raw is not None:
                self.close_connection = True
                self.wfile.write(reply.raw)
                return
            self.send_response_only(reply.status)  # its own Server header would be one too many
            self.send_header("content-type", reply.content_type)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            if not reply.chunked:
                self._send_whole(b"".join(reply.body))
                return
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            for piece in reply.body:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.flush()
            if reply.hangs:
                server.stopped.wait()
            if reply.breaks_off:
                self._reset()
            elif not reply.hangs:
                self.wfile.write(b"0\r\n\r\n")

        def _send_whole(self, body: bytes) -> None:
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _reset(self) -> None:
            self.close_connection = True
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            """A client that goes away is what many tests are about."""
            if not isinstance(sys.exc_info()[1], ConnectionError):
                super().handle_error(request, client_address)  # type: ignore[arg-type]

    class UnixServer(socketserver.ThreadingUnixStreamServer):
        pass

    http = Server(("127.0.0.1", 0), Handler) if path is None else UnixServer(str(path), Handler)
    http.daemon_threads = True
    server = ReplayServer(http.server_port if isinstance(http, Server) else 0)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.stopped.set()
        http.shutdown()
        thread.join()
        http.server_close()

"""An HTTP server that is no model server, or one that answers what no real one can be brought to."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def answering(answer: str, content_type: str, health: int = 200, posted: list[bytes] | None = None) -> Iterator[str]:
    """Answers the same to whatever is asked, at ``/health`` with this status; its base URL.

    What is posted is added to ``posted``.
    """

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(health if self.path == "/health" else 200)
            self.send_header("Content-Type", content_type)
            self.end_headers()
            self.wfile.write(answer.encode())

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if posted is not None:
                posted.append(body)
            self.do_GET()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()

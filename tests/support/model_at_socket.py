"""A model server at a Unix socket, as far as energy goes: ``python model_at_socket.py PATH SECONDS_OF_WORK``.

No real server that listens at one can be had through pip. Runs no code of ours.
"""

from __future__ import annotations

import json
import socketserver
import sys
import time
from http.server import BaseHTTPRequestHandler

_ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Paris"}}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
}


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        end = time.thread_time() + float(sys.argv[2])
        while time.thread_time() < end:
            sum(range(10_000))
        body = json.dumps(_ANSWER).encode()
        self.send_response_only(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    socketserver.ThreadingUnixStreamServer(sys.argv[1], _Handler).serve_forever()

"""Passes connections on, as socat does: ``python relay.py TCP-LISTEN:0 TCP:HOST:PORT`` prints its own port.

With several targets each connection goes to the next one, as a load balancer's.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import sys
import threading


def pump(source: socket.socket, sink: socket.socket) -> None:
    """All that comes from one side goes to the other."""
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


def main() -> None:
    targets = itertools.cycle(word.split(":")[1:] for word in sys.argv if word.startswith("TCP:"))
    own_port = int(sys.argv[1].removeprefix("TCP-LISTEN:").partition(",")[0])
    with socket.create_server(("127.0.0.1", own_port)) as listener:
        sys.stdout.write(f"{listener.getsockname()[1]}\n")
        sys.stdout.flush()
        while True:
            client, _ = listener.accept()
            host, port = next(targets)
            server = socket.create_connection((host, int(port)))
            for pair in ((client, server), (server, client)):
                threading.Thread(target=pump, args=pair, daemon=True).start()


if __name__ == "__main__":
    main()

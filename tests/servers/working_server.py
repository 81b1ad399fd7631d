"""A server whose work is done by a child, as Ollama's is: listens, and does what its standard input says.

``python working_server.py [ADDRESS [USER_ID]]`` prints its port, which is 0 where the address is a Unix socket's path
(or ``@`` and an abstract name); it gives up being root if it is to be another user.
``work`` starts a child that uses `WORK_SECONDS` of CPU time and then waits, ``end`` lets it end; each is answered by a
line when done.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys

WORK_SECONDS = 0.3
CHILD = f"""
import sys, time
while time.process_time() < {WORK_SECONDS}: pass
print("worked", flush=True)
sys.stdin.read()
"""


def say(what: object) -> None:
    """One line to whoever started us."""
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


def listening(address: str) -> socket.socket:
    """A TCP or a Unix socket that takes connections."""
    if "/" not in address and "@" not in address:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return socket.create_server((address, 0), family=family, dualstack_ipv6=address == "::")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address.replace("@", "\0"))
    listener.listen()
    return listener


def main() -> None:
    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1"
    if len(sys.argv) > 2 and sys.argv[2].isdecimal():
        os.setuid(int(sys.argv[2]))
    with listening(address) as listener:
        say(0 if listener.family == socket.AF_UNIX else listener.getsockname()[1])
        child: subprocess.Popen[str] | None = None
        for line in sys.stdin:
            if line.strip() == "work":
                command = [sys.executable, "-c", CHILD]
                child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
                assert child.stdout is not None
                say(child.stdout.readline().strip())
            elif child is not None:
                child.communicate()
                say("ended")


if __name__ == "__main__":
    main()

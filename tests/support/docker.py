"""What Scaphandre's ``--containers`` asks of a machine with Docker: its socket, and control groups of its containers.

The cgroup is real, and so is the process in it; Docker itself cannot run here, so its API is played, as far as
Scaphandre asks it. Its client wants exactly these fields (crate docker-sync 0.1.2, src/container.rs and version.rs).
"""

from __future__ import annotations

import json
import os
import secrets
import socketserver
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from tests.support.hosts import Host

_HIERARCHIES = ("/sys/fs/cgroup/cpu", "/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified", "/sys/fs/cgroup")
_VERSION = {
    "Version": "28.2.2",
    "ApiVersion": "1.50",
    "GitCommit": "45873be",
    "GoVersion": "go1.24.3",
    "Os": "linux",
    "Arch": "amd64",
    "KernelVersion": "6.1.0",
}
# In a mount namespace of its own, so that a Docker that is really there is left alone.
_ENTER = 'mount -t tmpfs tmpfs /run && touch /run/docker.sock && mount --bind "$0" /run/docker.sock && exec "$@"'


@dataclass(frozen=True, slots=True)
class Container:
    """A container of this machine, as Docker tells of it."""

    id: str
    name: str
    labels: Mapping[str, str]

    def told(self) -> dict[str, Any]:
        """An element of ``/containers/json``."""
        return {
            "Id": self.id,
            "Image": "llm",
            "Status": "Up 2 minutes",
            "Command": "llm",
            "Created": 1795450000,
            "Names": [f"/{self.name}"],
            "Ports": [],
            "SizeRootFs": 0,
            "Labels": dict(self.labels),
            "HostConfig": {"NetworkMode": "bridge"},
        }


@contextmanager
def contained(name: str, labels: Mapping[str, str]) -> Iterator[tuple[Container, Path]]:
    """A container without processes, and the file in which to write their numbers. Needs root.

    Raises:
        OSError: no control groups can be made here.
    """
    container = Container(secrets.token_hex(32), name, labels)
    group = _hierarchy() / "docker" / container.id
    group.mkdir(parents=True)
    try:
        yield container, group / "cgroup.procs"
    finally:
        for pid in (group / "cgroup.procs").read_text().split():
            (group.parents[1] / "cgroup.procs").write_text(pid)
        group.rmdir()
        with suppress(OSError):  # others are in it
            group.parent.rmdir()


def _hierarchy() -> Path:
    for each in map(Path, _HIERARCHIES):
        if (each / "cgroup.procs").exists() and os.access(each, os.W_OK):
            return each
    raise OSError("No hierarchy of control groups can be written to.")


@contextmanager
def docker_api(folder: Path, containers: Sequence[Container]) -> Iterator[Host]:
    """Docker's API on a socket; a program that is entered there finds it where Docker's is."""
    path = folder / "docker.sock"

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answers = {"/version": _VERSION, "/containers/json": [each.told() for each in containers]}
            body = json.dumps(answers.get(self.path.partition("?")[0], [])).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def address_string(self) -> str:
            return "a socket"

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            """Not to standard error."""

    with socketserver.ThreadingUnixStreamServer(str(path), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield Host(enter=("unshare", "--mount", "sh", "-c", _ENTER, str(path)))
        server.shutdown()

"""Who works behind a relay: processes, sockets and namespaces are real; a relay is a script that has its name.

What is known of each is how it was started, and whom it is connected to.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from otel_llm_energy.servers import Server, resolve, resolve_named
from otel_llm_energy.servers.procfs import Procfs
from otel_llm_energy.servers.relays import forwarded_to
from otel_llm_energy.servers.sockets import connections
from tests.servers.processes import working_server
from tests.support.children import free_port, listens
from tests.support.hosts import CONTAINER_ADDRESS, container, may_make_namespaces
from tests.support.waiting import until

RELAY = Path(__file__).with_name("relay.py")
LISTENING = "import socket, sys; s = socket.create_server(('', int(sys.argv[1]))); x = [s.accept() for _ in range(99)]"

needs_namespaces = pytest.mark.skipif(not may_make_namespaces(), reason="only root can make namespaces")


@contextmanager
def relay(folder: Path, name: str, *targets: str, port: int = 0) -> Iterator[int]:
    """A relay of this name, on this port or any that is free; its port."""
    script = shutil.copy(RELAY, folder / name)
    command = [sys.executable, script, f"TCP-LISTEN:{port},fork,reuseaddr", *(f"TCP:{target}" for target in targets)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline())
        finally:
            process.kill()


def found_during_a_call(port: int) -> Server:
    """Who answers at a port, while somebody is connected to it."""
    with socket.create_connection(("127.0.0.1", port)):
        found: list[Server] = []

        def connected() -> bool:
            found.append(resolve("127.0.0.1", port))
            return found[-1].pid is not None

        until(connected)
    return found[-1]


@pytest.mark.parametrize(
    ("arguments", "target"),
    [
        (["socat", "TCP-LISTEN:8080,fork", "TCP:127.0.0.1:11434"], ("127.0.0.1", 11434)),
        (["socat", "-d", "TCP4:ollama:11434,nodelay", "tcp-listen:80,bind=0.0.0.0"], ("ollama", 11434)),
        (["socat", "TCP6-LISTEN:80", "TCP6-CONNECT:[::1]:11434"], ("::1", 11434)),
        (["socat", "TCP-LISTEN:80", "OPENSSL:gpu-1:443,verify=0"], ("gpu-1", 443)),
        (["socat", "TCP-LISTEN:80", "UNIX-CONNECT:/run/ollama.sock"], None),
        (["socat", "TCP-LISTEN:80", "EXEC:ssh gpu-1 nc localhost 11434"], None),
        (["socat", "TCP:one:1", "TCP:two:2"], None),
        (["nginx", "TCP:127.0.0.1:11434"], None),
    ],
)
def test_a_target_is_known_when_the_command_line_names_one(
    arguments: list[str], target: tuple[str, int] | None
) -> None:
    """socat(1) says where to; other programs read it from a file that may change."""
    assert forwarded_to(arguments[0], arguments[1:]) == target


def test_the_server_behind_is_it_when_socat_names_it(tmp_path: Path) -> None:
    """Through two of them, and whatever its name: all that it gets goes there, so nothing is degraded."""
    with (
        working_server(tmp_path, "my-own-server") as server,
        relay(tmp_path, "socat", f"127.0.0.1:{server.port}") as inner,
        relay(tmp_path, "socat", f"localhost:{inner}") as outer,
    ):
        found = resolve("127.0.0.1", outer)
    assert (found.pid, found.name, found.reason) == (server.pid, "my-own-server", None)


def test_a_ring_of_relays_is_a_relay_when_none_is_the_server(tmp_path: Path) -> None:
    """Each names the other; they are not followed for ever."""
    one, two = free_port(), free_port()
    with (
        relay(tmp_path, "socat", f"127.0.0.1:{two}", port=one),
        relay(tmp_path, "socat", f"127.0.0.1:{one}", port=two),
    ):
        found = resolve("127.0.0.1", one)
    assert (found.pid, found.reason) == (None, "relay")


@pytest.mark.parametrize("name", ["nginx", "litellm"])
def test_the_server_is_taken_with_caution_when_a_relay_is_connected_to_it(tmp_path: Path, name: str) -> None:
    """Its connections show where this call went; the next one may go elsewhere, so the bills say relay."""
    with working_server(tmp_path, "ollama") as server, relay(tmp_path, name, f"127.0.0.1:{server.port}") as port:
        assert resolve("127.0.0.1", port).pid is None, "it is not connected yet"
        found = found_during_a_call(port)
    assert (found.pid, found.name, found.reason) == (server.pid, "ollama", "relay")
    assert f"connected to ollama (pid {server.pid})" in found.message
    assert "servers={" in found.message


def is_connected(port: int) -> bool:
    """Whether somebody here is connected to a port."""
    return any(connection.port == port for connection in connections(Procfs()))


def test_a_relay_stays_one_when_it_is_connected_to_no_model_server(tmp_path: Path) -> None:
    """A gateway has a database, too: only programs that are known to run models are taken."""
    with (
        working_server(tmp_path, "postgres") as database,
        relay(tmp_path, "litellm", f"127.0.0.1:{database.port}") as port,
        socket.create_connection(("127.0.0.1", port)),
    ):
        until(lambda: is_connected(database.port))
        found = resolve("127.0.0.1", port)
    assert (found.pid, found.reason) == (None, "relay")


def test_a_relay_stays_one_when_it_is_connected_to_two_model_servers(tmp_path: Path) -> None:
    """Which of them works on the call its connections do not say."""
    with (
        working_server(tmp_path, "ollama") as one,
        working_server(tmp_path, "llama-server") as two,
        relay(tmp_path, "nginx", f"127.0.0.1:{one.port}", f"127.0.0.1:{two.port}") as port,
        socket.create_connection(("127.0.0.1", port)),
    ):
        until(lambda: resolve("127.0.0.1", port).pid == one.pid)
        with socket.create_connection(("127.0.0.1", port)):
            until(lambda: is_connected(two.port))
            found = resolve("127.0.0.1", port)
    assert (found.pid, found.reason) == (None, "relay")


@needs_namespaces
def test_the_server_is_taken_with_caution_when_a_relay_is_connected_to_its_container(tmp_path: Path) -> None:
    """As nginx before a container that publishes nothing: its address is no process's of this namespace."""
    port = free_port()
    script = tmp_path / "ollama"
    script.write_text(LISTENING)
    with container(sys.executable, str(script), str(port)) as inside:
        until(lambda: listens(port, inside.address))
        with relay(tmp_path, "nginx", f"{inside.address}:{port}") as proxy:
            found = found_during_a_call(proxy)
    assert (found.name, found.reason) == ("ollama", "relay")


def test_the_server_is_soon_found_when_its_relay_has_many_clients(tmp_path: Path) -> None:
    """Every connection has a client's end, too; what is read is the same however many there are."""
    with working_server(tmp_path, "ollama") as server, relay(tmp_path, "nginx", f"127.0.0.1:{server.port}") as port:
        with ExitStack() as clients:
            for _ in range(100):
                clients.enter_context(socket.create_connection(("127.0.0.1", port)))
            until(lambda: is_connected(server.port))
            reads = Counted()
            found = resolve("127.0.0.1", port, reads)
        few = Counted()
        with socket.create_connection(("127.0.0.1", port)):
            until(lambda: is_connected(server.port))
            resolve("127.0.0.1", port, few)
    assert found.pid == server.pid
    assert reads.tables == few.tables


class Counted(Procfs):
    """Counts how often a table of sockets was read."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = 0

    def table(self, name: str) -> list[list[str]]:
        self.tables += 1
        return super().table(name)


def test_a_relay_that_the_user_names_is_none_the_less_one(tmp_path: Path) -> None:
    """By its name; only a number is taken at its word."""
    with relay(tmp_path, "traefik", f"127.0.0.1:{free_port()}"):
        assert (resolve_named("name:traefik").pid, resolve_named("name:traefik").reason) == (None, "relay")


@needs_namespaces
def test_the_containers_server_is_it_when_only_iptables_publishes_its_port(tmp_path: Path) -> None:
    """podman's way, and docker's without its proxy: nothing listens here, one program that runs models does there."""
    port = free_port()
    script = tmp_path / "ollama"
    script.write_text(LISTENING)
    assert resolve("127.0.0.1", port).reason == "not-listening"
    with container(sys.executable, str(script), str(port)) as inside:
        until(lambda: listens(port, inside.address))
        found = resolve("127.0.0.1", port)
        by_its_address = resolve(CONTAINER_ADDRESS, port)
        assert resolve("127.0.0.1", free_port()).reason == "not-listening"
    assert (found.name, found.place, found.reason) == ("ollama", "local", None)
    assert by_its_address.pid is not None


@needs_namespaces
@pytest.mark.parametrize(("proxy", "follows"), [("rootlessport", True), ("pasta", True), ("nginx", False)])
def test_the_containers_server_is_it_when_a_rootless_proxy_publishes_its_port(
    tmp_path: Path, proxy: str, follows: bool
) -> None:
    """Such a proxy does nothing else; of another relay the same port says nothing."""
    script = tmp_path / "ollama"
    script.write_text(LISTENING)
    with (
        working_server(tmp_path, proxy) as running,
        container(sys.executable, str(script), str(running.port)) as inside,
    ):
        until(lambda: listens(running.port, inside.address))
        found = resolve("127.0.0.1", running.port)
    assert (found.name == "ollama", found.reason == "relay") == (follows, not follows)

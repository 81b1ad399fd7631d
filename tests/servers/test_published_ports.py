"""A server in a container whose port docker-proxy publishes on this host.

Containers are real network and process namespaces, with a real server inside; docker-proxy is played by a script of
that name and with its options, since Docker cannot run here.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from otel_llm_energy.servers import resolve
from otel_llm_energy.servers.activity import CpuActivity
from otel_llm_energy.servers.procfs import Procfs
from tests.servers.processes import working_server
from tests.support.children import listens
from tests.support.hosts import CONTAINER_ADDRESS, container, may_make_namespaces
from tests.support.waiting import until

FIB_TRIE = """\
Main:
  +-- 0.0.0.0/1 2 0 2
     |-- 0.0.0.0
        /0 universe UNICAST
Local:
  +-- 172.17.0.0/16 2 0 2
     |-- 172.17.0.1
        /0 link UNICAST
     |-- 172.17.0.2
        /32 host LOCAL
     |-- 172.17.255.255
        /32 link BROADCAST
"""


@pytest.mark.parametrize(
    ("address", "has"), [("172.17.0.2", True), ("172.17.0.1", False), ("172.17.255.255", False), ("172.17.0.20", False)]
)
def test_a_namespaces_own_address_is_known_when_its_table_shows_it(address: str, has: bool, tmp_path: Path) -> None:
    """Routes to others and broadcast addresses are not its own."""
    (tmp_path / "7" / "net").mkdir(parents=True)
    (tmp_path / "7" / "net" / "fib_trie").write_text(FIB_TRIE)
    assert (address in Procfs(tmp_path).addresses(7)) is has
    assert Procfs(tmp_path).addresses(8) == set()


SERVER = "import socket, sys; s = socket.create_server((sys.argv[1], 9000)); x = [s.accept() for _ in range(99)]"


@pytest.mark.skipif(not may_make_namespaces(), reason="only root can make namespaces")
def test_the_containers_processes_are_the_server_when_docker_proxy_listens(tmp_path: Path) -> None:
    """Its first process and all below it, by their numbers on this host; their CPU time is the server's."""
    with container(sys.executable, "-c", SERVER, CONTAINER_ADDRESS) as inside:
        until(lambda: listens(9000, inside.address))
        arguments = ["127.0.0.1", "-proto", "tcp", "-container-ip", inside.address, "-container-port", "9000"]
        with working_server(tmp_path, "docker-proxy", arguments) as proxy:
            found = resolve("127.0.0.1", proxy.port)
        assert (found.reason, found.place) == (None, "local"), found.message
        members = Procfs().tree(found.pid or 0)
        assert any(SERVER in Procfs().arguments(member) for member in members)
        activity = CpuActivity()
        activity.watch(found)
        sample = activity.sample()
        assert sample is not None
        assert sample.by_server_ns[found.id] is not None


def test_a_proxy_is_still_a_relay_when_no_container_has_the_address(tmp_path: Path) -> None:
    """The container has ended, or its address is of a kind that is not looked for."""
    for address in ("203.0.113.7", "fd00::2", "nowhere"):
        with working_server(tmp_path, "docker-proxy", ["127.0.0.1", "-container-ip", address]) as proxy:
            assert resolve("127.0.0.1", proxy.port).reason == "relay"

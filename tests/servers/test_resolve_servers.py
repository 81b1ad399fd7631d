"""From addresses to process trees, on real processes and real sockets."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_llm_energy.servers import resolve, resolve_named
from otel_llm_energy.servers.procfs import Procfs, parse_stat
from otel_llm_energy.servers.programs import is_llm_server, is_relay, program_name, slots_hint
from otel_llm_energy.servers.sockets import Listener, is_local_address, those_reached
from tests.servers.processes import working_server
from tests.support.children import free_port

HEAD = "sl local_address rem_address st tx_queue:rx_queue tr:tm->when retrnsmt uid timeout inode\n"


@pytest.mark.parametrize(
    ("bound", "host"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.1", "localhost"),
        ("127.0.0.1", "0.0.0.0"),
        ("0.0.0.0", "127.0.0.1"),
        ("0.0.0.0", "127.4.3.2"),
        ("::", "127.0.0.1"),
        ("::", "::1"),
        ("::1", "[::1]"),
    ],
)
def test_the_listening_process_is_found_when_the_address_is_local(bound: str, host: str) -> None:
    """By number and by name, over IPv4 and IPv6, bound to one address or to all."""
    with working_server(arguments=[bound]) as running:
        server = resolve(host, running.port)
    assert (server.pid, server.place, server.reason) == (running.pid, "local", None)
    assert server.id == f"pid:{running.pid}:{server.start_ticks}"
    assert server.name == "working_server"


def test_the_exact_address_wins_when_another_process_listens_on_all() -> None:
    """As in the kernel: the connection goes to the socket that is bound to its address."""
    with working_server(arguments=["127.0.0.1"]) as one, socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.2", one.port))
        other.listen()
        assert resolve("127.0.0.1", one.port).pid == one.pid
        assert resolve("127.0.0.2", one.port).pid == os.getpid()


def test_no_server_is_reached_over_ipv6_when_it_listens_on_all_of_ipv4() -> None:
    """0.0.0.0 takes connections of its own family only; :: takes both."""
    ipv4 = Listener(ip_address("0.0.0.0"), 8080, 0, 1)
    both = Listener(ip_address("::"), 8080, 0, 2)
    assert those_reached([ipv4], ip_address("::1"), 8080) == []
    assert those_reached([ipv4, both], ip_address("::1"), 8080) == [both]
    assert those_reached([both], ip_address("127.0.0.1"), 8080) == [both]


def test_the_process_is_found_when_its_ipv4_address_is_in_the_table_of_ipv6(tmp_path: Path) -> None:
    """A server that opens sockets for both families, as Java's do, may bind one to ::ffff:127.0.0.1."""
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "tcp6").write_text(
        HEAD + "0: 0000000000000000FFFF00000100007F:1F90 00000000000000000000000000000000:0000 0A "
        "00000000:00000000 00:00000000 00000000 0 0 777 1\n"
    )
    write_process(tmp_path, 50, 1, "worker")
    (tmp_path / "50" / "fd").mkdir()
    (tmp_path / "50" / "fd" / "3").symlink_to("socket:[777]")
    assert resolve("127.0.0.1", 8080, Procfs(tmp_path)).pid == 50


def test_the_id_stays_when_the_server_is_looked_up_again() -> None:
    """One server, one id, whatever the address was called; its successor has another."""
    with working_server() as running:
        first = resolve("localhost", running.port)
        assert resolve("127.0.0.1", running.port).id == first.id
    with working_server() as successor:
        assert resolve("127.0.0.1", successor.port).id != first.id


def test_the_parent_is_the_root_when_its_children_share_the_socket() -> None:
    """A pre-forking server is one tree, not as many servers as workers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        children = [_sleeping_child() for _ in range(2)]
        try:
            assert resolve("127.0.0.1", listener.getsockname()[1]).pid == os.getpid()
        finally:
            for child in children:
                os.kill(child, 9)
                os.waitpid(child, 0)


def _sleeping_child() -> int:
    child = os.fork()
    if child == 0:
        os.read(os.pipe()[0], 1)
        os._exit(0)
    return child


def test_the_server_is_unknown_when_nothing_listens() -> None:
    """No pid, and why."""
    server = resolve("127.0.0.1", free_port())
    assert (server.pid, server.place, server.reason) == (None, "unknown", "not-listening")


class BoundToAnything(socket.socket):
    """What any socket is where ``net.ipv4.ip_nonlocal_bind`` is set, as beside keepalived: ip(7), linux/in6.h."""

    def __init__(self, family: int, type_: int) -> None:
        super().__init__(family, type_)
        self.setsockopt(*((socket.SOL_IP, 15, 1) if family == socket.AF_INET else (socket.IPPROTO_IPV6, 78, 1)))


@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1"])
def test_an_address_is_not_ours_when_sockets_may_be_bound_to_any(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server of this machine that listens on all addresses would get the calls to one elsewhere. Ours stay ours."""
    monkeypatch.setattr(socket, "socket", BoundToAnything)
    with BoundToAnything(socket.AF_INET if "." in address else socket.AF_INET6, socket.SOCK_DGRAM) as bound:
        bound.bind((address, 0))
    assert not is_local_address(ip_address(address))
    procfs = Procfs()
    assert all(is_local_address(ip_address(own)) for own in procfs.addresses(os.getpid()))


def test_the_server_is_remote_when_the_address_is_not_ours() -> None:
    """An address of the documentation's range is nobody's here."""
    server = resolve("192.0.2.1", 11434)
    assert (server.pid, server.place, server.reason) == (None, "remote", "remote")
    assert server.id == "remote:192.0.2.1:11434"


def test_the_server_is_unknown_when_its_name_has_no_address() -> None:
    """.invalid never has one."""
    assert resolve("llm.invalid", 443).reason == "unresolved"


@pytest.mark.parametrize("name", ["nginx", "docker-proxy", "litellm", "ssh"])
def test_a_relay_is_no_server_when_it_listens(tmp_path: Path, name: str) -> None:
    """Its CPU time is not the model's; the message says what to do."""
    with working_server(tmp_path, name) as running:
        server = resolve("127.0.0.1", running.port)
    assert (server.pid, server.place, server.reason) == (None, "local", "relay")
    assert "servers={" in server.message


def as_nobody(host: str, port: int) -> str:
    """What a process of another user finds at the address: pid, place and reason."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        os.setuid(65534)
        server = resolve(host, port)
        os.write(send, f"{server.pid} {server.place} {server.reason}".encode())
        os._exit(0)
    os.close(send)
    with os.fdopen(receive, encoding="utf-8") as answer:
        told = answer.read()
    os.waitpid(child, 0)
    return told


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
SERVICE = ["127.0.0.1", "54321"]  # runs as a user of its own, as Ollama's service does


@needs_root
@pytest.mark.usefixtures("service_user")
def test_a_known_program_of_the_sockets_user_is_taken_when_descriptors_are_hidden(tmp_path: Path) -> None:
    """Ollama's service runs as a user of its own: its sockets are hidden, its name is not."""
    with working_server(tmp_path, "ollama", SERVICE) as running:
        assert as_nobody("127.0.0.1", running.port) == f"{running.pid} local None"


@needs_root
@pytest.mark.usefixtures("service_user")
def test_the_server_is_hidden_when_the_only_known_program_is_another_users(tmp_path: Path) -> None:
    """Whose the socket is, is told to everybody."""
    with (
        working_server(tmp_path, "my-own-server", SERVICE) as running,
        working_server(tmp_path, "ollama", ["127.0.0.1", "54322"]),
    ):
        assert as_nobody("127.0.0.1", running.port) == "None local hidden"


@needs_root
@pytest.mark.usefixtures("service_user")
def test_the_server_is_hidden_when_no_known_program_could_be_it(tmp_path: Path) -> None:
    """A guess among unknown programs would bill the wrong one."""
    with working_server(tmp_path, "my-own-server", SERVICE) as running:
        assert as_nobody("127.0.0.1", running.port) == "None local hidden"


@needs_root
@pytest.mark.usefixtures("service_user")
def test_the_server_is_ambiguous_when_two_known_programs_could_be_it(tmp_path: Path) -> None:
    """Two servers of the same user: say so instead of guessing."""
    with working_server(tmp_path, "ollama", SERVICE) as one, working_server(tmp_path, "llama-server", SERVICE):
        assert as_nobody("127.0.0.1", one.port) == "None local ambiguous"


def test_the_user_may_name_the_server_when_it_cannot_be_found(tmp_path: Path) -> None:
    """By number or by the program's name."""
    with working_server(tmp_path, "named-by-hand") as running:
        by_pid = resolve_named(f"pid:{running.pid}")
        by_name = resolve_named("name:named-by-hand")
        assert resolve_named("name:Named-By-Hand") == by_name, "programs are called in lower case here"
    assert by_pid == by_name
    assert by_pid.pid == running.pid
    assert resolve_named("name:named-by-hand").reason == "not-listening"
    assert resolve_named(f"pid:{running.pid}").pid is None


def test_the_message_says_what_to_give_instead_when_a_name_is_of_none_or_of_two(tmp_path: Path) -> None:
    """The name is no address, as which it stood in the example of what to write."""
    none = resolve_named("name:misspelt").message
    assert none == "No program that can be seen is called misspelt. Give another name, or 'pid:...'."
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    with working_server(folders[0], "twice-there") as one, working_server(folders[1], "twice-there") as two:
        found = resolve_named("name:twice-there")
    assert found.reason == "ambiguous"
    assert found.message.startswith("Several programs are called twice-there (pid ")
    assert f"pid {one.pid}" in found.message
    assert f"pid {two.pid}" in found.message
    assert found.message.endswith(". Give one of them: 'pid:...'.")


@pytest.mark.parametrize("spec", ["", "11434", "pid:", "pid:x", "name:", "docker:ollama"])
def test_a_wrong_name_is_an_error_when_it_has_no_known_form(spec: str) -> None:
    """The message shows both forms."""
    with pytest.raises(ValueError, match="'pid:' and a number"):
        resolve_named(spec)


def test_slots_are_known_when_the_environment_says_so(tmp_path: Path) -> None:
    """Ollama's own variable, read from the server's environment."""
    with working_server(tmp_path, "ollama", env={"OLLAMA_NUM_PARALLEL": "3"}) as running:
        assert resolve("127.0.0.1", running.port).slots == 3


@pytest.mark.parametrize(
    ("arguments", "environment", "slots"),
    [
        (["llama-server", "-m", "x.gguf", "-np", "4"], {}, 4),
        (["/opt/llama-server", "--parallel=2"], {}, 2),
        (["/usr/bin/ollama", "runner", "--model", "x", "--parallel", "1"], {}, 1),
        (["llama-server"], {"LLAMA_ARG_N_PARALLEL": "8"}, 8),
        (["ollama", "serve"], {"OLLAMA_NUM_PARALLEL": "0"}, None),
        (["ollama", "serve"], {}, None),
        (["llama-server", "--parallel"], {}, None),
        (["llama-server", "--parallel", "-1"], {}, None),
        (["mpirun", "-np", "4"], {}, None),
        ([], {}, None),
    ],
)
def test_slots_are_hinted_when_a_known_server_is_told_them(
    arguments: list[str], environment: dict[str, str], slots: int | None
) -> None:
    """0 and -1 mean that the server decides."""
    assert slots_hint(arguments, environment) == slots


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["/usr/local/bin/ollama", "serve"], "ollama"),
        (["python3.11", "-m", "vllm.entrypoints.openai.api_server", "--port", "8000"], "vllm"),
        (["/venv/bin/python", "-u", "/venv/bin/litellm", "--port", "4000"], "litellm"),
        (["python", "serve.py"], "serve"),
        (["python", "-c", "import x"], "python"),
        (["nginx: master process /usr/sbin/nginx -g daemon off;"], "nginx"),
        (["sshd: me@pts/0"], "sshd"),
        ([], "kworker/0:1"),
    ],
)
def test_a_program_is_called_as_people_call_it_when_it_runs(arguments: list[str], name: str) -> None:
    """Interpreters are seen through."""
    assert program_name(arguments, "kworker/0:1") == name


def test_variants_are_known_when_their_name_goes_on() -> None:
    """Versions and variants are the same program; a name that only begins alike is not."""
    assert is_llm_server("llamafile-0.9.2")
    assert is_llm_server("mistral-7b.llamafile")
    assert is_llm_server("text-generation")  # as the kernel cuts it
    assert not is_llm_server("ollamaesque")
    assert not is_llm_server("text")
    assert not is_relay("go")  # as gost begins, but the kernel cuts no name that is so short
    assert is_relay("docker-proxy")
    assert not is_relay("ollama")


@given(st.text(max_size=15), st.binary(max_size=80))
def test_a_stat_line_is_read_or_refused_when_the_name_is_odd(name: str, noise: bytes) -> None:
    """A program may be called ``) R 1 (``; a cut line is a ValueError and nothing else."""
    fields = ["S", "7", *["0"] * 9, "30", "4", *["0"] * 4, "1", "0", "99", *["0"] * 20]
    stat = parse_stat(f"12 ({name}) {' '.join(fields)}\n".encode())
    assert (stat.parent, stat.start_ticks, stat.cpu_ns, stat.ended) == (7, 99, 34 * 10_000_000, False)
    with suppress(ValueError):
        parse_stat(noise)


def write_process(proc: Path, pid: int, parent: int, name: str) -> None:
    """A process of a /proc of our own making."""
    folder = proc / str(pid)
    folder.mkdir(parents=True)
    zeros = " ".join(["0"] * 9)
    (folder / "stat").write_text(f"{pid} ({name}) S {parent} {zeros} 1 1 0 0 0 0 1 0 {pid * 10} {zeros}\n")
    (folder / "comm").write_text(f"{name}\n")
    (folder / "cmdline").write_bytes(f"/bin/{name}\0".encode())


def test_the_tree_is_found_when_the_kernel_lists_no_children(tmp_path: Path) -> None:
    """Without CONFIG_PROC_CHILDREN the parents of all processes tell."""
    for pid, parent in [(1, 0), (10, 1), (11, 10), (12, 11), (20, 1)]:
        write_process(tmp_path, pid, parent, "x")
    procfs = Procfs(tmp_path)
    assert sorted(procfs.tree(10)) == [10, 11, 12]
    assert procfs.roots([10, 11, 12, 20]) == [10, 20]


def test_all_children_are_in_the_tree_when_one_thread_has_several() -> None:
    """The kernel lists them on one line for each thread."""
    children = [_sleeping_child() for _ in range(3)]
    try:
        assert set(children) < set(Procfs().tree(os.getpid()))
    finally:
        for child in children:
            os.kill(child, 9)
            os.waitpid(child, 0)


def test_sockets_are_found_when_other_descriptors_are_closed_meanwhile(tmp_path: Path) -> None:
    """A busy server opens and closes some all the time; that must not hide the one that it listens at."""
    folder = tmp_path / "50" / "fd"
    folder.mkdir(parents=True)
    for number in range(0, 40, 2):
        (folder / str(number)).touch()  # cannot be read as a link, as one that is gone
        (folder / str(number + 1)).symlink_to(f"socket:[{number}]")
    assert sorted(Procfs(tmp_path).sockets(50)) == list(range(0, 40, 2))


def test_the_user_is_the_effective_one_when_they_differ(tmp_path: Path) -> None:
    """Sockets are of the user that a server has become, not of the one who started it."""
    (tmp_path / "50").mkdir()
    (tmp_path / "50" / "status").write_text("Name:\tollama\nUid:\t0\t998\t998\t998\nGid:\t0\t0\t0\t0\n")
    assert Procfs(tmp_path).user_id(50) == 998
    assert Procfs(tmp_path).user_id(51) is None


def test_the_tree_is_the_same_when_the_kernel_lists_children() -> None:
    """Both ways agree on real processes, also below threads other than the main one."""
    with working_server() as running:
        running.do("work")
        listed = Procfs()
        scanned = Procfs()
        scanned._lists_children = False
        assert len(listed.tree(running.pid)) == 2
        assert sorted(listed.tree(running.pid)) == sorted(scanned.tree(running.pid))


@pytest.mark.parametrize(("first", "root"), [("systemd", 50), ("gunicorn", 1)])
def test_the_first_process_is_the_server_when_it_is_not_the_init_system(tmp_path: Path, first: str, root: int) -> None:
    """systemd keeps the socket of a service that it starts on demand; in a container the first process may serve."""
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "tcp").write_text(
        HEAD + "0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 777 1\n"
    )
    for pid, name in [(1, first), (50, "worker")]:
        write_process(tmp_path, pid, 0 if pid == 1 else 1, name)
        (tmp_path / str(pid) / "fd").mkdir()
        (tmp_path / str(pid) / "fd" / "3").symlink_to("socket:[777]")
    server = resolve("127.0.0.1", 8080, Procfs(tmp_path))
    assert (server.pid, server.id) == (root, f"pid:{root}:{root * 10}")


def test_the_server_is_unknown_when_only_systemd_holds_its_socket(tmp_path: Path) -> None:
    """The service is started by the call; systemd is the root of all processes, which have not all worked on it."""
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "tcp").write_text(
        HEAD + "0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 777 1\n"
    )
    write_process(tmp_path, 1, 0, "systemd")
    (tmp_path / "1" / "fd").mkdir()
    (tmp_path / "1" / "fd" / "3").symlink_to("socket:[777]")
    server = resolve("127.0.0.1", 8080, Procfs(tmp_path))
    assert (server.pid, server.reason) == (None, "not-listening")


def test_nothing_is_raised_when_the_host_is_no_host() -> None:
    """Whatever a client was given as its server's name."""
    for host in ("", "\0", "a" * 300, "xn--\u2603", "::::", "256.1.1.1", "[", "host name", "/\0", "/", "@", "@\0"):
        assert resolve(host, 80).pid is None

"""From Unix sockets to process trees, on real processes and real sockets."""

from __future__ import annotations

import secrets
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from otel_llm_energy.servers import resolve
from otel_llm_energy.servers.procfs import Procfs
from otel_llm_energy.servers.unix_sockets import listeners_at, roots_elsewhere, unix_listeners
from tests.servers.processes import working_server
from tests.servers.test_resolve_servers import SERVICE, as_nobody, needs_root
from tests.support.hosts import container, may_make_namespaces
from tests.support.waiting import until


@pytest.mark.parametrize("bound", ["absolute", "relative", "own"])
def test_the_listening_process_is_found_when_the_client_knows_another_path(tmp_path: Path, bound: str) -> None:
    """The kernel shows the path that the server wrote; the client may come through a link."""
    folder, link = tmp_path / "a folder", tmp_path / "link"
    folder.mkdir()
    link.symlink_to(folder)
    path = folder / "llm.sock"
    written = {"absolute": str(path), "relative": "./llm.sock", "own": "/proc/self/cwd/llm.sock"}[bound]
    with working_server(folder, arguments=[written]) as running:
        found = resolve(str(path), 0)
        assert (found.pid, found.place, found.reason) == (running.pid, "local", None), found.message
        assert resolve(str(link / "llm.sock"), 0) == found


def test_the_listening_process_is_found_when_its_socket_has_an_abstract_name() -> None:
    """It has no file at all."""
    name = f"@llm-{secrets.token_hex(4)}"
    with working_server(arguments=[name]) as running:
        assert resolve(name, 0).pid == running.pid


def test_another_socket_of_that_name_is_not_taken_when_it_lies_elsewhere(tmp_path: Path) -> None:
    """Names such as ``server.sock`` are common."""
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    with (
        working_server(tmp_path / "one", arguments=["./server.sock"]) as one,
        working_server(tmp_path / "other", arguments=["./server.sock"]) as other,
    ):
        assert resolve(str(tmp_path / "one" / "server.sock"), 0).pid == one.pid
        assert resolve(str(tmp_path / "other" / "server.sock"), 0).pid == other.pid


def test_the_server_is_unknown_when_its_file_was_left_behind(tmp_path: Path) -> None:
    """A server that ended leaves its socket's file; nobody listens at it."""
    path = tmp_path / "llm.sock"
    with working_server(arguments=[str(path)]):
        pass
    assert path.exists()
    found = resolve(str(path), 0)
    assert (found.pid, found.place, found.reason) == (None, "unknown", "not-listening")
    assert str(path) in found.message


def test_a_relay_is_no_server_when_it_listens_at_a_socket(tmp_path: Path) -> None:
    """As at a port; the message says how to name the server at this path."""
    path = str(tmp_path / "llm.sock")
    with working_server(tmp_path, "nginx", [path]):
        found = resolve(path, 0)
    assert (found.pid, found.reason) == (None, "relay")
    assert f"servers={{'{path}': " in found.message


@needs_root
@pytest.mark.usefixtures("service_user")
def test_a_known_program_is_taken_when_the_sockets_user_hides_it() -> None:
    """The file says whose it is."""
    with tempfile.TemporaryDirectory() as folder:  # unlike those of pytest, open to others
        Path(folder).chmod(0o777)
        path = str(Path(folder) / "llm.sock")
        with working_server(Path(folder), "ollama", [path, SERVICE[1]]) as running:
            assert as_nobody(path, 0) == f"{running.pid} local None"


SERVER = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(); s.accept()"


@pytest.mark.skipif(not may_make_namespaces(), reason="only root can make namespaces")
def test_a_known_program_in_a_container_is_found_when_its_socket_is_shared(tmp_path: Path) -> None:
    """It lives in another network namespace, and the socket's file is in a folder of both."""
    path = tmp_path / "llm.sock"
    program = tmp_path / "llama-server"
    program.write_text(SERVER)
    with container(sys.executable, str(program), str(path)):
        until(path.exists)
        found = resolve(str(path), 0)
        assert (found.name, found.reason) == ("llama-server", None), found.message


_HEAD = "Num       RefCount Protocol Flags    Type St Inode Path\n"
_Rows = Sequence[tuple[int, str]]


def _table(path: Path, rows: _Rows) -> None:
    """Listening sockets by their inode, and the path that their server wrote."""
    path.mkdir(parents=True, exist_ok=True)
    lines = [f"0000000000000001: 00000002 00000000 00010000 0001 01 {inode} {at}\n" for inode, at in rows]
    (path / "unix").write_text(_HEAD + "".join(lines))


def _process(proc: Path, pid: int, folder: Path, inode: int) -> None:
    """One that runs in a folder and holds a socket."""
    (proc / str(pid) / "fd").mkdir(parents=True)
    (proc / str(pid) / "fd" / "3").symlink_to(f"socket:[{inode}]")
    (proc / str(pid) / "cwd").symlink_to(folder)
    (proc / str(pid) / "root").symlink_to("/")
    (proc / str(pid) / "stat").write_text(f"{pid} (llm) S 1 0 0 0 0 0 0 0 0 0 0 0 0 0 20 0 1 0 9 0 0\n")


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """Two with a file of the same name, and a link to the first."""
    found = {name: tmp_path / name for name in ("one", "other", "link")}
    for name in ("one", "other"):
        found[name].mkdir()
        (found[name] / "llm.sock").touch()
    found["link"].symlink_to(found["one"])
    return found


@pytest.mark.parametrize(
    ("written", "holder", "asked", "is_found"),
    [
        ("{one}/llm.sock", None, "{one}/llm.sock", True),
        ("{one}/llm.sock", None, "{link}/llm.sock", True),
        ("{one}/gone.sock", None, "{one}/gone.sock", True),
        ("{other}/llm.sock", None, "{one}/llm.sock", False),
        ("{other}/llm.sock", "other", "{one}/llm.sock", False),
        ("llm.sock", "one", "{link}/llm.sock", True),
        ("llm.sock", "other", "{one}/llm.sock", False),
        ("llm.sock", None, "{one}/llm.sock", False),
        ("/proc/self/cwd/llm.sock", "one", "{one}/llm.sock", True),
        ("/proc/self/cwd/llm.sock", "other", "{one}/llm.sock", False),
        ("/proc/thread-self/cwd/llm.sock", None, "{one}/llm.sock", False),
        ("@llm", None, "@llm", True),
        ("@llm", None, "@another", False),
        ("{one}/llm.sock", None, "{one}/\0", False),
    ],
)
def test_a_socket_is_the_clients_when_its_path_leads_to_the_same_file_for_its_server(
    written: str,
    holder: str | None,
    asked: str,
    is_found: bool,
    folders: Mapping[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From the folder in which the server runs, not from ours; one whose holder is hidden is told by its path alone."""
    monkeypatch.chdir(folders["one"])
    proc = tmp_path / "proc"
    _table(proc / "net", [(11, written.format(**folders)), (12, str(folders["other"] / "another.sock"))])
    if holder is not None:
        _process(proc, 10, folders[holder], 11)
    found = listeners_at(asked.format(**folders), Procfs(proc))
    assert [one.inode for one in found] == ([11] if is_found else [])


@pytest.mark.parametrize(
    ("ours", "theirs", "program", "is_found"),
    [
        ([], [(11, "{one}/llm.sock")], "llama-server", True),
        ([], [(11, "{one}/llm.sock")], "bash", False),
        ([], [(11, "{other}/llm.sock")], "llama-server", False),
        ([(11, "{one}/llm.sock")], [(11, "{one}/llm.sock")], "llama-server", False),
        ([], [(12, "@llm"), (11, "llm.sock")], "llama-server", True),
        ([], [(11, "@llm.sock")], "llama-server", False),
    ],
)
def test_a_program_that_runs_models_is_found_elsewhere_when_it_listens_at_the_clients_file(
    ours: _Rows, theirs: _Rows, program: str, is_found: bool, folders: Mapping[str, Path], tmp_path: Path
) -> None:
    """In another network namespace; what it has in ours was looked for before."""
    proc = tmp_path / "proc"
    _table(proc / "net", [(inode, path.format(**folders)) for inode, path in ours])
    _process(proc, 10, folders["one"], 11)
    _table(proc / "10" / "net", [(inode, path.format(**folders)) for inode, path in theirs])
    (proc / "10" / "cmdline").write_text(f"/usr/bin/{program}\0")
    assert roots_elsewhere(str(folders["one"] / "llm.sock"), Procfs(proc)) == ([10] if is_found else [])


def test_a_table_may_hold_any_rows_when_sockets_are_looked_for(tmp_path: Path) -> None:
    """Sockets without a path, paths with spaces, and rows that are none."""
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "unix").write_text(
        "Num       RefCount Protocol Flags    Type St Inode Path\n"
        "0000000000000001: 00000002 00000000 00010000 0001 01 11 /run/two  words.sock\n"
        "0000000000000002: 00000003 00000000 00000000 0001 03 12 /run/connected.sock\n"
        "0000000000000003: 00000003 00000000 00010000 0001 03 13\n"
        "0000000000000004: 00000003 00000000 nonsense 0001 03 14 /run/x.sock\n"
        "nonsense\n"
    )
    assert [tuple(one) for one in unix_listeners(Procfs(tmp_path))] == [("/run/two  words.sock", 11)]

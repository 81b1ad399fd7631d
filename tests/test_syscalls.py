"""System calls that keep the interpreter lock do what Python's own do."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from otel_llm_energy import syscalls


@pytest.fixture(params=["c library", "python"])
def calls(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Both ways of making them."""
    if request.param == "python":
        monkeypatch.setattr(syscalls, "_libc", None)
    elif syscalls._libc is None:
        pytest.skip("the C library is of another kind here")
    return syscalls


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of many lengths, one with a name that is no UTF-8, a link and a folder."""
    for length in (0, 1, 4095, 4096, 4097, 20_000):
        (tmp_path / f"{length}").write_bytes(os.urandom(length))
    (tmp_path / os.fsdecode(b"caf\xe9")).touch()
    (tmp_path / "link").symlink_to("socket:[4711]")
    (tmp_path / "below").mkdir()
    return tmp_path


def test_files_and_folders_are_read_as_they_are(calls: Any, folder: Path) -> None:
    """All of a file, its beginning, the target of a link, and all names."""
    for path in folder.iterdir():
        if path.name.isdecimal():
            assert calls.read_file(str(path)) == path.read_bytes()
            descriptor = os.open(path, os.O_RDONLY)
            assert calls.pread(descriptor, 4096) == path.read_bytes()[:4096]
            assert calls.prepared_pread(descriptor, 4096)() == path.read_bytes()[:4096]
            os.close(descriptor)
    assert calls.read_link(str(folder / "link")) == "socket:[4711]"
    assert sorted(calls.names_in(str(folder))) == sorted(path.name for path in folder.iterdir())


def test_errors_are_those_of_python(calls: Any, folder: Path) -> None:
    """With number, words and path; a descriptor that is closed is none."""
    missing = str(folder / "missing")
    for call in (calls.read_file, calls.read_link, calls.names_in):
        with pytest.raises(FileNotFoundError) as caught:
            call(missing)
        assert caught.value.filename == missing
    with pytest.raises(NotADirectoryError):
        calls.names_in(str(folder / "1"))
    with pytest.raises(IsADirectoryError):
        calls.read_file(str(folder / "below"))
    descriptor = os.open(folder / "1", os.O_RDONLY)
    os.close(descriptor)
    with pytest.raises(OSError, match="Bad file descriptor"):
        calls.pread(descriptor, 10)
    with pytest.raises(OSError, match="Bad file descriptor"):
        calls.prepared_pread(descriptor, 10)()


def test_what_is_read_again_is_what_the_file_says_by_then(calls: Any, tmp_path: Path) -> None:
    """Nothing is left of a longer text before it, and what was read stays as it was."""
    path = tmp_path / "energy_uj"
    path.write_bytes(b"262143328850\n")
    with path.open("rb") as file:
        read = calls.prepared_pread(file.fileno(), 32)
        first = read()
        path.write_bytes(b"17\n")
        assert (first, read()) == (b"262143328850\n", b"17\n")


def test_no_descriptor_is_left_open(calls: Any, folder: Path) -> None:
    """Whatever became of the call."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    for name in ("0", "20000", "below", "missing"):
        for call in (calls.read_file, calls.read_link, calls.names_in):
            try:
                call(str(folder / name))
            except OSError:
                continue
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def _others_run_meanwhile(call: Callable[[], object]) -> bool:
    """Whether a thread that wants the interpreter gets it while this one makes a call, a thousand times."""
    gate, ran = threading.Lock(), threading.Event()
    gate.acquire()

    def wait() -> None:
        with gate:
            ran.set()

    thread = threading.Thread(target=wait)
    thread.start()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(600)  # nobody is asked to let go of it
    try:
        gate.release()
        for _ in range(1000):
            call()
        return ran.is_set()
    finally:
        sys.setswitchinterval(interval)
        thread.join()


@pytest.mark.skipif(syscalls._libc is None, reason="the C library is of another kind here")
def test_no_other_thread_gets_the_interpreter_in_between() -> None:
    """So that whoever looks at hundreds of files beside a busy thread waits for it once, and not each time."""
    assert _others_run_meanwhile(lambda: list(Path("/proc/self").iterdir()))
    assert not _others_run_meanwhile(lambda: syscalls.names_in("/proc/self"))
    assert not _others_run_meanwhile(lambda: syscalls.read_file("/proc/self/stat"))
    assert not _others_run_meanwhile(lambda: syscalls.read_link("/proc/self/exe"))
    with Path("/proc/self/stat").open("rb") as file:
        descriptor = file.fileno()
        assert not _others_run_meanwhile(lambda: syscalls.pread(descriptor, 1024))
        assert not _others_run_meanwhile(syscalls.prepared_pread(descriptor, 1024))

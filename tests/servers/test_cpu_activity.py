"""The servers' part of the CPU time, on real processes that do a known amount of work."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from otel_llm_energy.machine import TICK_NS
from otel_llm_energy.quantities import ActivitySample
from otel_llm_energy.servers import CpuActivity, Server, process_cpu_ns, resolve
from otel_llm_energy.servers.procfs import Procfs
from tests.servers.processes import working_server
from tests.servers.working_server import WORK_SECONDS
from tests.support.descriptors import of_file

WORK_NS = round(WORK_SECONDS * 1e9)


def taken(activity: CpuActivity) -> ActivitySample:
    """A sample, which this kernel must give."""
    sample = activity.sample()
    assert sample is not None
    return sample


def used_ns(before: ActivitySample, after: ActivitySample, server: Server) -> int:
    """What a server used between two samples."""
    first, second = before.by_server_ns[server.id], after.by_server_ns[server.id]
    assert first is not None and second is not None
    return second - first


@pytest.mark.parametrize("cpu_clock", [process_cpu_ns, None], ids=["clock", "ticks"])
def test_a_childs_work_is_the_servers_when_it_starts_after_watching(cpu_clock: object) -> None:
    """The work of a child that was born and worked between two samples is counted, within the stated resolution."""
    activity = CpuActivity(cpu_clock=cpu_clock)  # type: ignore[arg-type]
    with working_server() as running:
        server = resolve("127.0.0.1", running.port)
        activity.watch(server)
        before = taken(activity)
        running.do("work")
        after = taken(activity)
    activity.close()
    used = used_ns(before, after, server)
    assert used >= WORK_NS - after.resolution_ns
    assert used <= after.total_ns - before.total_ns + after.resolution_ns + after.total_resolution_ns


def test_a_childs_work_stays_counted_when_it_has_ended() -> None:
    """Ollama drops its runner after a while; the sum must not fall."""
    activity = CpuActivity()
    with working_server() as running:
        server = resolve("127.0.0.1", running.port)
        activity.watch(server)
        before = taken(activity)
        for round_ in range(1, 3):
            running.do("work")
            while_alive = taken(activity)
            running.do("end")
            afterwards = taken(activity)
            assert used_ns(while_alive, afterwards, server) >= 0
            assert used_ns(before, afterwards, server) >= round_ * WORK_NS - round_ * afterwards.resolution_ns
    activity.close()


@pytest.mark.parametrize("cpu_clock", [process_cpu_ns, None], ids=["clock", "ticks"])
@pytest.mark.parametrize("seen_before", [False, True])
def test_a_childs_work_is_the_servers_when_it_has_ended_before_it_was_seen(
    seen_before: bool, cpu_clock: object
) -> None:
    """A server that starts a process for each request, or an app that runs a program: it lives for a sample or two."""
    activity = CpuActivity(cpu_clock=cpu_clock)  # type: ignore[arg-type]
    with working_server() as running:
        server = resolve("127.0.0.1", running.port)
        activity.watch(server)
        before = taken(activity)
        for _ in range(2):
            running.do("work")
            if seen_before:
                taken(activity)
            running.do("end")
            after = taken(activity)
        own = taken(activity)
    activity.close()
    tolerance_ns = 2 * after.resolution_ns
    assert used_ns(before, after, server) >= 2 * (WORK_NS - tolerance_ns)
    assert used_ns(before, after, server) <= after.total_ns - before.total_ns + tolerance_ns
    assert used_ns(after, own, server) < WORK_NS / 2, "counted once"


@pytest.mark.parametrize("cpu_clock", [process_cpu_ns, None], ids=["clock", "ticks"])
def test_work_of_a_childs_child_is_the_servers_when_it_has_ended_before_the_child_was_seen(cpu_clock: object) -> None:
    """A shell that runs one program after the other: at the first look at it the first one may be over."""
    activity = CpuActivity(cpu_clock=cpu_clock)  # type: ignore[arg-type]
    app = Server("app", "app", "local", pid=os.getpid())
    activity.watch(app)
    before = taken(activity)
    work = f"import time\nwhile time.process_time() < {WORK_SECONDS}: pass"
    script = '"$0" -S -c "$1"; echo; read -r _; exit 0'
    shell = subprocess.Popen(
        ["sh", "-c", script, sys.executable, work], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert shell.stdout is not None
    shell.stdout.readline()
    while_alive = taken(activity)
    shell.communicate("\n")
    after = taken(activity)
    activity.close()
    assert used_ns(before, while_alive, app) >= WORK_NS - 2 * after.resolution_ns
    assert used_ns(while_alive, after, app) < WORK_NS / 2, "counted once"


def test_the_part_is_unknown_when_the_server_has_ended() -> None:
    """None, not zero, and for good."""
    activity = CpuActivity()
    with working_server() as running:
        server = resolve("127.0.0.1", running.port)
        activity.watch(server)
        assert taken(activity).by_server_ns[server.id] is not None
        running.process.kill()
        os.waitid(os.P_PID, running.pid, os.WEXITED | os.WNOWAIT)
        assert taken(activity).by_server_ns[server.id] is None, "ended, though its parent has not taken note"
        running.kill()
        assert taken(activity).by_server_ns[server.id] is None
    activity.close()


def test_the_part_is_unknown_when_the_number_is_another_processs() -> None:
    """A process number that was used again belongs to someone else."""
    activity = CpuActivity()
    with working_server() as running:
        server = resolve("127.0.0.1", running.port)
        assert server.start_ticks is not None
        former = replace(server, id="former", start_ticks=server.start_ticks - 1)
        activity.watch(former)
        assert taken(activity).by_server_ns == {"former": None}
    activity.close()


def test_a_servers_part_is_known_at_the_next_try_when_no_descriptor_was_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """An app may be out of them for a moment, and the server's process has not ended by that."""

    def refuse(*_: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    activity = CpuActivity()
    with working_server() as running:
        server = resolve("127.0.0.1", running.port)
        taken(activity)
        with monkeypatch.context() as full:
            full.setattr(os, "open", refuse)
            activity.watch(server)
        assert taken(activity).by_server_ns == {server.id: None}
        activity.watch(server)
        assert taken(activity).by_server_ns[server.id] is not None
        running.kill()
        assert taken(activity).by_server_ns == {server.id: None}
        activity.watch(server)
        assert taken(activity).by_server_ns == {server.id: None}
    activity.close()


def test_servers_without_a_tree_are_none_when_sampled() -> None:
    """Remote and hidden servers are there, with no figure."""
    activity = CpuActivity()
    server = resolve("192.0.2.1", 443)
    activity.watch(server)
    assert taken(activity).by_server_ns == {server.id: None}
    activity.forget(server.id)
    activity.forget(server.id)
    assert taken(activity).by_server_ns == {}
    activity.close()


def test_descriptors_are_given_back_when_servers_are_forgotten() -> None:
    """Servers come and go for weeks."""
    at_first = len(list(Path("/proc/self/fd").iterdir()))
    activity = CpuActivity()
    taken(activity)
    before = sorted(Path("/proc/self/fd").iterdir())
    with working_server() as running:
        server = resolve("127.0.0.1", running.port)
        own = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(3):
            activity.watch(server)
            activity.watch(server)
            assert taken(activity).by_server_ns[server.id] is not None
            assert len(list(Path("/proc/self/fd").iterdir())) == own + 1
            activity.forget(server.id)
        activity.watch(server)
        running.kill()
        taken(activity)
        assert len(list(Path("/proc/self/fd").iterdir())) == own
    assert len(list(Path("/proc/self/fd").iterdir())) == len(before)
    activity.watch(Server("app", "app", "local", pid=os.getpid()))
    activity.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == at_first


def test_an_apps_file_is_left_open_when_it_has_the_number_of_a_descriptor_that_a_daemon_closed() -> None:
    """A daemon closes all that it has; what it opens then has the same numbers, and looks like an ended process."""
    activity = CpuActivity()
    activity.watch(Server("app", "app", "local", pid=os.getpid()))
    number = of_file(Path(f"/proc/{os.getpid()}/stat"))
    os.close(number)
    with socket.socket() as other:
        assert other.fileno() == number
        assert taken(activity).by_server_ns["app"] is None
        activity.close()
        assert os.fstat(number)


def test_children_are_looked_for_only_when_something_was_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number last given by the kernel tells; looking through a server's threads is what costs."""
    looked: list[int] = []
    children = Procfs.children

    def spy(self: Procfs, pid: int) -> list[int]:
        looked.append(pid)
        return children(self, pid)

    newest: list[bytes | None] = [b"100"]
    monkeypatch.setattr(Procfs, "children", spy)
    monkeypatch.setattr(Procfs, "newest_pid", lambda self: newest[0])
    activity = CpuActivity()
    with working_server() as running:
        activity.watch(resolve("127.0.0.1", running.port))
        taken(activity)
        looked.clear()
        taken(activity)
        assert looked == []
        newest[0] = b"101"
        taken(activity)
        assert looked == [running.pid]
        newest[0] = None
        taken(activity)
        taken(activity)
        assert looked == [running.pid] * 3, "what is not told may have happened"
    activity.close()


def test_no_sample_is_taken_when_there_is_no_proc(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Not Linux: None, and one warning."""
    activity = CpuActivity(proc=tmp_path, cgroup=tmp_path)
    assert activity.sample() is None
    assert activity.sample() is None
    assert len(caplog.records) == 1
    activity.close()
    activity.close()


def test_the_resolution_is_two_ticks_when_processes_have_no_clock() -> None:
    """Of the table's whole ticks each of two counts, user and system, is cut off; bounds are made of this."""
    for cpu_clock, ticks in ((process_cpu_ns, 1), (None, 2), (lambda _pid: None, 2)):
        activity = CpuActivity(cpu_clock=cpu_clock)
        assert taken(activity).resolution_ns == ticks * TICK_NS
        activity.close()


def test_the_sample_is_dated_by_the_given_clock_when_taken() -> None:
    """Capacity, resource and instant are as the ledger expects them."""
    activity = CpuActivity(clock_ns=lambda: 42)
    sample = taken(activity)
    assert (sample.resource, sample.at_ns, sample.capacity) == ("cpu", 42, os.cpu_count())
    activity.close()


def test_a_process_has_no_clock_when_it_is_gone() -> None:
    """The kernel's clock of a process that has ended, and was taken note of, is no more."""
    with working_server() as running:
        assert process_cpu_ns(running.pid)
        running.kill()
        assert process_cpu_ns(running.pid) is None


def watch_both(activity: CpuActivity, port: int, *, server_first: bool) -> tuple[Server, Server]:
    """The server at a port, and this process, which has started it."""
    server, app = resolve("127.0.0.1", port), Server("app", "app", "local", pid=os.getpid())
    for each in (server, app) if server_first else (app, server):
        activity.watch(each)
    return server, app


@pytest.mark.parametrize("server_first", [True, False])
def test_tree_leaves_out_what_is_watched_as_a_server_of_its_own(server_first: bool) -> None:
    """An app may have started the server that it calls, and may be watched itself."""
    activity = CpuActivity()
    with working_server() as running:
        server, app = watch_both(activity, running.port, server_first=server_first)
        before = taken(activity)
        running.do("work")
        after = taken(activity)
    activity.close()
    assert used_ns(before, after, server) >= WORK_NS - after.resolution_ns
    assert used_ns(before, after, app) < WORK_NS / 2


@pytest.mark.parametrize("server_first", [True, False])
def test_an_apps_work_is_its_own_when_the_server_that_it_started_ends(server_first: bool) -> None:
    """The kernel adds all that a child ever used to its parent's children once that has waited for it."""
    activity = CpuActivity()
    with working_server() as running:
        _, app = watch_both(activity, running.port, server_first=server_first)
        running.do("work")
        running.do("end")
        before = taken(activity)
        running.kill()
        after = taken(activity)
    activity.close()
    assert used_ns(before, after, app) < WORK_NS / 2


def test_work_is_the_apps_again_when_the_server_that_it_started_is_forgotten() -> None:
    """What is watched by nobody any more is part of who started it."""
    activity = CpuActivity()
    with working_server() as running:
        server, app = resolve("127.0.0.1", running.port), Server("app", "app", "local", pid=os.getpid())
        activity.watch(server)
        activity.forget(server.id)
        activity.watch(app)
        before = taken(activity)
        running.do("work")
        after = taken(activity)
    activity.close()
    assert used_ns(before, after, app) >= WORK_NS - after.resolution_ns


def test_a_childs_work_is_counted_once_when_nobody_has_waited_for_it() -> None:
    """It has ended, but the kernel lists it until its parent takes note, and shows all that it used."""
    activity = CpuActivity()
    app = Server("app", "app", "local", pid=os.getpid())
    activity.watch(app)
    before = taken(activity)
    work = f"import time\nwhile time.process_time() < {WORK_SECONDS}: pass"
    child = subprocess.Popen([sys.executable, "-S", "-c", work])
    taken(activity)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    for _ in range(3):
        subprocess.run(["true"], check=True)  # children are looked for where a process was started
        after = taken(activity)
    child.wait()
    activity.close()
    assert WORK_NS - after.resolution_ns <= used_ns(before, after, app) < 2 * WORK_NS


def test_a_watched_servers_sum_does_not_fall_when_another_one_is_found_for_that_instant() -> None:
    """The CPU time that is noted of every process holds nothing of children that have ended; what is sampled does."""
    activity = CpuActivity()
    with working_server() as running:
        server = resolve("127.0.0.1", running.port)
        activity.watch(server)
        running.do("work")
        taken(activity)
        running.do("end")
        before = taken(activity)
        sample_of_then = activity.snapshot()
        activity.watch(Server("app", "app", "local", pid=os.getpid()))
        then = sample_of_then()
    activity.close()
    assert then is not None
    assert then.by_server_ns.keys() == {server.id, "app"}
    assert used_ns(before, then, server) >= 0


@pytest.mark.parametrize("cpu_clock", [process_cpu_ns, None], ids=["clock", "ticks"])
def test_a_servers_work_is_known_from_before_it_was_found_when_it_was_noted(cpu_clock: object) -> None:
    """It takes some time to find a server, and its first call is under way; what it did long before counts for nothing.

    What a child does that was started since counts, too.
    """
    activity = CpuActivity(cpu_clock=cpu_clock)  # type: ignore[arg-type]
    with working_server() as running:
        running.do("work")
        running.do("end")
        sample_of_then = activity.snapshot()
        running.do("work")
        server = resolve("127.0.0.1", running.port)
        activity.watch(server)
        before, after = sample_of_then(), taken(activity)
    activity.close()
    assert before is not None
    assert before.at_ns < after.at_ns
    tolerance_ns = after.resolution_ns + 100_000_000  # the start of the child's interpreter
    assert WORK_NS - after.resolution_ns <= used_ns(before, after, server) <= WORK_NS + tolerance_ns


def test_nothing_is_known_of_then_when_the_server_was_not_there(tmp_path: Path) -> None:
    """It was started since: what it has used was all used since, but nobody knows what was there before it."""
    activity = CpuActivity()
    sample_of_then = activity.snapshot()
    with working_server() as running:
        activity.watch(server := resolve("127.0.0.1", running.port))
        sample = sample_of_then()
    activity.close()
    assert sample is not None
    assert sample.by_server_ns == {server.id: None}
    assert CpuActivity(proc=tmp_path, cgroup=tmp_path).snapshot()() is None

"""Whose work a GPU does: real processes and bindings, on a library that plays the driver. NO GPU WAS AT HAND."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from otel_llm_energy.nvml import Gpu, Nvml, Utilisation
from otel_llm_energy.quantities import NS_PER_SECOND, ActivitySample
from otel_llm_energy.servers.gpu_activity import GpuActivity
from otel_llm_energy.servers.server import Server
from tests.support.fake_nvml import FakeDriver
from tests.tracing.fakes import ManualClock

GPU = "gpu:GPU-fake-0"
NOT_SUPPORTED, NO_PERMISSION, LOST = 3, 4, 15
# A server whose work is done by a child, as Ollama's is.
_PARENT = (
    "import subprocess, sys; child = subprocess.Popen(['sleep', '60']); print(child.pid, flush=True); child.wait()"
)


class Process:
    """A server's process and its child."""

    def __init__(self) -> None:
        self.popen = subprocess.Popen([sys.executable, "-c", _PARENT], stdout=subprocess.PIPE, text=True)
        assert self.popen.stdout is not None
        self.child = int(self.popen.stdout.readline())
        self.server = Server(f"pid:{self.popen.pid}", "llm", "local", pid=self.popen.pid)

    def stop(self) -> None:
        subprocess.run(["kill", str(self.child)], check=False)
        self.popen.kill()
        self.popen.wait()
        assert self.popen.stdout is not None
        self.popen.stdout.close()


@pytest.fixture(scope="module")
def processes() -> Iterator[list[Process]]:
    """Two servers and a stranger."""
    started = [Process() for _ in range(3)]
    yield started
    for process in started:
        process.stop()


class Watch:
    """Samples of the first GPU, a second apart; two servers are watched."""

    def __init__(self, driver: FakeDriver, processes: list[Process]) -> None:
        self.driver = driver
        self.clock = ManualClock()
        self.activity = GpuActivity(clock_ns=self.clock)
        self.one, self.two, self.stranger = processes
        self.activity.watch(self.one.server)
        self.activity.watch(self.two.server)
        self.sample()

    def sample(self, seconds: float = 1, **answers: object) -> ActivitySample | None:
        """What is sampled after ``seconds`` in which the driver gave these answers."""
        self.driver.say(**answers)
        self.clock.advance(seconds)
        samples = self.activity.samples([GPU, "cpu"])
        assert None not in samples
        return samples[0] if samples else None

    def cell(self, **answers: object) -> tuple[float, dict[str, float | None], frozenset[str]]:
        """Work in a second, all and by server, and who is absent."""
        before, after = self.sample(**answers), self.sample()
        assert before is not None and after is not None

        def work_s(name: str) -> float | None:
            then, now = before.by_server_ns[name], after.by_server_ns[name]
            return None if then is None or now is None else (now - then) / NS_PER_SECOND

        total_s = (after.total_ns - before.total_ns) / NS_PER_SECOND
        return total_s, {name: work_s(name) for name in after.by_server_ns}, before.absent & after.absent


@pytest.fixture
def watch(gpu_driver: FakeDriver, processes: list[Process]) -> Iterator[Watch]:
    watch = Watch(gpu_driver, processes)
    yield watch
    watch.activity.close()


def test_all_work_is_a_servers_when_it_alone_holds_a_context(watch: Watch) -> None:
    """Through a child; and the other server has nothing to do with this GPU."""
    one, two = watch.one.server.id, watch.two.server.id
    total_s, by_server, absent = watch.cell(gpu0_pids=watch.one.child, gpu0_busy=80)
    assert (total_s, by_server, absent) == (0.8, {one: 0.8, two: 0.0}, frozenset({two}))
    sample = watch.sample()
    assert sample is not None
    assert (sample.capacity, sample.resolution_ns, sample.total_resolution_ns) == (1, 0, 0)


@pytest.mark.parametrize("answers", [{"gpu0_busy": 0}, {"gpu0_busy_error": NOT_SUPPORTED}])
def test_a_server_may_have_worked_a_little_when_none_of_it_was_seen(watch: Watch, answers: dict[str, object]) -> None:
    """The driver samples now and then: with no work at all, what the card draws above idle would be nobody's."""
    one, two = watch.one.server.id, watch.two.server.id
    total_s, by_server, _ = watch.cell(gpu0_pids=watch.one.child, **answers)
    assert (total_s, by_server) == (0.01, {one: 0.01, two: 0.0})


def test_servers_are_absent_when_nobody_holds_a_context(watch: Watch) -> None:
    """An idle GPU is nobody's."""
    _, _, absent = watch.cell(gpu0_busy=0)
    assert absent == {watch.one.server.id, watch.two.server.id}


def test_all_work_is_others_when_a_stranger_alone_holds_a_context(watch: Watch) -> None:
    """Somebody's training run."""
    total_s, by_server, absent = watch.cell(gpu0_pids=watch.stranger.child, gpu0_busy=100)
    assert (total_s, set(by_server.values())) == (1.0, {0.0})
    assert absent == {watch.one.server.id, watch.two.server.id}


def test_work_is_shared_as_used_when_several_hold_contexts(watch: Watch) -> None:
    """By the driver's samples of what each process uses."""
    one, two, stranger = watch.one.child, watch.two.popen.pid, watch.stranger.child
    pids = f"{one} {two} {stranger}"
    watch.sample(gpu0_pids=pids, gpu0_used=f"{one}:60 {two}:20 {stranger}:10", gpu0_used_at=1)
    sample = watch.sample(gpu0_used_at=2)
    before = sample
    after = watch.sample(gpu0_used_at=3)
    assert before is not None and after is not None
    assert after.total_ns - before.total_ns == 0.9 * NS_PER_SECOND
    assert after.by_server_ns[watch.one.server.id] - before.by_server_ns[watch.one.server.id] == 0.6 * NS_PER_SECOND
    assert after.by_server_ns[watch.two.server.id] - before.by_server_ns[watch.two.server.id] == 0.2 * NS_PER_SECOND
    assert after.resolution_ns == 0.1 * NS_PER_SECOND
    assert not after.absent


def test_sample_waits_when_the_driver_has_no_news_of_who_used_it(watch: Watch) -> None:
    """It samples processes about once a second: a quarter of a second without news says nothing."""
    one, two = watch.one.child, watch.two.child
    sample = watch.sample(gpu0_pids=f"{one} {two}", gpu0_used=f"{one}:60 {two}:20", gpu0_used_at=1)
    assert sample is not None and sample.resolution_ns > 0
    assert watch.sample(0.25) is None
    assert watch.sample(0.25, gpu0_used_at=2) is not None
    assert watch.sample(1.0) is not None


@pytest.mark.parametrize("code", [NOT_SUPPORTED, NO_PERMISSION])
def test_part_is_unknown_when_the_driver_does_not_say_who_used_it(watch: Watch, code: int) -> None:
    """Of those who hold contexts; the other server is absent all the same."""
    pids = f"{watch.one.child} {watch.stranger.child}"
    total_s, by_server, absent = watch.cell(gpu0_pids=pids, gpu0_used_error=code)
    assert total_s == 1.0
    assert by_server == {watch.one.server.id: None, watch.two.server.id: 0.0}
    assert absent == {watch.two.server.id}


@pytest.mark.parametrize(
    "answers",
    [
        {"gpu0_pids_error": NO_PERMISSION},
        {"gpu0_pids": 2**22 + 1},
        {"gpu0_busy": 70},
    ],
    ids=["refused", "pids of another namespace", "a container that is shown no process"],
)
def test_part_is_unknown_when_contexts_cannot_be_seen(watch: Watch, answers: dict[str, object]) -> None:
    """Nobody is said to be absent, and no exception is raised."""
    total_s, by_server, absent = watch.cell(**answers)
    assert (total_s, set(by_server.values()), absent) == (1.0, {None}, frozenset())


def test_who_held_contexts_is_known_still_when_a_gpu_is_lost(watch: Watch) -> None:
    """Calls to the other server, on other GPUs, do not wait for the readings of this one."""
    one, two, stranger = watch.one.server.id, watch.two.server.id, Process()
    watch.sample(gpu0_pids=f"{watch.one.child} {stranger.child}", gpu0_used="")
    stranger.stop()
    _, by_server, absent = watch.cell(gpu0_error=LOST, gpu0_pids_error=LOST)
    assert (by_server[two], absent) == (0.0, frozenset({two}))
    assert by_server[one] is not None


@pytest.mark.parametrize("answers", [{"gpu0_pids_error": LOST}, {"gpu0_pids": 2**22 + 1}], ids=["unseen", "not ours"])
def test_part_is_unknown_when_a_gpu_is_lost_of_which_contexts_were_never_seen(
    gpu_driver: FakeDriver, processes: list[Process], answers: dict[str, object]
) -> None:
    gpu_driver.say(**answers)
    watch = Watch(gpu_driver, processes)
    _, by_server, absent = watch.cell(gpu0_error=LOST, gpu0_pids_error=LOST)
    watch.activity.close()
    assert (set(by_server.values()), absent) == ({None}, frozenset())


def test_part_is_unknown_when_the_servers_process_is(watch: Watch) -> None:
    """It may be the one that holds the context."""
    unknown = Server("remote:somewhere", "somewhere", "unknown")
    watch.activity.watch(unknown)
    _, by_server, absent = watch.cell(gpu0_pids=watch.stranger.child)
    assert by_server[unknown.id] is None
    assert unknown.id not in absent
    watch.activity.forget(unknown.id)
    assert unknown.id not in watch.cell()[1]


def test_nothing_is_sampled_when_no_gpu_is_read(gpu_driver: FakeDriver) -> None:
    """The library is not even opened."""

    def refuse() -> None:
        raise AssertionError("The library was opened.")

    activity = GpuActivity(open_nvml=refuse)  # type: ignore[arg-type]
    assert activity.samples(["cpu"]) == []
    activity.close()


def test_nothing_is_sampled_when_the_driver_is_gone(gpu_driver: FakeDriver, caplog: pytest.LogCaptureFixture) -> None:
    """One line says so."""
    gpu_driver.say(count=None)
    activity = GpuActivity()
    assert activity.samples([GPU]) == []
    assert activity.samples([GPU]) == []
    assert len(caplog.records) == 1


def test_the_library_is_opened_once_and_given_back_when_cards_are_looked_for_again(gpu_driver: FakeDriver) -> None:
    """A card may be asked for that is not there yet; each opening would need a closing of its own."""
    opened: list[Nvml] = []
    closed: list[Nvml] = []

    class Counting(Nvml):
        def __init__(self) -> None:
            super().__init__()
            opened.append(self)

        def close(self) -> None:
            closed.append(self)
            super().close()

    gpu_driver.say(count=1, gpu0_busy=0)
    activity = GpuActivity(open_nvml=Counting)
    for _ in range(2):
        activity.samples([GPU, "gpu:GPU-to-come"])
    activity.close()
    activity.close()
    assert len(opened) == 1
    assert closed == opened


def test_use_is_the_mean_of_the_drivers_samples_when_there_are_several(watch: Watch) -> None:
    """It takes about six a second, each a percentage of its own time; their sum would be more than the card."""

    class Often(Nvml):
        def utilisation(self, gpu: Gpu, since_us: int) -> list[Utilisation]:
            at_us = (since_us + 1, since_us + 2)
            return [Utilisation(pid, percent, at) for pid, percent in used.items() for at in at_us]

    used = {watch.one.child: 60, watch.two.child: 20}
    watch.activity.close()
    watch.activity = GpuActivity(open_nvml=Often, clock_ns=watch.clock)
    watch.activity.watch(watch.one.server)
    watch.activity.watch(watch.two.server)
    _, by_server, _ = watch.cell(gpu0_pids=f"{watch.one.child} {watch.two.child}")
    assert by_server == {watch.one.server.id: pytest.approx(0.6), watch.two.server.id: pytest.approx(0.2)}

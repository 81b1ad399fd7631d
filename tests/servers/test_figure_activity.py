"""A remote server's part of the activity, from its meter's figures of processes."""

from __future__ import annotations

import itertools
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_llm_energy.quantities import NS_PER_SECOND, ActivitySample, HostPower, ProcessPower
from otel_llm_energy.servers import FigureActivity, Selector, Server

BUCKET_NS = 2_200_000_000
OLLAMA = Server("process:ollama", "ollama", "remote", process="ollama")
VLLM = Server("process:vllm", "vllm", "remote", process="cmdline:vllm serve")


def process(exe: str, microwatts: float, cmdline: str = "", **labels: str) -> ProcessPower:
    """One process."""
    return ProcessPower(pid=7, exe=exe, cmdline=cmdline, labels=labels, microwatts=microwatts)


class Host:
    """Figures of a host, given out as a meter does: the newest few, again and again."""

    def __init__(self) -> None:
        self.powers: list[HostPower] = []

    def __call__(self) -> list[HostPower]:
        return self.powers[-4:]

    def refresh(self, *processes: ProcessPower, microwatts: float | None = 100e6) -> None:
        """A bucket later."""
        at_ns = self.powers[-1].at_ns + BUCKET_NS if self.powers else NS_PER_SECOND
        self.powers.append(HostPower(at_ns, microwatts, processes))


def part(before: ActivitySample | None, after: ActivitySample | None, server: Server) -> float | None:
    """u_s between two samples; `None` where it is not known."""
    assert before is not None
    assert after is not None
    then, now = before.by_server_ns.get(server.id), after.by_server_ns[server.id]
    if then is None or now is None:
        return None
    return (now - then) / (after.total_ns - before.total_ns)


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("ollama", "serve runner"),
        ("exe:Ollama", "serve runner"),
        ("cmdline:ollama runner", "runner"),
        ("cmdline:vllm.entrypoints", "vllm"),
        ("container:llm", "vllm"),
        ("container:llm-service", "vllm"),
        ("container:vllm-0", "vllm"),
        ("container:0123456789ab", "vllm"),
        ("container:0123", ""),
        ("label:container_label_TIER=gpu", "vllm"),
        ("exe:olla", ""),
        ("gone", "gone"),
    ],
)
def test_processes_are_chosen_when_they_match(text: str, chosen: str) -> None:
    """By program, command line (run together, as Scaphandre writes it), container or any label."""
    selector = Selector.parse(text)
    candidates = {
        "serve": process("/usr/local/bin/ollama", 1.0, "/usr/local/bin/ollamaserve"),
        "runner": process("/usr/local/bin/ollama", 1.0, "/usr/local/bin/ollamarunner--model/x"),
        "vllm": process(
            "/usr/bin/python3.11",
            1.0,
            "python3-mvllm.entrypoints.openai.api_server",
            container_names="/llm,/llm-alias",
            container_id="0123456789abcdef0123456789abcdef",
            container_label_com_docker_compose_service="llm-service",
            container_label_tier="gpu",
            kubernetes_pod_name="vllm-0",
        ),
        "gone": process("/opt/gone (deleted)", 1.0),
    }
    assert " ".join(name for name, each in candidates.items() if selector.matches(each)) == chosen


@pytest.mark.parametrize("text", ["", "exe:", "program:x", "label:x", "  "])
def test_a_wrong_selector_is_an_error_when_it_is_parsed(text: str) -> None:
    """The message shows the value and how it should look."""
    with pytest.raises(ValueError, match="cmdline:"):
        Selector.parse(text)


def test_the_part_is_of_the_activity_when_the_machine_has_64_cores() -> None:
    """One busy core of 64 has a 64th of the host's power, and yet is all the activity there is."""
    host, activity = Host(), None
    activity = FigureActivity(host)
    activity.watch(OLLAMA)
    host.refresh(microwatts=None)
    first = activity.sample()
    host.refresh(process("/usr/bin/ollama", 100e6 / 64))
    second = activity.sample()
    assert part(first, second, OLLAMA) == 1.0
    assert second is not None
    assert second.total_ns == pytest.approx(BUCKET_NS / 64, abs=1)
    host.refresh(process("/usr/bin/ollama", 100e6 / 64), process("/usr/bin/noise", 300e6 / 64))
    assert part(second, activity.sample(), OLLAMA) == 0.25


def test_busy_time_counts_in_cpus_when_their_number_is_known() -> None:
    """So that idle power can be fitted against it as on this machine."""
    host = Host()
    activity = FigureActivity(host, cpus=64)
    activity.watch(OLLAMA)
    host.refresh(microwatts=None)
    activity.sample()
    host.refresh(process("/usr/bin/ollama", 100e6 / 64))
    sample = activity.sample()
    assert sample is not None
    assert (sample.capacity, sample.total_ns) == (64, pytest.approx(BUCKET_NS, abs=1))
    assert sample.resolution_ns == 10_000_000, "a tick"


def test_figures_stand_for_the_whole_time_when_some_are_missing() -> None:
    """Recorded on a wrap: for one refresh neither the host nor any process has a power."""
    host = Host()
    activity = FigureActivity(host)
    activity.watch(OLLAMA)
    for microwatts in (None, None, 100e6):
        host.refresh(process("/usr/bin/ollama", 25e6), process("/bin/noise", 25e6), microwatts=microwatts)
    samples = [activity.sample(), activity.sample()]
    assert samples[1] is None, "nothing new"
    assert samples[0] is not None
    assert samples[0].total_ns == BUCKET_NS, "half of the machine for two buckets"
    assert samples[0].at_ns == host.powers[-1].at_ns


def test_a_part_is_unknown_when_no_process_matches(caplog: pytest.LogCaptureFixture) -> None:
    """Never zero for what is not known. Said once, with the programs that there are; and once when it is there."""
    host = Host()
    activity = FigureActivity(host)
    activity.watch(OLLAMA)
    activity.watch(Server("remote:x:1", "x", "remote"))
    host.refresh(microwatts=None)
    samples = [activity.sample()]
    with caplog.at_level(logging.INFO):
        for present in (False, False, True, True):
            host.refresh(process("/usr/bin/olama" if not present else "/usr/bin/ollama", 50e6))
            samples.append(activity.sample())
    parts = [part(before, after, OLLAMA) for before, after in itertools.pairwise(samples)]
    assert parts == [None, None, None, 1.0]
    assert samples[-1] is not None
    assert samples[-1].by_server_ns["remote:x:1"] is None
    assert [(record.levelname, "olama" in record.getMessage()) for record in caplog.records] == [
        ("WARNING", True),
        ("INFO", False),
    ]


def test_the_sum_goes_on_when_a_server_is_watched_again() -> None:
    """Another address may turn out to be the same server; its busy time must not fall."""
    host = Host()
    activity = FigureActivity(host)
    activity.watch(OLLAMA)
    samples = []
    for _ in range(3):
        host.refresh(process("/usr/bin/ollama", 50e6))
        samples.append(activity.sample())
        activity.watch(OLLAMA)
    assert [part(before, after, OLLAMA) for before, after in itertools.pairwise(samples)] == [1.0, 1.0]


def test_a_server_is_forgotten_when_it_is_not_watched_any_more() -> None:
    """Nor is anything left after close."""
    host = Host()
    activity = FigureActivity(host)
    activity.watch(OLLAMA)
    activity.watch(VLLM)
    activity.forget(OLLAMA.id)
    host.refresh(microwatts=None)
    sample = activity.sample()
    assert sample is not None
    assert set(sample.by_server_ns) == {VLLM.id}
    activity.close()
    host.refresh(process("/bin/a", 1.0))
    sample = activity.sample()
    assert sample is not None
    assert dict(sample.by_server_ns) == {}


POWERS = st.lists(
    st.tuples(st.sampled_from(["/bin/ollama", "/bin/vllm", "/bin/noise"]), st.floats(0, 50e6, allow_subnormal=False)),
    max_size=6,
)


@given(st.lists(st.tuples(POWERS, st.none() | st.floats(1e6, 1e9)), min_size=1, max_size=6))
def test_parts_never_exceed_the_whole_whatever_the_figures_are(
    pages: list[tuple[list[tuple[str, float]], float | None]],
) -> None:
    """All counters only grow, and the servers' sum to no more than the total, rounding apart."""
    host = Host()
    activity = FigureActivity(host)
    servers = [OLLAMA, Server("process:vllm", "vllm", "remote", process="vllm")]
    for server in servers:
        activity.watch(server)
    total_ns = 0
    for powers, microwatts in pages:
        host.refresh(*(process(exe, value) for exe, value in powers), microwatts=microwatts)
        sample = activity.sample()
        if sample is None:
            continue
        known = [sample.by_server_ns[server.id] or 0 for server in servers]
        assert sum(known) <= sample.total_ns + len(pages) * len(servers)
        assert sample.total_ns >= total_ns
        assert sample.resolution_ns >= 0
        total_ns = sample.total_ns


def figures(server_cpus: float, known_cpus: float, newcomer_cpus: float, *, listed: bool) -> tuple[HostPower, ...]:
    """A host of two CPUs, 20 W idle and 60 W for each busy CPU; a newcomer is listed, but without power at first."""
    microwatts = 1e6 * (20 + 60 * (server_cpus + known_cpus + newcomer_cpus))
    processes = [
        ProcessPower(pid, exe, "", {}, microwatts * cpus / 2)
        for pid, exe, cpus in ((1, "ollama", server_cpus), (2, "other", known_cpus))
    ]
    if listed:
        processes.append(ProcessPower(3, "newcomer", "", {}, 0.0))
    return (HostPower(0, microwatts, tuple(processes)),)


def parts_of(*looks: tuple[HostPower, ...]) -> tuple[float | None, ActivitySample]:
    """The server's part at the last look, and that sample."""
    host = Host()
    activity = FigureActivity(host, cpus=2)
    activity.watch(OLLAMA)
    samples = []
    for (look,) in looks:
        host.refresh(*look.processes, microwatts=look.microwatts)
        samples.append(activity.sample())
    assert samples[-1] is not None
    return part(samples[-2], samples[-1], OLLAMA), samples[-1]


KNOWN = [figures(cpus, 0.1, 0.0, listed=False) for cpus in (0.0, 0.0, 0.5, 1.0, 0.0, 0.8)]


@pytest.mark.parametrize("newcomer_cpus", [0.2, 0.7, 1.0])
def test_a_newcomers_part_is_what_the_power_says_when_its_figure_is_not_known_yet(newcomer_cpus: float) -> None:
    """Without that the server's part would be 0.9, and with a busy newcomer it is half of it."""
    share, sample = parts_of(*KNOWN, figures(0.9, 0.1, newcomer_cpus, listed=True))
    assert share == pytest.approx(0.9 / (1 + newcomer_cpus), rel=1e-6)
    assert sample.total_resolution_ns >= newcomer_cpus * BUCKET_NS, "a conclusion, so all of it is in doubt"


def test_a_part_is_what_the_power_says_when_a_busy_program_has_gone_since_the_last_figures() -> None:
    """It is not listed any more, but it was at work for a part of the time."""
    (before,) = figures(0.9, 0.1, 1.0, listed=False)
    listed = ProcessPower(3, "neighbour", "", {}, (before.microwatts or 0.0) / 2)
    beside = (HostPower(0, before.microwatts, (*before.processes, listed)),)
    assert parts_of(*KNOWN, beside)[0] == pytest.approx(0.45)
    share, _ = parts_of(*KNOWN, beside, figures(0.9, 0.1, 0.6, listed=False))
    assert share == pytest.approx(0.9 / 1.6)


def test_a_newcomer_that_does_nothing_changes_nothing() -> None:
    """Most do not: a shell, a health check."""
    assert parts_of(*KNOWN, figures(0.9, 0.1, 0.0, listed=True))[0] == pytest.approx(0.9)


def test_a_newcomers_part_stays_unknown_when_power_was_never_seen_to_follow_load() -> None:
    """Nothing is made up."""
    steady = [figures(0.5, 0.1, 0.0, listed=False)] * 6
    assert parts_of(*steady, figures(0.5, 0.1, 1.0, listed=True))[0] == pytest.approx(0.5 / 0.6)

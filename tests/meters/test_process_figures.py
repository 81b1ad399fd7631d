"""Scaphandre's figures of processes, on recorded answers of the real exporter: each process once, without threads."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_llm_energy.meters.exposition import Sample, parse
from otel_llm_energy.meters.scaphandre import ScaphandreMeter
from otel_llm_energy.meters.scaphandre_processes import MEMORY, POWER, PROCESS_FAMILIES, VIRTUAL_MEMORY, processes
from otel_llm_energy.quantities import ProcessPower
from tests.meters.exporters import FIXTURES, ManualClock, exporter, recorded
from tests.meters.record_fixtures import NEIGHBOUR, SERVER


def found(body: bytes) -> tuple[ProcessPower, ...]:
    """The processes of a page."""
    return processes(parse([body], PROCESS_FAMILIES))


def of(script: str, powers: tuple[ProcessPower, ...]) -> ProcessPower:
    """The one process that runs this script."""
    (process,) = [each for each in powers if script in each.cmdline]
    return process


def figures(pid: int, microwatts: float, exe: str = "/bin/x", cmdline: str = "x", memory: int | None = 4096) -> bytes:
    """The lines of one process (or thread); without its memory where the exporter gives none."""
    labels = f'{{pid="{pid}",exe="{exe}",cmdline="{cmdline}"}}'
    lines = [f"{POWER}{labels} {microwatts}"]
    if memory is not None:
        lines += [f"{MEMORY}{labels} {memory}", f"{VIRTUAL_MEMORY}{labels} {4 * memory}"]
    return "\n".join([*lines, ""]).encode()


def test_a_process_counts_once_when_its_threads_are_listed_beside_it() -> None:
    """Recorded: a server and its three busy threads, four lines of which three repeat what the first says."""
    body = recorded("processes-2")
    assert body.count(POWER.encode() + b"{") > len(found(body)) >= 3
    server = of(SERVER, found(body))
    lines = [sample.value for sample in parse([body], {POWER}) if SERVER in sample.labels["cmdline"]]
    assert len(lines) == 4
    assert server.microwatts == max(lines)
    assert sum(lines) == pytest.approx(2 * server.microwatts, rel=0.05), "the threads repeat it"


def test_parts_agree_with_the_kernel_when_two_programs_share_the_machine() -> None:
    """Recorded: their powers stand to each other as the CPU time that the kernel gave them, to a tick of each."""
    powers = found(recorded("processes-2"))
    before, after = json.loads((FIXTURES / "processes-cpu-ns.json").read_text())[1:]
    used_ns = {name: after[name] - before[name] for name in after}
    ratio = of(SERVER, powers).microwatts / of(NEIGHBOUR, powers).microwatts
    assert ratio == pytest.approx(used_ns[SERVER] / used_ns[NEIGHBOUR], rel=2 * 10e6 / used_ns[NEIGHBOUR])


def test_a_thread_is_no_process_when_it_has_no_command_line() -> None:
    """Recorded: threads that start after Scaphandre are listed without one; program and memory tell whose they are."""
    (own,) = [each for each in found(recorded("processes-2")) if each.exe.endswith("/scaphandre")]
    assert "prometheus" in own.cmdline, "what is kept is the process, not its nameless thread"


def test_kernel_threads_stay_apart_when_none_has_memory() -> None:
    """They have no program and no memory, and are processes of their own."""
    body = figures(2, 1.0, "", "", 0) + figures(3, 2.0, "", "", 0)
    assert sorted(each.microwatts for each in found(body)) == [1.0, 2.0]


def test_workers_of_one_program_stay_apart_when_their_memory_differs() -> None:
    """Four gunicorn workers have one program and one command line, and are four processes."""
    body = b"".join(figures(pid, 10.0, memory=4096 * pid) for pid in range(10, 14))
    assert sum(each.microwatts for each in found(body)) == 40.0


def test_lines_are_grouped_by_command_line_when_the_page_gives_no_memory() -> None:
    """The most of equal lines is one process; at least half of their sum is real, whatever they are."""
    threads = figures(10, 30.0, memory=None) + figures(11, 20.0, memory=None) + figures(12, 10.0, memory=None)
    assert [each.microwatts for each in found(threads)] == [30.0]
    workers = b"".join(figures(pid, 10.0, memory=None) for pid in range(10, 14))
    assert [each.microwatts for each in found(workers)] == [20.0]


@given(st.lists(st.tuples(st.integers(1, 9), st.floats(0, 1e9), st.integers(0, 3)), max_size=12))
def test_threads_add_nothing_when_each_process_is_listed_with_all_of_its(
    listed: list[tuple[int, float, int]],
) -> None:
    """A process split into any number of threads has the sum of none but itself."""
    samples = []
    total = 0.0
    for index, (memory, microwatts, threads) in enumerate(listed):
        total += microwatts
        labels = {"exe": f"/bin/{index}", "cmdline": "x"}
        for thread in range(threads + 1):
            named = {**labels, "pid": str(100 * index + thread)}
            power = microwatts if thread == 0 else microwatts / threads
            samples += [Sample(POWER, named, power), Sample(VIRTUAL_MEMORY, named, memory)]
    assert sum(each.microwatts for each in processes(samples)) == pytest.approx(total)


def test_odd_lines_are_passed_over_when_the_page_has_them() -> None:
    """No number, a negative one, no process's number: no figure, and no error."""
    body = b'%s{exe="/bin/a"} 5\n%s{pid="x"} 5\n%s{pid="7"} -5\n' % ((POWER.encode(),) * 3)
    assert found(body) == ()


def test_one_request_serves_both_when_counters_and_processes_are_wanted() -> None:
    """A second request within 2 s would freeze the exporter."""
    with exporter(*(recorded(f"processes-{index}") for index in range(3))) as served:
        clock = ManualClock()
        meter = ScaphandreMeter(served.url, process="python3.11", clock_ns=clock)
        meter.open()
        readings = [meter.read()]
        for _ in range(2):
            clock.advance(2.2)
            readings.append(meter.read())
        assert len(served.requests) == 3
    assert all(readings)
    first, second, third = meter.host_powers()
    assert first.microwatts is None, "the first answer has no power yet"
    assert second.microwatts == 55_108_929
    assert of(SERVER, tuple(third.processes)).microwatts > 1e6
    assert third.at_ns == (readings[2][0].earliest_ns + readings[2][0].latest_ns) // 2


def test_processes_are_not_parsed_when_nobody_wants_them() -> None:
    """They are most of the page."""
    with exporter(recorded("processes-2")) as served:
        meter = ScaphandreMeter(served.url, clock_ns=ManualClock())
        meter.open()
    assert meter.host_powers() == ()

"""Processes that measured their own work and have ended: the ledger forgets them, and nothing comes of that."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from otel_llm_energy.ledger.bill import Window
from otel_llm_energy.ledger.entry import Entry
from otel_llm_energy.ledger.ledger import Ledger
from otel_llm_energy.quantities import NS_PER_SECOND, ActivitySample, Channel, Reading

_STEP_NS = NS_PER_SECOND // 2
_MOST_STEPS = 60
_FORGOTTEN_AFTER_STEPS = 12


@dataclass(frozen=True)
class _Call:
    """From step to step; what ``closed`` it may come later than its work has ended."""

    server: str
    start: int
    end: int
    closed: int


@dataclass(frozen=True)
class _Process:
    """Alive, and so sampled, from step to step."""

    name: str
    start: int
    end: int
    busy_parts: tuple[int, ...]  # of a step, in percent of a CPU


@st.composite
def _processes(draw: st.DrawFn) -> tuple[list[_Process], list[_Call]]:
    processes, calls = [], []
    for index in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, _MOST_STEPS - 4))
        end = draw(st.integers(start + 1, _MOST_STEPS))
        busy_parts = tuple(draw(st.lists(st.integers(0, 100), min_size=1, max_size=5)))
        processes.append(_Process(f"process@4:{index}", start, end, busy_parts))
        for _ in range(draw(st.integers(0, 3))):
            began = draw(st.integers(start, end - 1))
            ended = draw(st.integers(began + 1, end))
            calls.append(_Call(f"process@4:{index}", began, ended, draw(st.integers(ended, ended + 6))))
    return processes, calls


def _busy_ns(process: _Process, step: int) -> int:
    """Since it was started."""
    parts = process.busy_parts
    return sum(parts[at % len(parts)] * _STEP_NS // 100 for at in range(process.start, min(step, process.end)))


def _sample(step: int, processes: list[_Process], *, ended_too: bool) -> ActivitySample:
    sampled = {
        each.name: _busy_ns(each, step) for each in processes if each.start <= step and (ended_too or step <= each.end)
    }
    others_ns = step * _STEP_NS * 7 // 10
    total_ns = sum(_busy_ns(each, step) for each in processes) + others_ns
    return ActivitySample("cpu", step * _STEP_NS, total_ns, sampled, 4, 0, 0)


class _Machine:
    """What happens on it, step by step; ``ended_too``: also processes that have ended are sampled."""

    def __init__(self, processes: list[_Process], calls: list[_Call], *, ended_too: bool = False) -> None:
        self.ledger = Ledger(0)
        self.ledger.add_channel(Channel("package-0", "cpu", "rapl", idle_watts=5))
        self.entries: list[Entry] = []
        self.now_step = 0
        self._processes = processes
        self._calls = sorted(calls, key=lambda call: call.start)
        self._ended_too = ended_too
        self._energy_uj = 0

    def go_on(self, steps: int = _MOST_STEPS + _FORGOTTEN_AFTER_STEPS, *, sampled: bool = True) -> None:
        for step in range(self.now_step, self.now_step + steps):
            now_ns = step * _STEP_NS
            for call in self._calls[len(self.entries) :]:
                if call.start == step:
                    self.ledger.add_server(call.server)
                    self.entries.append(self.ledger.open(call.server, now_ns))
            for call, entry in zip(self._calls, self.entries, strict=False):
                if call.closed == step:
                    self.ledger.close(entry, (Window(call.start * _STEP_NS, call.end * _STEP_NS),), reported=True)
            self._energy_uj += 3_000_000 + 100_000 * (step % 7)
            if sampled:
                self.ledger.sample(_sample(step, self._processes, ended_too=self._ended_too))
            read_ns = max(now_ns - _STEP_NS // 5, 0)  # so that calls have ended of which not all is swept
            self.ledger.read(Reading("package-0", self._energy_uj, read_ns, read_ns))
            self.ledger.settle(now_ns)
        self.now_step += steps


@given(_processes())
def test_bills_are_what_they_are_when_no_server_is_ever_forgotten(
    happened: tuple[list[_Process], list[_Call]],
) -> None:
    forgetful, remembering = _Machine(*happened), _Machine(*happened, ended_too=True)
    forgetful.go_on()
    remembering.go_on()
    bills = [entry.bill for entry in forgetful.entries]
    assert bills == [entry.bill for entry in remembering.entries]
    assert None not in bills
    assert forgetful.ledger.balance() == remembering.ledger.balance()
    processes, calls = happened
    assert set(forgetful.ledger.servers) <= {each.name for each in processes if each.end == _MOST_STEPS}
    assert set(remembering.ledger.servers) == {call.server for call in calls}


def _one(name: str, end: int = 8) -> tuple[list[_Process], list[_Call]]:
    return [_Process(name, 0, end, (50,))], [_Call(name, 2, 6, 6)]


def test_process_that_has_ended_leaves_nothing_behind() -> None:
    machine = _Machine(*_one("process@4:7"))
    machine.go_on()
    (account,) = machine.ledger._accounts.values()
    assert not machine.ledger.servers
    assert not account.sweep._clocks
    assert not account.sweep._powers


def test_server_is_kept_when_it_is_sampled_still() -> None:
    """It may be called again, and what it does is not done by others."""
    machine = _Machine(*_one("127.0.0.1:8080", end=_MOST_STEPS + _FORGOTTEN_AFTER_STEPS))
    machine.go_on()
    assert set(machine.ledger.servers) == {"127.0.0.1:8080"}


def test_server_is_kept_when_nobody_ever_sampled_it() -> None:
    """Of another machine, say: what is known of it is not told again."""
    _, calls = _one("10.0.0.7:8080")
    machine = _Machine([], calls)
    machine.ledger.add_server("10.0.0.7:8080", slots=4)
    machine.go_on()
    assert machine.ledger.servers == {"10.0.0.7:8080": (4, None)}


def test_server_is_kept_until_the_next_sampler_has_said_whom_it_knows() -> None:
    """A process that reads the meters for others may have ended just then, and the next one watches the same."""
    machine = _Machine(*_one("process@4:7"))
    machine.go_on(9)
    machine.ledger.interrupt_activity()
    machine.go_on(sampled=False)
    assert set(machine.ledger.servers) == {"process@4:7"}
    machine.go_on()
    assert not machine.ledger.servers


def test_server_of_a_call_that_is_not_closed_yet_is_kept() -> None:
    (process,), _ = _one("process@4:7")
    machine = _Machine([process], [_Call("process@4:7", 2, 6, 40)])
    machine.go_on(40)
    assert set(machine.ledger.servers) == {"process@4:7"}
    machine.go_on()
    assert not machine.ledger.servers
    assert machine.entries[0].bill is not None
    assert machine.entries[0].bill.energy_nj


def test_server_is_kept_when_nobody_samples_for_a_while() -> None:
    """Readings are not waited for for ever, so that they are all shared out."""
    machine = _Machine(*_one("127.0.0.1:8080", end=10**6))
    machine.go_on(9)
    machine.go_on(100, sampled=False)
    assert set(machine.ledger.servers) == {"127.0.0.1:8080"}


def test_call_is_billed_that_began_long_after_its_server_was_seen_last() -> None:
    """It has ended, and nothing else is known; what was known of it is kept for the other's long call."""
    (process,), (call,) = _one("process@4:7")
    other = _Process("127.0.0.1:8080", 0, 10**6, (50,))
    long, late = _Call(other.name, 0, 30, 30), _Call(process.name, 15, 18, 50)
    machine = _Machine([process, other], [call, long, late])
    for _ in range(55):
        machine.go_on(1)
        if 15 <= machine.now_step < 51:
            assert process.name in machine.ledger.servers
    machine.go_on()
    assert None not in [entry.bill for entry in machine.entries]
    assert set(machine.ledger.servers) == {other.name}


def test_process_that_comes_back_is_billed_as_a_new_one_is() -> None:
    """Its number may be given to another one."""
    (process,), (call,) = _one("process@4:7")
    later = _Process("process@4:7", 42, 50, (50,))
    machine = _Machine([process, later], [call, _Call("process@4:7", 44, 48, 48)])
    machine.go_on()
    first, second = (entry.bill for entry in machine.entries)
    assert first is not None
    assert second is not None
    assert first.energy_nj
    assert (second.energy_nj, second.quality) == (first.energy_nj, first.quality)

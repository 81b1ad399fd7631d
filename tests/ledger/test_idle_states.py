"""Idle power by state: a GPU draws more when it is ready for work, and more again with a model in its memory."""

from __future__ import annotations

from otel_llm_energy.ledger.bill import Window
from otel_llm_energy.ledger.counter import Bucket
from otel_llm_energy.ledger.idle_states import IdleStates
from otel_llm_energy.ledger.ledger import Ledger
from otel_llm_energy.quantities import NS_PER_SECOND, Channel, IdlePower, Reading
from tests.ledger.test_ledger_properties import assert_conserved

GPU = Channel("gpu-0", "gpu", "nvml", resource="gpu:a")
WATTS = {"P8": 15, "P8 resident": 25, "P0 resident": 60}


def free(states: IdleStates, state: str, watts: float, *, seconds: float = 1, steady: bool = True) -> None:
    """A stretch without calls."""
    bucket = enter(states, state, watts, seconds=seconds, steady=steady)
    states.learn_power(bucket, 0, None)


def enter(states: IdleStates, state: str, watts: float = 0, *, seconds: float = 1, steady: bool = True) -> Bucket:
    """A stretch of which nothing is learned yet."""
    length_ns = round(seconds * NS_PER_SECOND)
    bucket = Bucket(0, length_ns, round(watts * length_ns), state=state, steady=steady)
    states.enter(bucket, None)
    return bucket


def test_each_state_has_an_idle_power_of_its_own() -> None:
    """What is learned in one says nothing of another."""
    states = IdleStates(GPU)
    for _ in range(3):
        for state, watts in WATTS.items():
            free(states, state, watts)
    for state, watts in WATTS.items():
        enter(states, state)
        assert states.baseline().watts == watts


def test_stretch_is_not_learned_from_when_the_state_changed_in_it() -> None:
    """Neither the half before nor the half after is known."""
    states = IdleStates(GPU)
    for _ in range(10):
        free(states, "P8", 15, seconds=0.4)
        free(states, "P0", 60, seconds=0.4, steady=False)
    assert states.baseline().watts is None


def test_highest_of_other_states_stands_in_when_a_state_was_never_idle() -> None:
    """A GPU that works from the first moment in which it is fast: what it drew before is idle power for certain."""
    states = IdleStates(GPU)
    for _ in range(3):
        free(states, "P8", 15)
        free(states, "P8 resident", 25)
    enter(states, "P0 resident")
    assert (states.baseline().watts, states.baseline().lowest_watts) == (25, 15)


def test_idle_of_an_earlier_run_is_used_by_state() -> None:
    """And this run's is told by state."""
    states = IdleStates(GPU)
    states.remember([IdlePower(15, 14, 60, "P8"), IdlePower(60, 55, 60, "P0 resident")])
    enter(states, "P0 resident")
    assert (states.baseline().watts, states.baseline().origin) == (60, "cached")
    for _ in range(6):
        free(states, "P8", 16)
    assert (states.baseline().watts, states.baseline().origin) == (16, "learned")
    assert states.learned() == [IdlePower(16, 16, 6.0, "P8")]
    states.forget()
    assert states.baseline().watts is None


def test_channel_without_states_has_one_idle_power() -> None:
    """A CPU's."""
    states = IdleStates(Channel("package-0", "cpu", "rapl", idle_watts=20))
    assert (states.baseline().watts, states.baseline().origin) == (20, "given")
    assert states.learned() == []


def test_call_is_billed_above_the_idle_power_of_the_state_in_which_it_ran() -> None:
    """6 s at P8, 6 s at P0 with the model in memory, then a call of 2 s at 200 W."""
    ledger = Ledger(0)
    ledger.add_channel(GPU)
    ledger.add_server("llm", reports=False)
    energy_uj, at_s = 0, 0

    def pass_second(state: str, watts: int) -> None:
        nonlocal energy_uj, at_s
        energy_uj, at_s = energy_uj + watts * 10**6, at_s + 1
        ledger.read(Reading("gpu-0", energy_uj, at_s * NS_PER_SECOND, at_s * NS_PER_SECOND, state))

    for _ in range(6):
        pass_second("P8", 15)
    for _ in range(6):
        pass_second("P0 resident", 60)
    entry = ledger.open("llm", at_s * NS_PER_SECOND)
    for _ in range(2):
        pass_second("P0 resident", 200)
    ledger.close(entry, (Window((at_s - 2) * NS_PER_SECOND, at_s * NS_PER_SECOND),), reported=False)
    ledger.settle((at_s + 1) * NS_PER_SECOND)
    assert entry.bill is not None
    assert entry.bill.energy_nj == 400 * 10**9
    assert entry.bill.above_idle_nj == 280 * 10**9
    assert_conserved(ledger)

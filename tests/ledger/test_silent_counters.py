"""One counter of a meter stands still, or is not to be read any more, while the others go on."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from otel_llm_energy.ledger.bill import Bill, Quality, Window
from otel_llm_energy.ledger.ledger import Ledger
from otel_llm_energy.quantities import NJ_PER_JOULE, NS_PER_SECOND, ActivitySample, Channel, Reading

_PACKAGE = Channel("package-0", "cpu", "rapl", idle_watts=20)
_MEMORY = Channel("package-0/dram", "memory", "rapl", idle_watts=2)
_WATTS = {"package-0": 80, "package-0/dram": 8}
_CALL_SECONDS = 2


class Machine:
    """One server that is always busy, with a call of two seconds now and then; a reading and a settling each second."""

    def __init__(self) -> None:
        self.ledger = Ledger(0)
        self.second = 0
        self._joules = dict.fromkeys(_WATTS, 0)
        self._frozen: set[str] = set()
        self._lost: set[str] = set()
        for channel in (_PACKAGE, _MEMORY):
            self.ledger.add_channel(channel)
        self.ledger.add_server("llm")
        self._read()

    def freeze(self, channel: Channel) -> None:
        """Its counter gives the same figure from now on."""
        self._frozen.add(channel.id)

    def lose(self, channel: Channel) -> None:
        """Its counter gives nothing from now on."""
        self._lost.add(channel.id)

    def find(self, channel: Channel) -> None:
        """A counter that was lost is read again, with all that it counted meanwhile."""
        self._lost.remove(channel.id)

    def wait(self, seconds: int) -> None:
        for _ in range(seconds):
            self.second += 1
            for name, watts in _WATTS.items():
                self._joules[name] += watts if name not in self._frozen else 0
            self._read()

    def call(self) -> Callable[[], Bill | None]:
        """A call is made; its bill, once there is one."""
        start_ns = self.second * NS_PER_SECOND
        entry = self.ledger.open("llm", start_ns)
        self.wait(_CALL_SECONDS)
        self.ledger.close(entry, (Window(start_ns, self.second * NS_PER_SECOND),), reported=True)
        self.wait(1)
        return lambda: entry.bill

    def assert_balanced(self) -> None:
        """All that was metered went somewhere, and no call is left that it waits for."""
        for balance in self.ledger.balance().values():
            assert balance.pending_nj == 0
            assert balance.metered_nj == balance.billed_nj + sum(balance.unattributed_nj.values())

    def _read(self) -> None:
        at_ns = self.second * NS_PER_SECOND
        self.ledger.sample(ActivitySample("cpu", at_ns, at_ns, {"llm": at_ns}, 2, 0, 0))
        for channel in (_PACKAGE, _MEMORY):
            if channel.id not in self._lost:
                self.ledger.read(Reading(channel.id, self._joules[channel.id] * 1_000_000, at_ns, at_ns))
        self.ledger.settle(at_ns + 1)


def joules(bill: Bill | None) -> dict[str, int]:
    """By component, rounded."""
    assert bill is not None
    return {name: round(energy_nj / NJ_PER_JOULE) for name, energy_nj in bill.components_nj.items()}


@pytest.mark.parametrize("stop", [Machine.freeze, Machine.lose])
def test_calls_are_billed_without_memory_when_its_counter_stands_still(
    stop: Callable[[Machine, Channel], None],
) -> None:
    """The first waits until that is certain, those after it do not; both say what is missing."""
    machine = Machine()
    machine.wait(3)
    before = machine.call()
    stop(machine, _MEMORY)
    first = machine.call()
    assert first() is None
    machine.wait(10)
    second = machine.call()
    assert joules(before()) == {"cpu": 160, "memory": 16}
    for bill in (first(), second()):
        assert joules(bill) == {"cpu": 160}
        assert bill is not None
        assert (bill.quality, bill.reason, bill.upper_nj) == (Quality.DEGRADED, "counter-silent", None)
    machine.assert_balanced()


def test_calls_are_whole_again_when_the_counter_goes_on() -> None:
    """What it counted meanwhile is nobody's: when it was drawn is not known."""
    machine = Machine()
    machine.wait(1)
    machine.lose(_MEMORY)
    machine.wait(12)
    machine.find(_MEMORY)
    machine.wait(2)
    bill = machine.call()()
    assert joules(bill) == {"cpu": 160, "memory": 16}
    assert bill is not None
    assert bill.quality is Quality.MEASURED
    machine.assert_balanced()


def test_calls_are_measured_when_the_counter_of_memory_has_never_moved() -> None:
    """Some machines list one that stays at zero: there is nothing to miss."""
    machine = Machine()
    machine.freeze(_MEMORY)
    machine.wait(12)
    bill = machine.call()()
    assert joules(bill) == {"cpu": 160}
    assert bill is not None
    assert bill.quality is Quality.MEASURED


def test_calls_have_no_joules_when_the_counter_of_the_package_stands_still() -> None:
    """The memory's alone would look like a very cheap call."""
    machine = Machine()
    machine.wait(3)
    machine.freeze(_PACKAGE)
    machine.wait(12)
    bill = machine.call()()
    assert bill is not None
    assert (bill.quality, bill.reason, bill.energy_nj) == (Quality.UNAVAILABLE, "counter-silent", None)
    machine.assert_balanced()


def test_what_a_silent_counter_has_left_is_accounted_for_when_its_activity_never_came() -> None:
    """Its bucket ends later than the other counter's, and would be shared out after the bill was made without it."""
    ledger = Ledger(0, max_wait_ns=30 * NS_PER_SECOND)
    for channel in (Channel("a", "cpu", "rapl", idle_watts=20), Channel("d", "memory", "rapl", idle_watts=2)):
        ledger.add_channel(channel)
    ledger.add_server("server")
    ledger.sample(ActivitySample("cpu", 0, 0, {"server": 0}, 2, 0, 0))
    entry = ledger.open("server", 0)
    ledger.close(entry, (Window(0, NS_PER_SECOND),), reported=True)
    for second in range(40):
        now_ns = second * NS_PER_SECOND
        ledger.read(Reading("a", 50_000_000 * second, now_ns, now_ns))
        if second in (0, 3):
            ledger.read(Reading("d", 5_000_000 * second, now_ns, now_ns))
        ledger.settle(now_ns)
    assert entry.bill is not None
    for balance in ledger.balance().values():
        assert balance.pending_nj == 0
        assert balance.metered_nj == balance.billed_nj + sum(balance.unattributed_nj.values())

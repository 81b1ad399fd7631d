"""Closed calls are billed in the order in which all is known that they are charged for."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from otel_llm_energy.ledger.bill import Window
from otel_llm_energy.ledger.closed_calls import ClosedCalls
from otel_llm_energy.ledger.entry import Entry


def closed(end_ns: int) -> Entry:
    entry = Entry("server", "chat", 0)
    entry.close((Window(0, end_ns),), ((0, end_ns, 0),))
    return entry


@given(st.lists(st.tuples(st.lists(st.integers(1, 9), max_size=6), st.integers(0, 10)), max_size=6))
def test_calls_are_taken_once_in_the_order_of_their_ends_when_they_are_closed_in_any(
    rounds: list[tuple[list[int], int]],
) -> None:
    """Those of equal ends in the order of their closing; none before its end was swept."""
    calls = ClosedCalls()
    waiting: list[Entry] = []
    for ends_ns, swept_ns in rounds:
        for entry in map(closed, ends_ns):
            calls.add(entry)
            waiting.append(entry)
        waiting.sort(key=lambda entry: entry.last_charged_ns)
        assert list(calls) == waiting
        due = [entry for entry in waiting if entry.last_charged_ns <= swept_ns]
        assert list(calls.take(swept_ns)) == due
        waiting = waiting[len(due) :]
    assert list(calls.take(None)) == waiting
    assert not list(calls)


def test_a_call_waits_for_the_next_time_when_it_is_closed_while_others_are_taken() -> None:
    """As where a ledger is told of a call between two bills; nothing is lost."""
    calls = ClosedCalls()
    first, second, third = closed(1), closed(3), closed(2)
    calls.add(first)
    calls.add(second)
    taken = []
    for entry in calls.take(3):
        if entry is first:
            calls.add(third)
        taken.append(entry)
    assert taken == [first, second]
    assert list(calls) == list(calls.take(3)) == [third]

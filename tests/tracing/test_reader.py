"""One meter, read into the books: what becomes of what it raises."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from otel_llm_energy.ledger.ledger import Ledger
from otel_llm_energy.meters.base import Pace
from otel_llm_energy.meters.discovery import OpenMeter
from otel_llm_energy.quantities import Channel, Reading
from otel_llm_energy.tracing.books import Books
from otel_llm_energy.tracing.clocks import SleepWatch
from otel_llm_energy.tracing.reader import MeterReader
from tests.tracing.fakes import ManualClock


class Broken:
    """A user's own meter, whose author has not thought of everything: it raises, or has nothing to say."""

    name = "own"
    pace = Pace(1.0, 0.1, at_edges=True)

    def open(self) -> Sequence[Channel]:
        return [Channel("package-0", "cpu", self.name)]

    def __init__(self, error: Exception | None) -> None:
        self._error = error

    def read(self) -> Sequence[Reading]:
        if self._error is not None:
            raise self._error
        return None  # type: ignore[return-value]

    def close(self) -> None: ...


@pytest.mark.parametrize("read", [MeterReader.read_edge, MeterReader._poll], ids=["at a call's edge", "at a poll"])
@pytest.mark.parametrize("error", [ZeroDivisionError("division by zero"), None], ids=["raises", "gives nothing"])
def test_meter_has_a_problem_that_is_told_when_its_read_goes_wrong(
    read: Callable[[MeterReader], object], error: Exception | None
) -> None:
    """Not the app's: at an edge it is read in the app's thread."""
    meter, clock = Broken(error), ManualClock()
    books = Books(Ledger(clock.now_ns), clock_ns=clock)
    opened = OpenMeter(meter, tuple(meter.open()))
    reader = MeterReader(opened, books, lambda _: None, clock, SleepWatch(lambda: 0))
    read(reader)
    assert reader.problem is not None
    assert reader.problem.reason == "meter-unreadable"
    what = repr(error) if error is not None else "TypeError(\"'NoneType' object is not iterable\")"
    assert str(reader.problem) == f"own: its read() failed: {what}."

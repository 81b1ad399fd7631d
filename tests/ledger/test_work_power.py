"""The most that is drawn at work, as far as has been seen."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_llm_energy.ledger.samples import REMEMBERED, quantile
from otel_llm_energy.ledger.work_power import WorkPower
from otel_llm_energy.quantities import NS_PER_SECOND


@given(st.lists(st.integers(0, 300), min_size=1, max_size=3 * REMEMBERED))
def test_highest_power_is_that_of_the_samples_that_are_remembered(watts: list[int]) -> None:
    """Those before them count no more, and neither does the order in which they came."""
    power = WorkPower()
    for each in watts:
        assert power.add(each * NS_PER_SECOND, NS_PER_SECOND)
    assert power.most_watts == pytest.approx(1.1 * quantile(watts[-REMEMBERED:], 0.99))

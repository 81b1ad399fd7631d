"""What a process says of who reads the meters."""

from __future__ import annotations

from pathlib import Path

import pytest

from otel_llm_energy.tracing.seat import SeatStatus


@pytest.mark.parametrize(
    ("members", "words"),
    [(0, "for itself alone so far"), (1, "for itself and 1 other process"), (3, "for itself and 3 other processes")],
)
def test_holder_says_for_whom_it_reads_when_it_is_asked(members: int, words: str) -> None:
    """In a sentence that is read once: nobody reads for "no other process too"."""
    assert str(SeatStatus("holder", Path("/run/board"), 4711, members, "")) == f"reads the meters {words} (/run/board)"

"""A server's part of one bucket: what the clocks of its calls advance by, and what bounds of these are made from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from otel_llm_energy.ledger.timeline import Step


class ServerPart(NamedTuple):
    """A server's part of one bucket.

    Attributes:
        dyn_nj: its energy above idle.
        at_work_ns: how long it was at work.
        known: its part of the activity is known.
        steps: the calls that share it.
        extremes: of these the ones with the most and the fewest calls, and weight, where there are many; else all.
        portion: of the energy above idle, 0 to 1.
        portion_of_run: the same of all buckets of its cell.
        most_watts: how far its work can raise the power; ``None`` if that is not known.
    """

    dyn_nj: int
    at_work_ns: int
    known: bool
    steps: Sequence[Step]
    extremes: Sequence[Step]
    portion: float
    portion_of_run: float
    most_watts: float | None


NO_PART: Final = ServerPart(0, 0, True, (), (), 1.0, 1.0, None)

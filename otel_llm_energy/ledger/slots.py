"""Which open calls count as at work when their windows cannot be waited for any longer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from otel_llm_energy.ledger.timeline import Timeline


class Waiting(Protocol):
    """An open call whose work window is not known yet."""

    opened_ns: int
    counted_from_ns: int | None


def admit(timeline: Timeline, waiting: Sequence[Waiting], slots: int | None, until_ns: int) -> None:
    """Freeze ``timeline`` up to ``until_ns``; open calls take free slots on the way, first come, first served.

    Args:
        timeline: of the server.
        waiting: open calls in the order in which they were opened; those admitted get ``counted_from_ns``.
        slots: how many calls the server works on at once; ``None``: as many as there are.
        until_ns: the time up to which nothing can be waited for.
    """
    queue = [call for call in waiting if call.counted_from_ns is None and call.opened_ns < until_ns]
    moments = {max(call.opened_ns, timeline.frozen_ns) for call in queue}
    if queue:
        moments.update(timeline.edge_times(until_ns))
    for moment_ns in sorted(moments):
        if moment_ns >= until_ns or not queue:
            break
        timeline.freeze(moment_ns)
        while queue and queue[0].opened_ns <= moment_ns and (slots is None or timeline.slots_soon() < slots):
            queue.pop(0).counted_from_ns = moment_ns
            timeline.add(moment_ns)
            timeline.freeze(moment_ns)
    timeline.freeze(until_ns)

"""Which meters work here, which do not and why, and the line that would mend it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import otel_llm_energy
from otel_llm_energy.cli import CommandError
from otel_llm_energy.cli.metering import (
    baseline_known,
    log_without,
    measured,
    missing,
    status_once_discovered,
    wait_until,
)
from otel_llm_energy.status import ChannelStatus, Status

_LEARNING_SECONDS = 8.0
_PERIODS_TO_MOVE = 2
_PERIODS_OLD = 3
_LEAST_OLD_SECONDS = 5.0  # on a busy machine a thread may wait for its turn


def run_doctor() -> int:
    """Read the meters for a few seconds and print what came of it; 0 if energy is measured, 1 if not.

    Raises:
        CommandError: ``OTEL_SDK_DISABLED`` is set.
    """
    told: list[str] = []
    with log_without(told):
        status = _examined()
        told += _troubles(status)
    print("\n".join(_lines(status)))
    return 0 if works(status) else 1


def _examined() -> Status:
    energy = otel_llm_energy.instrument(clients=[])
    if not energy.active:
        raise CommandError("OTEL_SDK_DISABLED=true switches everything off. Unset it.")
    try:
        channels = status_once_discovered(energy.status).channels
        started_seconds = time.monotonic()
        wait_until(lambda: baseline_known(energy.status().channels), _LEARNING_SECONDS)
        enough_seconds = _PERIODS_TO_MOVE * max((each.period_seconds or 0.0 for each in channels), default=0.0)
        wait_until(lambda: _all_move(energy.status()), started_seconds + enough_seconds - time.monotonic())
        return judged(energy.status(), time.monotonic() - started_seconds)
    finally:
        energy.uninstrument()


def works(status: Status) -> bool:
    """Whether a meter, not an estimate, can be read just now."""
    return measured(status) and not any(each.problem for each in status.channels)


def judged(status: Status, watched_seconds: float) -> Status:
    """The same, but a counter that can be read and gives no energy has a problem, too."""

    def problem(each: ChannelStatus) -> str | None:
        if each.problem or each.channel.estimated or each.period_seconds is None:
            return each.problem
        if _stands_still(each, status):
            return f"It has not moved in {watched_seconds:.0f} s"
        old_seconds = max(_PERIODS_OLD * each.period_seconds, _LEAST_OLD_SECONDS)
        return "It gives no readings any more" if (each.age_seconds or 0.0) > old_seconds else None

    return replace(status, channels=tuple(replace(each, problem=problem(each)) for each in status.channels))


def _all_move(status: Status) -> bool:
    return not any(_stands_still(each, status) for each in status.channels)


def _stands_still(each: ChannelStatus, status: Status) -> bool:
    """It has metered nothing since it is read; of memory that is not missed while others of its host move."""
    if each.balance.metered_nj or each.channel.estimated or each.period_seconds is None:
        return False
    others = [other for other in status.channels if other.channel.host == each.channel.host]
    return each.channel.component != "memory" or not any(other.balance.metered_nj for other in others)


def _troubles(status: Status) -> Iterator[str]:
    """What the rows say of what is wrong."""
    yield from (one.message for one in missing(status))
    yield from (each.problem for each in status.channels if each.problem)
    if status.board is not None and status.board.message:
        yield status.board.message


def _lines(status: Status) -> Iterator[str]:
    for each in status.channels:
        yield _channel(each)
    for one in missing(status):
        yield f"no     {one.name}: {one.reason}. {one.message}"
        if one.mend:
            yield f"       mend it: {one.mend}"
    if status.board is not None:
        sign = "TROUBLE" if status.board.message else "board "
        yield f"{sign} this process {status.board}"
    yield ""
    yield _verdict(status)


def _channel(each: ChannelStatus) -> str:
    channel = each.channel
    sign = "TROUBLE" if each.problem else "guess " if channel.estimated else "ok    "
    trouble = f". {each.problem}" if each.problem else ""
    kind = ", an estimate from CPU time, no measurement" if channel.estimated else ""
    return f"{sign} {channel.meter}: {channel.id} ({channel.component}), {each.idle}, {each.age}{kind}{trouble}"


def _verdict(status: Status) -> str:
    if works(status):
        return "LLM calls on this machine get measured joules."
    if measured(status):
        return (
            "A meter is there, but gives no energy just now. See that what feeds it runs, or name another one by"
            " OTEL_LLM_ENERGY_METERS."
        )
    if status.channels:
        return "Nothing is measured here: LLM calls on this machine get estimates that say so."
    return "Nothing is measured here: LLM calls on this machine get no joules, and say so."

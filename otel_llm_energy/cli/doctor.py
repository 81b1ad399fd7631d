"""Which meters work here, which do not and why, and the line that would mend it."""

from __future__ import annotations

from collections.abc import Iterator

import otel_llm_energy
from otel_llm_energy.cli import CommandError
from otel_llm_energy.cli.metering import baseline_known, measured, missing, status_once_discovered, wait_until
from otel_llm_energy.runtime import ChannelStatus, Status

_LEARNING_SECONDS = 8.0


def run_doctor() -> int:
    """Read the meters for a few seconds and print what came of it; 0 if energy is measured, 1 if not.

    Raises:
        CommandError: ``OTEL_SDK_DISABLED`` is set.
    """
    energy = otel_llm_energy.instrument(clients=[])
    if not energy.active:
        raise CommandError("OTEL_SDK_DISABLED=true switches everything off. Unset it.")
    try:
        status_once_discovered(energy.status)
        wait_until(lambda: baseline_known(energy.status().channels), _LEARNING_SECONDS)
        status = energy.status()
    finally:
        energy.uninstrument()
    print("\n".join(_lines(status)))
    return 0 if works(status) else 1


def works(status: Status) -> bool:
    """Whether a meter, not an estimate, can be read just now."""
    return measured(status) and not any(each.problem for each in status.channels)


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
    age = "no reading yet" if each.age_seconds is None else f"read {each.age_seconds:.1f} s ago"
    trouble = f". {each.problem}" if each.problem else ""
    kind = ", an estimate from CPU time, no measurement" if channel.estimated else ""
    return f"{sign} {channel.meter}: {channel.id} ({channel.component}), {each.idle}, {age}{kind}{trouble}"


def _verdict(status: Status) -> str:
    if works(status):
        return "LLM calls on this machine get measured joules."
    if measured(status):
        return "A meter is there, but cannot be read just now."
    if status.channels:
        return "Nothing is measured here: LLM calls on this machine get estimates that say so."
    return "Nothing is measured here: LLM calls on this machine get no joules, and say so."

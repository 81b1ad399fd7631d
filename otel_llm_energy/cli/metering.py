"""What the commands ask of a running instrumentation: are there meters, is their idle power known."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from logging.handlers import BufferingHandler

from otel_llm_energy.cli import CommandError
from otel_llm_energy.cli.progress import count_up
from otel_llm_energy.instrument import Instrumentation
from otel_llm_energy.meters.discovery import LeftOut
from otel_llm_energy.status import ChannelStatus, Status

MOST_BASELINE_SECONDS = 15.0
_LEAST_BASELINE_SECONDS = 4.0
_LOOK_SECONDS = 0.1
_DISCOVERY_SECONDS = 20.0


def wait_until(done: Callable[[], bool], timeout_seconds: float) -> bool:
    """Look again and again until ``done()``; False if the timeout passed first."""
    deadline_seconds = time.monotonic() + timeout_seconds
    while not done():
        if time.monotonic() > deadline_seconds:
            return False
        time.sleep(_LOOK_SECONDS)
    return True


def status_once_discovered(status: Callable[[], Status]) -> Status:
    """The status as soon as the meters have been looked for; that takes a moment, in the background."""
    wait_until(lambda: status().discovered, _DISCOVERY_SECONDS)
    return status()


def measured(status: Status) -> bool:
    """Whether energy is measured, not only estimated."""
    return any(not each.channel.estimated for each in status.channels)


def baseline_known(channels: Sequence[ChannelStatus]) -> bool:
    """Whether the idle power of every channel is known."""
    return bool(channels) and all(each.idle_watts is not None for each in channels)


def learn_baseline(energy: Instrumentation) -> bool:
    """Show the seconds while the meters learn their idle power; whether it is known then."""
    return count_up(
        "Idle baseline",
        lambda: baseline_known(energy.status().channels),
        at_least_seconds=_LEAST_BASELINE_SECONDS,
        at_most_seconds=MOST_BASELINE_SECONDS,
    )


def missing(status: Status) -> Sequence[LeftOut]:
    """The meters that could not be had; not those that another meter made unnecessary."""
    return [each for each in status.left_out if each.reason != "overlap"]


def insist_on_the_named_meter(status: Status) -> None:
    """Who names a meter wants that one, not an estimate. Raises `CommandError` if it cannot be read."""
    if not status.channels:
        raise CommandError("; ".join(one.message for one in missing(status)) or "The meter does not answer.")


@contextmanager
def log_without(told: Sequence[str]) -> Iterator[None]:
    """Have what is logged within come at its end, but for what says a sentence that is ``told`` by then."""
    logger, keeper = logging.getLogger("otel_llm_energy"), BufferingHandler(sys.maxsize)
    logger.addHandler(keeper)
    propagates, logger.propagate = logger.propagate, False
    try:
        yield
    finally:
        logger.propagate = propagates
        logger.removeHandler(keeper)
        for record in keeper.buffer:
            if not any(sentence in record.getMessage() for sentence in told):
                logging.getLogger(record.name).handle(record)

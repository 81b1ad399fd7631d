"""Measure the idle power of this machine on purpose, while nothing calls."""

from __future__ import annotations

import time
from collections.abc import Callable

from otel_llm_energy.ledger.idle import Baseline
from otel_llm_energy.meters.base import MeterError
from otel_llm_energy.quantities import NS_PER_SECOND
from otel_llm_energy.tracing.station import Station

_LOOK_SECONDS = 0.05
_DISCOVERY_SECONDS = 20.0
_PERIODS = 3


def measure_idle(
    station: Station,
    settle: Callable[[], None],
    seconds: float,
    *,
    clock_ns: Callable[[], int] = time.monotonic_ns,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, float]:
    """Learn the idle power of a station's channels from the next ``seconds``, keep it and return watts by channel.

    Args:
        station: has been started.
        settle: enters new readings into its books.
        seconds: how long; then, if need be, up to three of the meter's periods until there are readings enough.
        clock_ns, sleep: the monotonic clock, and how to wait on it.

    Raises:
        MeterError: no meter that measures, a call was open, or other programs were too busy to tell idle from load.
    """

    def wait_until(done: Callable[[], bool], longest_seconds: float) -> None:
        end_ns = clock_ns() + int(longest_seconds * NS_PER_SECOND)
        while not done() and clock_ns() < end_ns:
            sleep(_LOOK_SECONDS)

    wait_until(lambda: station.discovered, _DISCOVERY_SECONDS)
    wanted = station.learning_channels()
    if not wanted or station.holder_state is not None:
        raise _no_meter(station)
    calls = _calls_so_far(station)
    station.books.forget_idle()
    wait_until(lambda: station.books.opened != calls, seconds)

    def known() -> bool:
        settle()
        baselines = station.books.baselines()
        return all(name in baselines and baselines[name].watts is not None for name in wanted)

    wait_until(lambda: known() or station.books.opened != calls, _PERIODS * max(station.idle_period_seconds, 1.0))
    if _calls_so_far(station) != calls:
        raise MeterError("calls-open", "A call was started while idle power was measured. Try again when none is.")
    baselines = station.books.baselines()
    for name in wanted:
        _insist_on_idle(name, baselines.get(name), station.problem)
    station.keep_idle(least_seconds=0.0)
    return {name: baselines[name].watts or 0.0 for name in wanted}


def _calls_so_far(station: Station) -> int:
    if station.books.busy:
        raise MeterError("calls-open", "Calls are open: idle power cannot be measured. Wait until they have ended.")
    return station.books.opened


def _no_meter(station: Station) -> MeterError:
    if station.holder_state is not None:
        return MeterError(
            "board-member",
            "Idle power cannot be measured: another process of this host reads the meters. Measure there, or set"
            " OTEL_LLM_ENERGY_BOARD=off here and let no other process run.",
        )
    if station.left_out and not station.meters:
        first = station.left_out[0]
        return MeterError(first.reason, f"Idle power cannot be measured: {first.message}")
    return MeterError(
        "no-meter",
        "Idle power cannot be measured: no meter is read whose idle power is not known already (from idle_watts, or"
        " because it is an estimate).",
    )


def _insist_on_idle(channel_id: str, baseline: Baseline | None, problem: MeterError | None) -> None:
    if baseline is None or baseline.watts is None:
        raise problem or MeterError("no-reading", f"{channel_id}: too few readings came in. Measure for longer.")
    if baseline.origin == "under-load":
        raise MeterError(
            "idle-under-load",
            f"{channel_id} drew {baseline.watts * (1 + baseline.drift):.4g} W, but other programs were busy all the"
            " time, and their part is not known. Stop them, or give idle_watts.",
        )

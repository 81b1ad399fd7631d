"""Scaphandre through the file that ``scaphandre json --file`` writes (checked against 1.0.0 and 1.0.2).

Finer than its Prometheus exporter: a record every 250 ms or more. A record has no counter, but the mean power since the
record before, and its time: power x time is the energy of that step (the rectangle to the left, not a trapezoid).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from otel_llm_energy.meters.base import MeterError, Pace, as_scale_error
from otel_llm_energy.meters.powercap import RAPL_SCALE_ERROR
from otel_llm_energy.meters.tail import RecordFile
from otel_llm_energy.quantities import NJ_PER_UJ, NS_PER_SECOND, Channel, Reading

_CHANNEL_ID = "host"
_TIME_ERROR_NS = 2_000_000  # between reading the counters and noting the time
_CLOCK_STEP_NS = 20_000_000
_STALE_NS = 10 * NS_PER_SECOND
_START_UJ = 1_000_000_000


class ScaphandreStream:
    """Follows the JSON file of a Scaphandre that the user runs: one channel, the host (CPU packages and their memory).

    ``scaphandre json --step 0 --step-nano 500000000 --file PATH``. The file may be replaced, cut off, or begun again;
    the energy between is then a gap. Its figures of processes are not used: the list breaks off after the top
    few, threads among them, and nothing in it tells threads from processes.

    Args:
        path: of the file.
        scale_error: relative error of the joules, 0.05 for 5 %.
        clock_ns: the monotonic clock.
        unix_clock_ns: the wall clock, since 1970, as the records have it.
    """

    name = "scaphandre-stream"
    pace = Pace(idle_seconds=1.0, open_seconds=0.25)

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        scale_error: float = RAPL_SCALE_ERROR,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        unix_clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.path = Path(path)
        self._scale_error = as_scale_error(scale_error)
        self._clock_ns = clock_ns
        self._unix_clock_ns = unix_clock_ns
        self._file: RecordFile | None = None
        self._forget()

    def _forget(self) -> None:
        self._first_readings: list[Reading] = []
        self._energy_nj = _START_UJ * NJ_PER_UJ
        self._unix_ns: int | None = None  # of the last record
        self._at_ns: int | None = None  # the same on the monotonic clock
        self._ahead_ns = self._unix_clock_ns() - self._clock_ns()  # how far the wall clock is ahead

    def __repr__(self) -> str:
        return f"ScaphandreStream(path={str(self.path)!r})"

    def open(self) -> Sequence[Channel]:
        """Find the newest record, from which on energy counts.

        Raises:
            MeterError: ``meter-garbage`` (no record), ``meter-stale`` (an old one), or see `RecordFile`.
        """
        self.close()
        self._file = RecordFile(self.path)
        try:
            self._first_readings = self._take(self._file.read()[-1:])
            self._check_age()
        except MeterError:
            self.close()
            raise
        channel = Channel(id=_CHANNEL_ID, component="host", meter=self.name, scale_error=self._scale_error)
        return [channel]

    def read(self) -> Sequence[Reading]:
        """The readings of all records that are new, oldest first.

        Raises:
            MeterError: ``meter-closed``, ``meter-stale`` (no record for 10 s), or see `RecordFile`.
        """
        if self._file is None:
            raise MeterError("meter-closed", f"{self!r}: the meter is not open.")
        first, self._first_readings = self._first_readings, []
        if self._clock_stepped():
            self._unix_ns = None
        readings = first + self._take(self._file.read())
        if not readings:
            self._check_age()
        return readings

    def close(self) -> None:
        """Give back the file."""
        file, self._file = self._file, None
        if file is not None:
            file.close()
        self._forget()

    def _clock_stepped(self) -> bool:
        ahead_ns = self._unix_clock_ns() - self._clock_ns()
        stepped = abs(ahead_ns - self._ahead_ns) > _CLOCK_STEP_NS
        self._ahead_ns = ahead_ns
        return stepped

    def _take(self, records: Iterable[Mapping[str, Any] | None]) -> list[Reading]:
        readings: list[Reading] = []
        for record in records:
            unix_s = _number(_host(record).get("timestamp"))
            if record is None or unix_s is None:
                self._unix_ns = None
                continue
            reading = self._step(record, int(unix_s * NS_PER_SECOND))
            if reading is not None:
                readings.append(reading)
        return readings

    def _step(self, record: Mapping[str, Any], unix_ns: int) -> Reading | None:
        """The reading at the end of the step that the record is about; ``None`` if it cannot be dated.

        What seems to be no later than the last record, or is yet to come, was dated before the wall clock was set.
        """
        before_ns, self._unix_ns = self._unix_ns, unix_ns
        at_ns = unix_ns - self._ahead_ns
        is_old = self._at_ns is not None and at_ns <= self._at_ns
        if is_old or at_ns > self._clock_ns() + _CLOCK_STEP_NS:
            self._unix_ns = None
            return None
        self._at_ns = at_ns
        microwatts = _number(_host(record).get("consumption"))
        # The first record of a Scaphandre, and one in which a counter wraps, say 0 for "no figure".
        if before_ns is None or not microwatts:
            self._energy_nj -= NJ_PER_UJ  # a counter that steps back tells the ledger that energy is missing
        else:
            self._energy_nj += int(microwatts * (unix_ns - before_ns)) // 1_000_000  # 1 uW x ns is 1e-6 nJ
        return Reading(_CHANNEL_ID, self._energy_nj // NJ_PER_UJ, at_ns - _TIME_ERROR_NS, at_ns + _TIME_ERROR_NS)

    def _check_age(self) -> None:
        if self._at_ns is None:
            raise MeterError("meter-garbage", f"{self.path}: no whole record of `scaphandre json` in this file.")
        age_ns = self._clock_ns() - self._at_ns
        if age_ns > _STALE_NS:
            raise MeterError(
                "meter-stale",
                f"{self.path}: the newest record is {age_ns / NS_PER_SECOND:.0f} s old. Is Scaphandre still running?",
            )


def _host(record: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """What a record says of the host; empty if it says nothing."""
    host = None if record is None else record.get("host")
    return host if isinstance(host, Mapping) else {}


def _number(value: Any) -> float | None:
    """A finite number that is not negative, also as text; else ``None``."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if 0 <= number < float("inf") else None

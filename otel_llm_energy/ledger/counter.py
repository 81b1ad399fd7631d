"""From the readings of one counter to buckets of energy: wraps, resets, repeats and jumps."""

from __future__ import annotations

from typing import NamedTuple

from otel_llm_energy.quantities import NJ_PER_UJ, NS_PER_SECOND, Channel, Reading

# No single socket, memory domain or GPU draws more; only used where the hardware's limit is unknown.
_PLAUSIBLE_WATTS = 2_000.0
# A short bucket may hold the energy of a longer one: counters are refreshed in steps (NVML: 100 ms).
_REFRESH_ALLOWANCE_NS = 150_000_000
_FROZEN_AFTER_NS = 10 * NS_PER_SECOND


class Bucket(NamedTuple):
    """The energy between two readings of one channel, or a gap where it is not known.

    ``start_error_ns`` and ``end_error_ns`` say how far the counter's time may lie to either side, ``state`` the
    hardware's state at the end; not ``steady``: it was another at the start.
    """

    start_ns: int
    end_ns: int
    energy_nj: int
    start_error_ns: int = 0
    end_error_ns: int = 0
    gap: str | None = None
    state: str = ""
    steady: bool = True

    @property
    def length_ns(self) -> int:
        return self.end_ns - self.start_ns


class Counter:
    """Turns raw cumulative readings of one channel into buckets.

    Attributes:
        heard_ns: when it last said something new; ``None`` before the first reading.
        has_moved: it has counted something since it was opened.
    """

    def __init__(self, channel: Channel) -> None:
        self._range_uj = channel.range_uj
        self._plausible_watts = 2 * channel.limit_watts if channel.limit_watts else _PLAUSIBLE_WATTS
        self._last: Reading | None = None
        self._gap: str | None = None
        self._silent = False
        self.heard_ns: int | None = None
        self.has_moved = False

    @property
    def last(self) -> Reading | None:
        """The reading that the next bucket begins with; ``None`` if that is a gap."""
        return None if self._gap is not None else self._last

    def interrupt(self, reason: str) -> None:
        """What comes next cannot be joined to what was: the next bucket is a gap."""
        self._gap = reason

    def silence(self) -> None:
        """Nobody waits for it any more: repeats are not looked at, and what comes after them is joined to nothing."""
        self._silent = True

    def read(self, reading: Reading) -> Bucket | None:
        """Take the next reading; the bucket that it closes, if it closes one."""
        last = self._last
        if last is None:
            self._last = reading
            self.heard_ns = _instant(reading)
            return None
        if self._silent:
            if reading.energy_uj == last.energy_uj:
                return None
            self._silent, self._gap = False, "silent"
        start_ns, end_ns = _instant(last), _instant(reading)
        if end_ns <= start_ns or _overtaken(last, reading):
            return None
        if reading.energy_uj == last.energy_uj and self._gap is None and end_ns - start_ns < _FROZEN_AFTER_NS:
            return None
        energy_uj, gap = self._difference(last, reading, end_ns - start_ns)
        self._last, self._gap = reading, None
        if gap != "frozen":
            self.heard_ns = end_ns
        self.has_moved = self.has_moved or energy_uj > 0
        errors_ns, steady = (_error(last), _error(reading)), last.state == reading.state
        return Bucket(start_ns, end_ns, energy_uj * NJ_PER_UJ, *errors_ns, gap, reading.state, steady)

    def _difference(self, last: Reading, reading: Reading, length_ns: int) -> tuple[int, str | None]:
        if self._gap is not None:
            return 0, self._gap
        if reading.energy_uj == last.energy_uj:
            return 0, "frozen"
        energy_uj = reading.energy_uj - last.energy_uj
        if energy_uj < 0:
            if self._range_uj is None:
                return 0, "reset"
            energy_uj += self._range_uj
            if energy_uj < 0 or energy_uj > self._most_uj(length_ns):
                return 0, "reset"
        elif energy_uj > self._most_uj(length_ns):
            return 0, "jump"
        if self._range_uj is not None and self._most_uj(length_ns) >= self._range_uj + self._most_uj(0):
            return 0, "wrapped-unseen"
        return energy_uj, None

    def _most_uj(self, length_ns: int) -> float:
        return self._plausible_watts * (length_ns + _REFRESH_ALLOWANCE_NS) / 1_000


def _instant(reading: Reading) -> int:
    return (reading.earliest_ns + reading.latest_ns) // 2


def _error(reading: Reading) -> int:
    return (reading.latest_ns - reading.earliest_ns + 1) // 2


def _overtaken(last: Reading, reading: Reading) -> bool:
    """Two threads read at once and the later stamp belongs to the earlier value: not a wrap."""
    return reading.energy_uj < last.energy_uj and reading.earliest_ns <= last.latest_ns

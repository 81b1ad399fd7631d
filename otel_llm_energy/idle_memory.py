"""Idle power that earlier runs learned: a small file in the user's cache folder, so that a first call has it at once.

A figure holds for the machine, kernel, frequency governor, meter and channel that it was learned with, and for
`MAX_AGE_SECONDS`. What cannot be used is learned anew; nothing here raises.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import math
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from otel_llm_energy.machine import cpu_model
from otel_llm_energy.meters.base import says_what_it_reads
from otel_llm_energy.meters.discovery import OpenMeter
from otel_llm_energy.quantities import Channel, IdlePower

MAX_AGE_SECONDS = 7 * 24 * 3600.0
"""Older figures are learned anew: firmware, devices and room temperature change. Chosen, not measured."""

_FORMAT = 1
_MOST_BYTES = 1 << 20
_MOST_CHANNELS = 256
_MOST_WATTS = 100_000.0
# A figure that is in the file already is written again only if it moved, or is old.
_MOVED = 0.01
_REWRITE_AFTER_SECONDS = 3600.0

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class KeptIdle:
    """Idle power of one channel as it stands in the file.

    Attributes:
        idle: the figure.
        learned_unix_s: when it was learned, s since 1970 (wall clock).
    """

    idle: IdlePower
    learned_unix_s: float


class IdleMemory:
    """What is kept of the idle power of one machine's channels from run to run. Not thread-safe.

    Args:
        path: the file; ``None`` to keep nothing. It is replaced as a whole, so several processes may share it.
        facts: what must be the same for a figure to hold; see `machine_facts`.
        unix_clock_s: the wall clock, since 1970.
    """

    def __init__(
        self, path: Path | None, facts: Mapping[str, str], *, unix_clock_s: Callable[[], float] = time.time
    ) -> None:
        self.path = path
        self._facts = dict(facts)
        self._unix_clock_s = unix_clock_s
        self._keys: dict[str, str] = {}
        self._kept: dict[str, dict[str, KeptIdle]] = {}  # by channel, then by key and state
        self._said = False

    def recall(self, meters: Sequence[OpenMeter]) -> dict[str, list[IdlePower]]:
        """What is known of these meters' channels, by state; from now on `keep` takes figures for them.

        A meter that does not say in its repr what it reads could read something else the next time.
        """
        known = [meter for meter in meters if says_what_it_reads(meter.meter)]
        self._keys = {channel.id: _key(meter, channel) for meter in known for channel in learning_channels(meter)}
        kept = self._read() if self._keys else {}
        self._kept = {
            name: {each: kept[each] for each in kept if each == _in_state(key, kept[each].idle.state)}
            for name, key in self._keys.items()
        }
        return {name: [each.idle for each in figures.values()] for name, figures in self._kept.items() if figures}

    def age_seconds(self, channel_id: str) -> float | None:
        """Age of the newest figure that is kept of a channel, s; ``None`` if there is none."""
        kept = self._kept.get(channel_id, {}).copy()  # `keep` may be at it in another thread
        newest_s = max((each.learned_unix_s for each in kept.values()), default=None)
        return None if newest_s is None else max(self._unix_clock_s() - newest_s, 0.0)

    def keep(self, learned: Mapping[str, Sequence[IdlePower]]) -> None:
        """Write what this run has learned, as far as it is news."""
        now_s = self._unix_clock_s()
        news: dict[str, KeptIdle] = {}
        for name, key in self._keys.items():
            known = self._kept.setdefault(name, {})
            fresh = {_in_state(key, idle.state): KeptIdle(idle, now_s) for idle in learned.get(name, ())}
            fresh = {each: new for each, new in fresh.items() if _is_news(new, known.get(each))}
            news.update(fresh)
            known.update(fresh)
        if self.path is not None and news:
            self._write({**self._read(), **news})

    def _read(self) -> dict[str, KeptIdle]:
        """The figures in the file that hold now, by key."""
        try:
            text = _own_text(self.path) if self.path is not None else None
            return {} if text is None else dict(self._valid(json.loads(text)))
        except (OSError, ValueError, OverflowError, RecursionError) as error:
            self._say("%s cannot be used, and idle power is learned anew: %s", self.path, error)
            return {}

    def _valid(self, document: Any) -> Iterator[tuple[str, KeptIdle]]:
        if not isinstance(document, dict) or document.get("format") != _FORMAT:
            raise ValueError(f"it is not of format {_FORMAT}.")
        changed = [name for name, value in self._facts.items() if _part(document, "machine").get(name) != value]
        if changed:
            raise ValueError(f"it was written where this was another: {', '.join(changed)}.")
        oldest_s, now_s = self._unix_clock_s() - MAX_AGE_SECONDS, self._unix_clock_s()
        for key, entry in _part(document, "channels").items():
            kept = _kept(entry)
            if oldest_s <= kept.learned_unix_s <= now_s:
                yield key, kept

    def _write(self, figures: Mapping[str, KeptIdle]) -> None:
        newest = sorted(figures, key=lambda key: -figures[key].learned_unix_s)[:_MOST_CHANNELS]
        channels = {key: {**asdict(figures[key].idle), "learned_unix_s": figures[key].learned_unix_s} for key in newest}
        document = {"format": _FORMAT, "machine": self._facts, "channels": channels}
        try:
            if self.path is not None:
                _replace(self.path, json.dumps(document, indent=1))
        except OSError as error:
            self._say("Idle power cannot be kept for the next run in %s: %s", self.path, error)

    def _say(self, message: str, *args: object) -> None:
        """Once: the next minute's attempt would say the same."""
        if not self._said:
            self._said = True
            _logger.info(message, *args)


def _is_news(new: KeptIdle, known: KeptIdle | None) -> bool:
    if known is None or new.learned_unix_s - known.learned_unix_s > _REWRITE_AFTER_SECONDS:
        return True
    return abs(new.idle.watts - known.idle.watts) > _MOVED * known.idle.watts


def default_path(facts: Mapping[str, str]) -> Path | None:
    """The file of this machine below ``$XDG_CACHE_HOME`` or ``~/.cache``; ``None`` where there is no such folder.

    A home that several machines share has a file for each of them.
    """
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        folder = Path(base).expanduser() / "otel-llm-energy" / "idle"
    except RuntimeError:
        return None
    which = "|".join(facts.get(name, "") for name in ("machine", "board", "cpu"))
    return folder / f"{hashlib.sha256(which.encode()).hexdigest()[:16]}.json"


def machine_facts() -> dict[str, str]:
    """What a figure of idle power depends on and what is cheap to know; an empty text where it is not.

    The machine's id is not to be told to others (machine-id(5)), so only a hash of it is kept.
    """
    machine_id = _line(Path("/etc/machine-id"))
    hashed = hashlib.sha256(b"otel-llm-energy " + machine_id.encode()).hexdigest()[:16] if machine_id else ""
    return {
        "machine": hashed,
        "board": _line(Path("/sys/class/dmi/id/product_name")),
        "cpu": f"{os.cpu_count()} x {cpu_model()}",
        "kernel": platform.release(),
        "governor": _line(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
    }


def learning_channels(meter: OpenMeter) -> list[Channel]:
    """Those of a meter's channels whose idle power is learned: it is neither given nor a power model's."""
    return [channel for channel in meter.channels if channel.idle_watts is None and not channel.estimated]


def _key(meter: OpenMeter, channel: Channel) -> str:
    """Names a channel and where it is read: the same counter's name in another tree is another counter.

    Only a hash says where, since a meter may show an address with a password.
    """
    where = f"{meter.meter!r} {channel.resource}"
    return f"{meter.meter.name} {channel.id} {hashlib.sha256(where.encode()).hexdigest()[:12]}"


def _in_state(key: str, state: str) -> str:
    return f"{key} {state}" if state else key


def _part(document: dict[str, Any], name: str) -> dict[str, Any]:
    part = document.get(name)
    if not isinstance(part, dict):
        raise ValueError(f"{name!r} is missing.")
    return part


def _kept(entry: Any) -> KeptIdle:
    names = ("watts", "lowest_watts", "seconds", "learned_unix_s")
    values = [entry.get(name) if isinstance(entry, dict) else None for name in names]
    numbers = [float(value) for value in values if isinstance(value, (int, float)) and math.isfinite(value)]
    if len(numbers) != len(names) or not 0 <= numbers[1] <= numbers[0] <= _MOST_WATTS:
        raise ValueError(f"{entry!r} is no idle power.")
    watts, lowest_watts, seconds, learned_unix_s = numbers
    return KeptIdle(IdlePower(watts, lowest_watts, seconds, str(entry.get("state", ""))), learned_unix_s)


def _own_text(path: Path) -> str | None:
    """What the file says; ``None`` if there is none. Somebody else's file could say anything."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    try:
        file = os.fdopen(descriptor, "rb")
    except OSError:  # a folder
        os.close(descriptor)
        raise
    with file:
        status = os.fstat(descriptor)
        if status.st_uid != os.geteuid():
            raise ValueError("it belongs to another user.")
        data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise ValueError(f"it is longer than {_MOST_BYTES} bytes.")
    return data.decode()


def _replace(path: Path, text: str) -> None:
    """Put a new file in the place of the old one, readable by the user alone; readers see one or the other.

    Only in the place of a file: root would have put it in that of /dev/null, which many name where they want none.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EEXIST, "what is there is no file")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # its mode is 0600
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _line(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""

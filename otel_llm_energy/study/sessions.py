"""What the meters counted while a study was collected, calls or no calls."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from otel_llm_energy.instrument import Instrumentation
from otel_llm_energy.quantities import NJ_PER_JOULE
from otel_llm_energy.status import ChannelStatus
from otel_llm_energy.study import StudyError
from otel_llm_energy.study.dataset import SESSIONS
from otel_llm_energy.study.journal import replace_file

_REWRITTEN_SECONDS: Final = 10.0


class Session:
    """What the meters counted in one run, rewritten now and then so that it outlives a kill."""

    def __init__(self, folder: Path, energy: Instrumentation) -> None:
        self._started_unix_s = time.time()
        self._path = folder / f"{self._started_unix_s:.0f}-{os.getpid()}.json"
        self._energy = energy
        self._counted: dict[tuple[str, str, str], Mapping[str, object]] = {}
        self._written_seconds = time.monotonic()
        folder.mkdir(exist_ok=True)

    def write_now_and_then(self) -> None:
        if time.monotonic() - self._written_seconds >= _REWRITTEN_SECONDS:
            self._written_seconds = time.monotonic()
            self.write()

    def write(self, *, ended: bool = False) -> None:
        now_unix_s = time.time()
        status = self._energy.status()
        # Those that another process reads for this one are its to count. Once counted here, they stay so.
        self._counted |= {
            (each.channel.host, each.channel.meter, each.channel.id): _counter(each)
            for each in status.channels
            if each.balance.metered_nj
        }
        content = {
            "started_at": self._started_unix_s,
            "seconds": now_unix_s - self._started_unix_s,
            "ended": ended,
            "meters": list(self._counted.values()),
            "left_out": [{"name": one.name, "reason": one.reason, "message": one.message} for one in status.left_out],
        }
        replace_file(self._path, json.dumps(content, indent=1).encode())


def _counter(each: ChannelStatus) -> Mapping[str, object]:
    return {
        "host": each.channel.host,
        "meter": each.channel.meter,
        "channel": each.channel.id,
        "component": each.channel.component,
        "estimated": each.channel.estimated,
        "idle_watts": each.idle_watts,
        "metered_joules": each.balance.metered_nj / NJ_PER_JOULE,
        "attributed_joules": each.balance.billed_nj / NJ_PER_JOULE,
        "unattributed_joules": {
            reason: energy_nj / NJ_PER_JOULE for reason, energy_nj in each.balance.unattributed_nj.items()
        },
    }


@dataclass(frozen=True, slots=True)
class Metered:
    """One counter over all runs of a study.

    ``metered_joules = attributed_joules + sum(unattributed_joules)``, but for calls that had no bill yet when a run was
    killed.

    Attributes:
        host: whose counter it is, where that is not the machine that collected; else empty.
        idle_watts: as last learned; ``None`` if never.
        seconds: for which it was read.
    """

    host: str
    meter: str
    channel: str
    idle_watts: float | None
    seconds: float
    metered_joules: float
    attributed_joules: float
    unattributed_joules: dict[str, float]

    @property
    def label(self) -> str:
        """Its name in a table."""
        name = self.channel if self.meter == self.channel else f"{self.meter} {self.channel}"
        return f"{name} of {self.host}" if self.host else name


def metered(folders: Sequence[Path]) -> list[Metered]:
    """The counters of all runs in these folders, those of one name and host together.

    Raises:
        StudyError: a session's file is no such file.
    """
    found: dict[tuple[str, str, str], Metered] = {}
    for path in sorted(path for folder in folders for path in (folder / SESSIONS).glob("*.json")):
        try:
            session = json.loads(path.read_text(encoding="utf-8"))
            for each in session["meters"]:
                key = (each.get("host", ""), each["meter"], each["channel"])  # earlier versions wrote no host
                found[key] = _added(found.get(key), each, session["seconds"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StudyError(f"{path}: not a session of a study: {error!r}. Remove it.") from error
    return list(found.values())


def _added(before: Metered | None, each: dict[str, object], seconds: float) -> Metered:
    unattributed_joules = Counter[str]() if before is None else Counter(before.unattributed_joules)
    unattributed_joules.update(each["unattributed_joules"])  # type: ignore[call-overload]
    idle_watts = each["idle_watts"]
    return Metered(
        str(each.get("host", "")),
        str(each["meter"]),
        str(each["channel"]),
        float(idle_watts) if isinstance(idle_watts, (int, float)) else (before.idle_watts if before else None),
        seconds + (before.seconds if before else 0.0),
        float(each["metered_joules"]) + (before.metered_joules if before else 0.0),  # type: ignore[arg-type]
        float(each["attributed_joules"]) + (before.attributed_joules if before else 0.0),  # type: ignore[arg-type]
        dict(unattributed_joules),
    )

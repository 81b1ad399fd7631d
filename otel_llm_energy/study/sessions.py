"""What the meters counted while a study was collected, calls or no calls."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from otel_llm_energy.study import StudyError
from otel_llm_energy.study.dataset import SESSIONS


@dataclass(frozen=True, slots=True)
class Metered:
    """One counter over all runs of a study; joules.

    ``metered = attributed + sum(unattributed)``, but for calls that had no bill yet when a run was killed.

    Attributes:
        idle_watts: as last learned; ``None`` if never.
        seconds: for which it was read.
    """

    meter: str
    channel: str
    idle_watts: float | None
    seconds: float
    metered: float
    attributed: float
    unattributed: dict[str, float]


def metered(folders: Sequence[Path]) -> list[Metered]:
    """The counters of all runs in these folders, those of one name together.

    Raises:
        StudyError: a session's file is no such file.
    """
    found: dict[tuple[str, str], Metered] = {}
    for path in sorted(path for folder in folders for path in (folder / SESSIONS).glob("*.json")):
        try:
            session = json.loads(path.read_text(encoding="utf-8"))
            for each in session["meters"]:
                key = (each["meter"], each["channel"])
                found[key] = _added(found.get(key), each, session["seconds"])
        except (ValueError, KeyError, TypeError) as error:
            raise StudyError(f"{path}: not a session of a study: {error!r}. Remove it.") from error
    return list(found.values())


def _added(before: Metered | None, each: dict[str, object], seconds: float) -> Metered:
    unattributed = Counter[str]() if before is None else Counter(before.unattributed)
    unattributed.update(each["unattributed_joules"])  # type: ignore[call-overload]
    idle_watts = each["idle_watts"]
    return Metered(
        str(each["meter"]),
        str(each["channel"]),
        float(idle_watts) if isinstance(idle_watts, (int, float)) else (before.idle_watts if before else None),
        seconds + (before.seconds if before else 0.0),
        float(each["metered_joules"]) + (before.metered if before else 0.0),  # type: ignore[arg-type]
        float(each["attributed_joules"]) + (before.attributed if before else 0.0),  # type: ignore[arg-type]
        dict(unattributed),
    )

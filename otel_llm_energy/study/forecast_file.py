"""A forecast as a file: readable, small, and with nothing in it that a loader would execute."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from otel_llm_energy.study import StudyError
from otel_llm_energy.study.forecast import Forecast, Line, Stage
from otel_llm_energy.version import __version__

_FORMAT: Final = "otel-llm-energy forecast"
_FORMAT_VERSION: Final = 1


def save(forecast: Forecast) -> bytes:
    """The model as JSON."""
    content = {
        "format": _FORMAT,
        "version": _FORMAT_VERSION,
        "made_by": f"otel-llm-energy {__version__}",
        **asdict(forecast),
    }
    return json.dumps(content).encode()


def load(path: Path) -> Forecast:
    """A model from its file.

    Raises:
        StudyError: no such file, no model, or one of another version.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise StudyError(f"{path}: cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise StudyError(f"{path}: not a forecast model: {error}.") from None
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise StudyError(f"{path}: not a forecast model. Make one: otel-llm-energy study forecast fit DIR --out FILE.")
    if content.get("version") != _FORMAT_VERSION:
        made_for = content.get("version")
        raise StudyError(f"{path}: a model of version {made_for}; this program reads {_FORMAT_VERSION}. Fit it anew.")
    try:
        return Forecast(
            content["target"],
            content["rows"],
            content["prompts"],
            content["deployments"],
            content["longest_characters"],
            {name: (low, high) for name, (low, high) in content.get("limits", {}).items()},  # an early file has none
            _stage(content["before"]),
            None if content["after"] is None else _stage(content["after"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StudyError(f"{path}: a broken forecast model: {error!r}. Fit it anew.") from None


def _stage(content: Mapping[str, Any]) -> Stage:
    line = content["line"]
    return Stage(
        content["when"],
        tuple(content["numbers"]),
        {name: tuple(known) for name, known in content["categories"].items()},
        Line(
            line["when"],
            {name: (tuple(each[0]), each[1]) for name, each in line["by_deployment"].items()},
            (tuple(line["pooled"][0]), line["pooled"][1]),
        ),
        content["trees"],
        tuple(content["factors"]),
        content["calibrated"],
    )

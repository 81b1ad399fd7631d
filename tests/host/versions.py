"""Another version of the package beside this one, for processes that meet it on a board."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import otel_llm_energy

_PACKAGE = Path(otel_llm_energy.__file__).parent
_NAME = "otel_llm_energy"
_NEXT = "99.0"


def next_version(folder: Path) -> Path:
    """A made-up later version: another number, another protocol, one value more in the first words of both sides.

    No later version can be had yet, so it is this one, changed in these places. Returns what is to stand first in
    ``PYTHONPATH``.
    """
    copy = folder / "next"
    shutil.copytree(_PACKAGE, copy / _NAME, ignore=shutil.ignore_patterns("__pycache__"))
    information = copy / f"{_NAME}-{_NEXT}.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: otel-llm-energy\nVersion: {_NEXT}\n")
    wire = copy / _NAME / "host" / "wire.py"
    text = wire.read_text()
    for before, after in (
        ("PROTOCOL = 1\n", "PROTOCOL = 2\n"),
        ("    calls_servers: bool = True\n", "    calls_servers: bool = True\n    mood: str = 'fine'\n"),
        ("    message: str\n", "    message: str\n    since: str = 'now'\n"),
    ):
        assert text.count(before) == 1, before
        text = text.replace(before, after)
    wire.write_text(text)
    return copy


def garbled_version(folder: Path) -> Path:
    """The same, of which no word makes sense to this one, nor the other way round."""
    copy = next_version(folder)
    wire = copy / _NAME / "host" / "wire.py"
    text = wire.read_text()
    for before, after in (
        (
            "json.dumps([type(message).__name__.lower(), *message]",
            "json.dumps([0, type(message).__name__.lower(), *message]",
        ),
        ("kind, *values = json.loads(line)", "_, kind, *values = json.loads(line)"),
    ):
        assert text.count(before) == 1, before
        text = text.replace(before, after)
    wire.write_text(text)
    return copy


def first_in_path(folder: Path, path: str) -> str:
    """``PYTHONPATH`` with this folder before all others."""
    return f"{folder}{os.pathsep}{path}"

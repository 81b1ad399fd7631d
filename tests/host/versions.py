"""Another version of the package beside this one, for processes that meet it on a board."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import otel_llm_energy

_PACKAGE = Path(otel_llm_energy.__file__).parent
_CHANGES = {
    "version.py": [(f'"{otel_llm_energy.__version__}"', '"99.0"')],
    "host/wire.py": [
        ("PROTOCOL = 4\n", "PROTOCOL = 5\n"),
        ("    calls_servers: bool = True\n", "    calls_servers: bool = True\n    mood: str = 'fine'\n"),
        ("    message: str\n", "    message: str\n    since: str = 'now'\n"),
    ],
}
_GARBLING = {
    "host/wire.py": [
        ("json.dumps([type(message)", "json.dumps([0, type(message)"),
        ("kind, *values = json.loads(line)", "_, kind, *values = json.loads(line)"),
    ]
}


def next_version(folder: Path) -> Path:
    """A made-up later version: another number, another protocol, one value more in the first words of both sides.

    No later version can be had yet, so it is this one, changed in these places. Returns what is to stand first in
    ``PYTHONPATH``.
    """
    copy = folder / "next"
    shutil.copytree(_PACKAGE, copy / _PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    _change(copy, _CHANGES)
    return copy


def garbled_version(folder: Path) -> Path:
    """The same, of which no word makes sense to this one, nor the other way round."""
    copy = next_version(folder)
    _change(copy, _GARBLING)
    return copy


def _change(copy: Path, changes: Mapping[str, Sequence[tuple[str, str]]]) -> None:
    for name, replaced in changes.items():
        file = copy / _PACKAGE.name / name
        text = file.read_text()
        for before, after in replaced:
            assert text.count(before) == 1, before
            text = text.replace(before, after)
        file.write_text(text)


def first_in_path(folder: Path, path: str) -> str:
    """``PYTHONPATH`` with this folder before all others."""
    return f"{folder}{os.pathsep}{path}"

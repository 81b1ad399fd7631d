"""``--scaphandre`` and ``--powercap``: the one meter that a command is to read."""

from __future__ import annotations

import argparse
from typing import Any


def add_meter_options(parser: argparse.ArgumentParser) -> None:
    """One of them at most."""
    meter = parser.add_mutually_exclusive_group()
    meter.add_argument("--scaphandre", metavar="URL", help="page of a Scaphandre exporter to read")
    meter.add_argument("--powercap", metavar="DIR", help="folder that holds intel-rapl:0, to read")


def named_meter(asked: argparse.Namespace) -> dict[str, Any]:
    """Options of `instrument`, none where the user named no meter."""
    if asked.powercap is not None:
        return {"meters": "rapl", "powercap_root": asked.powercap}
    if asked.scaphandre is not None:
        return {"meters": "scaphandre", "scaphandre_url": asked.scaphandre}
    return {}

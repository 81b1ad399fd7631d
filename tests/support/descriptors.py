"""Which descriptors of this process lead where: in all of them together the leavings of other tests show, too."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def open_below(folder: Path) -> list[Path]:
    """The open files below a folder."""
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # closed since it was listed
            found.append(Path(os.readlink(descriptor)))  # noqa: PTH115 - sockets are no paths
    return [path for path in found if path.is_relative_to(folder)]


def of_file(file: Path) -> int:
    """The one that this process holds of it."""
    (number,) = [int(each.name) for each in Path("/proc/self/fd").iterdir() if os.path.realpath(each) == str(file)]
    return number

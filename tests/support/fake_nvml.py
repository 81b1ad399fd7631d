"""Plays NVIDIA's driver: `fake_nvml.c` built, and the file that says what it answers. No GPU was measured with it.

The real bindings (``pynvml``) load it, because a library of the same name is in the process already.
"""

from __future__ import annotations

import ctypes
import subprocess
import threading
from pathlib import Path
from typing import Final

SOURCE: Final = Path(__file__).with_name("fake_nvml.c")
LIBRARY: Final = "libnvidia-ml.so.1"
VARIABLE: Final = "FAKE_NVML"


def built(folder: Path) -> Path:
    """The library, compiled into ``folder``."""
    library = folder / LIBRARY
    command = ["cc", "-shared", "-fPIC", "-O2", "-Wall", "-Werror", f"-Wl,-soname,{LIBRARY}"]
    subprocess.run([*command, "-o", str(library), str(SOURCE)], check=True, timeout=60)
    return library


def loaded(library: Path) -> ctypes.CDLL:
    """Load it into this process, before the bindings look for the driver's."""
    return ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


class FakeDriver:
    """What the library answers, from now on until it is changed.

    Keys: ``count``, ``init.error``, and for each GPU ``gpu0.energy_mj``, ``.power_mw``, ``.limit_mw``, ``.pstate``,
    ``.busy`` (percent), ``.mig``, ``.pids`` (``"4711 4712"``), ``.used`` (``"4711:60 4712:20"``, percent), ``.used_at``
    (us); ``NAME.error`` is an error code for one of them, ``gpu0.error`` for all. What is not there is not supported.
    Thread-safe: the counters of a test may move by themselves.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._values: dict[str, object] = {}
        self._lock = threading.Lock()

    def say(self, **values: object) -> None:
        """Change answers: ``say(gpu0_energy_mj=5)`` for the key ``gpu0.energy_mj``; ``None`` takes one away."""
        with self._lock:
            for name, value in values.items():
                key = name.replace("_", ".", 1) if name.startswith(("gpu", "init")) else name
                self._values[key.removesuffix("_error") + ".error" if key.endswith("_error") else key] = value
            lines = [f"{key} {value}\n" for key, value in self._values.items() if value is not None]
            draft = self.path.with_suffix(".new")
            draft.write_text("".join(lines))
            draft.replace(self.path)

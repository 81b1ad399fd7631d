"""Where the package cannot work it says so in a sentence."""

from __future__ import annotations

import subprocess
import sys

_ON_WINDOWS = """\
import sys

sys.platform = "win32"
import otel_llm_energy
"""


def test_import_says_that_linux_is_needed_when_this_is_windows() -> None:
    """Not that a module ``fcntl`` is missing, which no user has heard of."""
    done = subprocess.run([sys.executable, "-c", _ON_WINDOWS], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("ImportError: otel-llm-energy runs on Linux only")
    assert "WSL 2" in done.stderr

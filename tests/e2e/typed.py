"""What a reader types: the commands of a page's ``console`` blocks, in a shell, in a network of its own.

The ports of a page are then those that it names, whatever else runs on this machine.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from otel_llm_energy.cli.model import cache_folder
from tests.support.powercap import PowercapTree
from tools.backends import scaphandre_environment

ROOT: Final = Path(__file__).parents[2]
_SECONDS: Final = 200
_SETTINGS_OF_THE_OUTSIDE: Final = ("OTEL_", "OPENAI_", "OLLAMA_", "MAKE", "MFLAGS", "ARGS")
_LOOPBACK_UP: Final = ("sh", "-c", 'ip link set lo up && exec "$@"', "sh")
_OWN_NETWORKS: Final = (("unshare", "--net"), ("unshare", "--map-root-user", "--net"))


def blocks(page: Path) -> list[list[str]]:
    """The commands of each block, one a line."""
    found = re.findall(r"^ *```console\n(.*?)^ *```", page.read_text(), re.DOTALL | re.MULTILINE)
    return [re.findall(r"^ *\$ (.+)$", block, re.MULTILINE) for block in found]


def typed(commands: Iterable[str], powercap: PowercapTree, folder: Path, online: bool = False) -> str:
    """What the commands say, from the top of the checkout, with the synthetic counters as the machine's.

    They have a home of their own below ``folder``, and the tests' cache in it. ``online`` leaves them this machine's
    network. Whatever they leave running is ended. Raises `AssertionError` if one fails.
    """
    cache = folder / "home" / ".cache"
    cache.mkdir(parents=True)
    (cache / "otel-llm-energy").symlink_to(cache_folder())
    script = folder / "commands.sh"
    script.write_text("\n".join(["set -e", *commands, ""]))
    settings = {
        **scaphandre_environment(),
        "HOME": str(cache.parent),
        "OTEL_LLM_ENERGY_CACHE": str(cache_folder()),
        "POWERCAP": str(powercap.root),
        "OTEL_LLM_ENERGY_POWERCAP_ROOT": str(powercap.root),
        "OTEL_LLM_ENERGY_IDLE_CACHE": "off",
        "OTEL_LLM_ENERGY_IDLE_WATTS": "package-0=20,package-0/dram=2",
        "OTEL_LLM_ENERGY_BOARD": str(folder / "board"),
    }
    own = {key: value for key, value in os.environ.items() if not key.startswith(_SETTINGS_OF_THE_OUTSIDE)}
    network = [] if online else _own_network()
    code, said = _run_to_end([*network, "bash", str(script)], {**own, **settings}, folder / "said")
    assert code == 0, said
    return said


def _own_network() -> list[str]:
    """A command to put before one that is to have a network of its own; nothing where that is not permitted."""
    for make in _OWN_NETWORKS:
        with suppress(OSError):
            command = [*make, *_LOOPBACK_UP]
            if subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0:
                return command
    return []


def _run_to_end(command: list[str], env: Mapping[str, str], log: Path) -> tuple[int, str]:
    """Exit code and words."""
    with log.open("w") as out:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(_SECONDS)
        except subprocess.TimeoutExpired:
            code = -1
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return code, log.read_text()

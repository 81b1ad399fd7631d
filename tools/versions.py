"""The tests on other versions of the libraries and of Python: ``python -m tools.versions``.

Those of the client wrappers in each row; on the newest Python also those of whole apps, and of spans.

Each row has an environment in the cache folder, made once for its pins: what the row names, and for the rest the
versions of ``requirements-dev.txt``. So a row changes only when one of the two files does. Rows run two at a time.
With names, only these rows; what stands after ``--`` goes to pytest.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from otel_llm_energy.cli.model import cache_folder, ensure_model

_ROOT: Final = Path(__file__).resolve().parent.parent
_PIN: Final = re.compile(r"^([A-Za-z0-9._-]+)==(\S+)(?: ; ([^\\]+))?", re.MULTILINE)
# What the tests of the wrappers import, beside the client libraries.
_NEEDED: Final = (
    *("pytest", "pytest-asyncio", "pytest-timeout", "hypothesis", "requests", "httpx", "aiohttp", "psutil", "wrapt"),
    *("opentelemetry-sdk", "opentelemetry-exporter-otlp", "opentelemetry-instrumentation", "xllamacpp"),
)
_ROWS_AT_A_TIME: Final = 2


@dataclass(frozen=True, slots=True)
class Row:
    """One environment.

    Attributes:
        pythons: as in ``python3.10``, the first that the machine has; where it has none, the one that runs this.
        pins: versions that differ from those of ``requirements-dev.txt``.
        left_free: packages that have to follow the pins; a trailing ``*`` stands for any rest of a name.
        tests: what pytest is told to run beside those of the wrappers.
        needed: what these import.
    """

    name: str
    pythons: tuple[str, ...]
    pins: dict[str, str]
    left_free: tuple[str, ...] = field(default=())
    tests: tuple[str, ...] = field(default=())
    needed: tuple[str, ...] = field(default=())


_ZERO_CODE: Final = "tests/instrument/test_situations.py::test_calls_are_metered_without_a_line_of_code"

ROWS: Final = (
    Row(
        "newest",
        ("3.15", "3.14", "3.13"),
        {},
        tests=("tests/instrument", "tests/tracing", f"--deselect={_ZERO_CODE}"),  # which needs an installation
        needed=("fastapi", "logfire", "numpy", "nvidia-ml-py"),
    ),
    Row(
        "oldest",
        ("3.10",),
        {
            "openai": "1.26.0",
            "ollama": "0.3.0",
            "httpx": "0.27.2",
            "aiohttp": "3.9.0",
            "requests": "2.31.0",
            "urllib3": "1.26.20",
            "wrapt": "1.16.0",
            "opentelemetry-api": "1.37.0",
            "opentelemetry-sdk": "1.37.0",
            "opentelemetry-exporter-otlp": "1.37.0",
            "opentelemetry-instrumentation": "0.58b0",
        },
        ("opentelemetry-*", "protobuf", "types-*", "async-timeout", "multidict"),
    ),
    Row("openai1", ("3.13",), {"openai": "1.109.1", "ollama": "0.4.9"}),
    Row("openai2", ("3.10",), {"openai": "2.54.0", "ollama": "0.5.4"}),
)


def main(arguments: list[str] | None = None) -> int:
    """Make what is missing, run every row, print a line for each; 1 if one failed."""
    parser = argparse.ArgumentParser(prog="python -m tools.versions", description=__doc__)
    parser.add_argument("rows", nargs="*", choices=[[], *(row.name for row in ROWS)], metavar="row")
    given = sys.argv[1:] if arguments is None else arguments
    own, _, pytest_arguments = _split(given)
    names = parser.parse_args(own).rows
    ensure_model()  # once, before two rows want it
    rows = [row for row in ROWS if not names or row.name in names]
    with ThreadPoolExecutor(_ROWS_AT_A_TIME) as pool:
        outcomes = list(pool.map(lambda row: _run(row, pytest_arguments), rows))
    for row, (passed, said) in zip(rows, outcomes, strict=True):
        print(f"{'passed' if passed else 'FAILED'}  {row.name:8} {said.splitlines()[-1] if said else ''}")
    for row, (passed, said) in zip(rows, outcomes, strict=True):
        if not passed:
            print(f"\n== {row.name}\n{said}")
    return 0 if all(passed for passed, _ in outcomes) else 1


def _split(given: list[str]) -> tuple[list[str], str, list[str]]:
    at = given.index("--") if "--" in given else len(given)
    return given[:at], "--", given[at + 1 :]


def _run(row: Row, pytest_arguments: list[str]) -> tuple[bool, str]:
    try:
        python = environment(row)
    except subprocess.CalledProcessError as err:
        return False, f"{err.stdout}\n{' '.join(map(str, err.cmd))} failed"
    pytest = ("-m", "pytest", "-q", "-m", "not e2e", "-p", "no:cacheprovider", "tests/instrumentation", *row.tests)
    done = subprocess.run(
        [str(python), *pytest, *pytest_arguments],
        cwd=_ROOT,
        env={**os.environ, "PYTHONPATH": f"{_ROOT}{os.pathsep}{_ROOT / 'instrumentation'}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode == 0, done.stdout.strip()


def environment(row: Row) -> Path:
    """The interpreter of a row's environment, which is made if there is none for these pins."""
    constraints = "\n".join(f"{name}=={version}{marker}" for name, version, marker in _pins(row))
    interpreter = _interpreter(row.pythons)
    key = hashlib.sha256(f"{interpreter} {constraints} {_NEEDED} {row.needed}".encode()).hexdigest()[:12]
    folder = cache_folder() / f"versions-{row.name}-{key}"
    python = folder / "bin" / "python"
    done = folder / "complete"
    if not done.exists():
        for stale in folder.parent.glob(f"versions-{row.name}-*"):
            shutil.rmtree(stale, ignore_errors=True)
        _quietly(interpreter, "-m", "venv", folder)
        file = folder / "constraints.txt"
        file.write_text(constraints + "\n")
        _quietly(python, "-m", "pip", "install", "--quiet", "-c", file, "openai", "ollama", *_NEEDED, *row.needed)
        done.touch()
    return python


def _pins(row: Row) -> list[tuple[str, str, str]]:
    """Name, version and marker of everything that is pinned for a row."""
    locked = _PIN.findall((_ROOT / "requirements-dev.txt").read_text())
    kept = [
        (name, version, f" ; {marker.strip()}" if marker else "")
        for name, version, marker in locked
        if name not in row.pins and not _is_free(name, row.left_free)
    ]
    return [*kept, *((name, version, "") for name, version in row.pins.items())]


def _is_free(name: str, left_free: tuple[str, ...]) -> bool:
    return any(name.startswith(free[:-1]) if free.endswith("*") else name == free for free in left_free)


def _interpreter(versions: Sequence[str]) -> str:
    """The first Python of these that is on the path or among pyenv's; else the one that runs this."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    for version in versions:
        for found in (*pyenv.glob(f"versions/{version}.*/bin/python"), shutil.which(f"python{version}")):
            if found is not None and _answers(found, version):
                return str(found)
    print(f"There is no Python {' or '.join(versions)} here; {sys.executable} takes its place.", file=sys.stderr)
    return sys.executable


def _answers(python: str | Path, version: str) -> bool:
    says = "import ensurepip, sys, venv; print('%d.%d' % sys.version_info[:2])"
    asked = subprocess.run([python, "-c", says], capture_output=True, text=True, check=False)
    return asked.stdout.strip() == version


def _quietly(*command: str | Path) -> None:
    subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


if __name__ == "__main__":
    sys.exit(main())

"""Run a user's script or module as python would, with its LLM calls measured."""

from __future__ import annotations

import importlib.util
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

import otel_llm_energy
from otel_llm_energy.cli import PROGRAM
from otel_llm_energy.cli.termination import flush_at_sigterm

_CHILDREN = Path(__file__).with_name("children")  # holds a sitecustomize
_SEARCH_PATH = "PYTHONPATH"
_WORDS = "_OTEL_LLM_ENERGY_RUN"  # for the sitecustomize: what was run


def run_script(script: str, arguments: Sequence[str]) -> int:
    """Run a file (or a folder or zip file with a ``__main__``); what it raises, and its exit code, are its own.

    Returns:
        0, or 2 if there is no such file, or no ``__main__`` in the folder.
    """
    path = Path(script)
    if not path.exists():
        print(f"{PROGRAM} run: {script}: no such file. {_instead_of(path.name)}", file=sys.stderr)
        return 2
    if path.is_dir() and not any(path.glob("__main__.py*")):
        print(f"{PROGRAM} run: {script}: no __main__.py in this folder. Name a script.", file=sys.stderr)
        return 2
    if path.is_file():  # for folders and zip files runpy does it
        _search_first(path.resolve().parent)
    absolute = str(path.absolute())  # so that __file__ is found after os.chdir()
    _measure([script, *arguments], [absolute, *arguments])
    runpy.run_path(absolute, run_name="__main__")  # which puts it into sys.argv, too
    return 0


def _instead_of(name: str) -> str:
    if name.startswith("python"):
        return "Leave it out: what stands here is the script itself, or -m MODULE."
    return "For a module write -m MODULE."


def run_module(module: str, arguments: Sequence[str]) -> int:
    """Run a module, as ``python -m``; what it raises, and its exit code, are its own.

    Returns:
        0, or 2 if there is no such module.
    """
    _search_first(Path.cwd())
    package = module.partition(".")[0]  # what is in it is known only once it was imported, which is to be measured
    if importlib.util.find_spec(package) is None:
        print(f"{PROGRAM} run: {package}: no such module for {sys.executable}.", file=sys.stderr)
        return 2
    _measure([module, *arguments], ["-m", module, *arguments])
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    return 0


def _search_first(folder: Path) -> None:
    """Let imports look there, where python would, and not where this program lies."""
    if getattr(sys.flags, "safe_path", False):  # since Python 3.11; there is no such entry then
        return
    sys.path[0] = str(folder)


def _measure(argv: Sequence[str], words: Sequence[str]) -> None:
    """Measure what runs from now on, and the Python processes that it starts; what is held goes out at the exit."""
    sys.argv[:] = argv
    _reach_children(words)
    flush_at_sigterm(otel_llm_energy.instrument().force_flush)


def _reach_children(words: Sequence[str]) -> None:
    """Servers such as uvicorn start their workers anew, Django itself by these words: they would know nothing of us."""
    os.environ[_WORDS] = "\n".join(words)
    folders = [folder for folder in os.environ.get(_SEARCH_PATH, "").split(os.pathsep) if folder]
    os.environ[_SEARCH_PATH] = os.pathsep.join(dict.fromkeys([str(_CHILDREN), *folders]))

"""Measures what an app under ``otel-llm-energy run`` starts anew: itself, and workers of multiprocessing, as uvicorn's.

Every Python that finds this folder in PYTHONPATH runs this as it starts: of other versions, in other environments, for
other purposes. So it is plain code of any version, does what the file of this name that it hides would have done, and
leaves all other processes alone.
"""

import os
import sys


def _run_hidden():
    # type: () -> None
    here = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 - Python 2 has no pathlib
    sys.path[:] = [folder for folder in sys.path if os.path.abspath(folder) != here]  # noqa: PTH100
    own = sys.modules.pop("sitecustomize", None)
    try:
        __import__("sitecustomize")
    except ImportError:
        pass
    finally:
        if own is not None:
            sys.modules.setdefault("sitecustomize", own)


def _measure():
    # type: () -> None
    try:
        import otel_llm_energy
        from otel_llm_energy.cli.termination import flush_at_sigterm

        flush_at_sigterm(otel_llm_energy.instrument().force_flush)
    except Exception:  # nothing of ours keeps a worker from its work
        import logging

        logging.getLogger("otel_llm_energy").warning("LLM calls of this process are not measured.", exc_info=True)


def _is_of_multiprocessing(argv):
    # type: (list[str]) -> bool
    """A worker, or the server that forks workers (the usual way from Python 3.14 on)."""
    return "--multiprocessing-fork" in argv or any("from multiprocessing.forkserver import" in word for word in argv)


def _is_the_app(argv):
    # type: (list[str]) -> bool
    """The program that is run, by the same words, as Django's reloader starts the server."""
    words = os.environ.get("_OTEL_LLM_ENERGY_RUN", "").split("\n")
    return argv[-len(words) :] == words and all(word.startswith("-") for word in argv[1 : -len(words)])


_run_hidden()
_argv = getattr(sys, "orig_argv", [])
if _is_of_multiprocessing(_argv) or _is_the_app(_argv):
    _measure()

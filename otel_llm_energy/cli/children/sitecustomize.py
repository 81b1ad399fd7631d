"""Measures the workers that an app under ``otel-llm-energy run`` starts anew through multiprocessing, as uvicorn does.

Every Python that finds this folder in PYTHONPATH runs this as it starts: of other versions, in other environments, for
other purposes. So it is plain code of any version, does what the file of this name that it hides would have done, and
leaves all processes alone that are not multiprocessing's.
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


_run_hidden()
if _is_of_multiprocessing(getattr(sys, "orig_argv", [])):
    _measure()

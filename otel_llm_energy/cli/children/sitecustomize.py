"""Measures the workers that an app under ``otel-llm-energy run`` starts anew through multiprocessing, as uvicorn does.

Every Python that finds this folder in PYTHONPATH runs this as it starts: of other versions, in other environments, for
other purposes. So it is plain code of any version, does what the file of this name that it hides would have done, and
leaves all processes alone that are no workers of multiprocessing.
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

        otel_llm_energy.instrument()
    except Exception:  # nothing of ours keeps a worker from its work
        import logging

        logging.getLogger("otel_llm_energy").warning("LLM calls of this process are not measured.", exc_info=True)


_run_hidden()
if "--multiprocessing-fork" in getattr(sys, "orig_argv", ()):
    _measure()

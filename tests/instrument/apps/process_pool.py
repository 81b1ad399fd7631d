"""Forked workers of a pool make the calls, all but the first, in an app without tracing of its own."""

import multiprocessing
import warnings
from concurrent.futures import ProcessPoolExecutor

from app import ask

import otel_llm_energy


def work(_: int) -> str:
    return ask()


# Python 3.12 and newer say so of every process with threads.
warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork", category=DeprecationWarning)
otel_llm_energy.instrument()
ask()
with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
    list(pool.map(work, range(3)))

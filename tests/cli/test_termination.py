"""A program under ``run`` that is told to end by SIGTERM ends so, and what was held has gone out before."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psutil
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

import otel_llm_energy
from otel_llm_energy.cli.termination import amid_telemetry
from otel_llm_energy.meters.base import MeterError
from otel_llm_energy.tracing.idle_measurement import measure_idle
from tests.support.children import environment_without_settings
from tests.support.powercap import PowercapTree

_SECONDS = 60
_APP = """
import multiprocessing, os, signal, sys, threading
import otel_llm_energy
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

def work():
    with otel_llm_energy.measure("work"):
        sum(range(10**6))
    print("ready", flush=True)
    threading.Event().wait()

def serve():
    "As uvicorn: shuts down at the signal, and raises it anew for the handler that was there before."
    told = threading.Event()
    original = signal.signal(signal.SIGTERM, lambda *_: told.set())
    with otel_llm_energy.measure("work"):
        sum(range(10**6))
    print("ready", flush=True)
    told.wait()
    signal.signal(signal.SIGTERM, original)
    signal.raise_signal(signal.SIGTERM)

def start_anew():
    worker = multiprocessing.get_context("spawn").Process(target=serve)
    worker.start()
    signal.signal(signal.SIGTERM, lambda *_: worker.terminate())
    worker.join()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.raise_signal(-worker.exitcode)

def flush():
    "The signal comes while the SDK exports, and holds the lock of its exports."
    class Exporter(ConsoleSpanExporter):
        def export(self, spans):
            print("ready", flush=True)
            sys.stdin.readline()
            os.kill(os.getpid(), signal.SIGTERM)
            return super().export(spans)

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(Exporter()))
    trace.set_tracer_provider(provider)
    otel_llm_energy.instrument(tracer_provider=provider)
    with otel_llm_energy.measure("work"):
        sum(range(10**6))
    provider.force_flush()
    threading.Event().wait()

if __name__ == "__main__":
    {"flush": flush, "work": work, "serve": serve, "start_anew": start_anew}[sys.argv[1]]()
"""


_LATE = """
import signal, threading
from otel_llm_energy.cli.termination import flush_at_sigterm

seconds = iter([100.0, 100.0 + %s])
flush_at_sigterm(lambda millis: print(millis, flush=True), lambda: next(seconds))
exec("signal.raise_signal(signal.SIGTERM)", {"__name__": "opentelemetry.sdk.trace.export", "signal": signal})
threading.Event().wait()
"""


_WITHOUT_THREADS = """
import signal, sys, threading
from otel_llm_energy.cli import termination

def start(thread):
    raise RuntimeError("can't create new thread at interpreter shutdown")

def flush(millis):
    print("flushed", flush=True)
    if sys.argv[2] == "hangs":
        threading.Event().wait()

threading.Thread.start = start
termination._FLUSH_SECONDS = termination._LEAST_SECONDS = 0.5
termination.flush_at_sigterm(flush)
twice = "signal.raise_signal(signal.SIGTERM); signal.raise_signal(signal.SIGTERM); print('went on', flush=True)"
exec(twice, {"__name__": sys.argv[1], "signal": signal})
threading.Event().wait()
"""


@contextlib.contextmanager
def _ready(
    folder: Path, powercap: PowercapTree, what: str, before: Sequence[str] = ()
) -> Iterator[subprocess.Popen[str]]:
    """A program under ``run`` whose span is finished, and held by us or by the SDK's batch processor."""
    (folder / "app.py").write_text(_APP)
    variables = environment_without_settings(
        OTEL_TRACES_EXPORTER="console",
        OTEL_METRICS_EXPORTER="none",
        OTEL_BSP_SCHEDULE_DELAY=str(_SECONDS * 1000),
        OTEL_LLM_ENERGY_METERS="rapl",
        OTEL_LLM_ENERGY_POWERCAP_ROOT=str(powercap.root),
    )
    command = [*before, sys.executable, "-m", "otel_llm_energy.cli", "run", str(folder / "app.py"), what]
    with subprocess.Popen(command, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("what", ["work", "serve", "start_anew"])
def test_held_spans_leave_when_a_program_is_ended_by_sigterm(what: str, tmp_path: Path, powercap: PowercapTree) -> None:
    """One without a handler, one that raises the signal anew, a worker of multiprocessing; all end by the signal."""
    with _ready(tmp_path, powercap, what) as process:
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=_SECONDS)
    assert process.returncode == -signal.SIGTERM
    assert said.count('"name": "work"') == 1
    assert '"llm.energy.joules": ' in said


def test_span_leaves_when_sigterm_meets_the_program_as_it_exports(tmp_path: Path, powercap: PowercapTree) -> None:
    """The export goes on before the flush waits for it, as where a pool ends workers that are at their exit."""
    with _ready(tmp_path, powercap, "flush") as process:
        said, _ = process.communicate("\n", timeout=_SECONDS)
    assert process.returncode == -signal.SIGTERM
    assert said.count('"name": "work"') == 1


@pytest.mark.parametrize(("waited_seconds", "flush_millis"), [(0, 8000), (5, 3000), (8, 1000), (9, 1000)])
def test_flush_has_what_an_export_that_goes_on_first_has_left_of_the_time(
    waited_seconds: int, flush_millis: int
) -> None:
    """Docker and supervisord kill 10 s after the signal; the clock is the test's."""
    done = subprocess.run(
        [sys.executable, "-c", _LATE % waited_seconds], stdout=subprocess.PIPE, text=True, timeout=_SECONDS, check=False
    )
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, f"{flush_millis}\n")


@pytest.mark.parametrize(
    ("module", "flush", "said"),
    [
        ("app", "ends", "flushed\n"),
        ("app", "hangs", "flushed\n"),
        ("opentelemetry.sdk.trace.export", "ends", "went on\nflushed\n"),
    ],
)
def test_flush_needs_no_thread_where_none_can_be_started(module: str, flush: str, said: str) -> None:
    """So it is with Python 3.12 once the main thread has come to its end, whatever other threads or exit hooks do."""
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_THREADS, module, flush],
        stdout=subprocess.PIPE,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, said)


def test_first_process_of_a_container_ends_by_sigterm(tmp_path: Path, powercap: PowercapTree) -> None:
    """The kernel ends no such process by a signal that it does not handle; the exit code is that of shells."""
    own_processes = ["unshare", "--map-root-user", "--pid", "--fork", "--kill-child"]
    with _ready(tmp_path, powercap, "work", own_processes) as process:
        (first,) = psutil.Process(process.pid).children()
        os.kill(first.pid, signal.SIGTERM)
        said, _ = process.communicate(timeout=_SECONDS)
    assert process.returncode == 128 + signal.SIGTERM
    assert said.count('"name": "work"') == 1


@otel_llm_energy.measure("work")
def _measured() -> bool:
    return amid_telemetry(sys._getframe())


def _measured_steps() -> Iterator[bool]:
    yield amid_telemetry(sys._getframe())


class _Exporter(SpanExporter):
    """Notes whether its own work is told from the program's."""

    found: bool | None = None

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.found = amid_telemetry(sys._getframe())
        return SpanExportResult.SUCCESS


def test_measured_functions_are_the_programs_own_work() -> None:
    """A signal that meets one is answered at once; one that meets an export waits for it."""
    exporter = _Exporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    provider.get_tracer("test").start_span("any").end()
    (found,) = otel_llm_energy.measure("steps")(_measured_steps)()
    assert (_measured(), found, exporter.found) == (False, False, True)


def test_measuring_idle_power_keeps_no_program_from_its_end() -> None:
    """It waits for minutes, and holds nothing meanwhile."""
    found: list[bool] = []
    station = SimpleNamespace(discovered=False, meters=[], left_out=(), holder_state=None, learning_channels=list)

    def sleep(seconds: float) -> None:
        found.append(amid_telemetry(sys._getframe()))

    with pytest.raises(MeterError):
        measure_idle(cast("Any", station), lambda: None, 1.0, clock_ns=lambda: len(found) * 10**9, sleep=sleep)
    assert found
    assert not any(found)

"""A process of an app with several: does what it is told on standard input, one line each, and answers in JSON."""

import atexit
import json
import os
import sys
import threading
import time
from typing import Any

from openai import OpenAI
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import otel_llm_energy
from tests.support.measured import measured

spans = InMemorySpanExporter()
tracing = TracerProvider()
tracing.add_span_processor(SimpleSpanProcessor(spans))
reader = InMemoryMetricReader()
metrics = MeterProvider([reader])
# A parent of workers that makes no call itself has no metrics either.
recorded = NoOpMeterProvider() if os.environ.get("UNRECORDED") else metrics
energy = otel_llm_energy.instrument(tracer_provider=tracing, meter_provider=recorded)
client = OpenAI()
asking: list[threading.Thread] = []


def ask(count: int, tokens: int) -> None:
    for _ in range(count):
        client.chat.completions.create(
            model="smollm2-135m",
            messages=[{"role": "user", "content": "Write one sentence about the ocean."}],
            max_tokens=tokens,
            temperature=0,
        )


def begin(count: int, tokens: int) -> None:
    asking.append(threading.Thread(target=ask, args=(count, tokens), daemon=True))
    asking[-1].start()


def work(milliseconds: int) -> None:
    """Of this process itself."""
    until_ns = time.thread_time_ns() + milliseconds * 1_000_000
    with otel_llm_energy.measure("work"):
        while time.thread_time_ns() < until_ns:
            sum(range(1000))


def status() -> dict[str, Any]:
    now = energy.status()
    return {
        "role": now.board.role if now.board else None,
        "holder": now.board.holder_pid if now.board else None,
        "members": now.board.members if now.board else None,
        "message": now.board.message if now.board else None,
        "channels": [each.channel.id for each in now.channels],
        "servers": list(now.servers),
        "spans": len(spans.get_finished_spans()),
    }


def results() -> dict[str, Any]:
    return measured(spans, reader)


def answer(what: Any) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def child() -> int:
    """Fork; what the child has measured of one call, as its own process."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        with os.fdopen(reading) as told:
            answer(json.loads(told.read()))
        return os.waitpid(pid, 0)[1]
    spans.clear()
    ask(1, 8)
    energy.force_flush()
    with os.fdopen(writing, "w") as tell:
        tell.write(json.dumps({**results(), **status()}))
    os._exit(0)


answer(os.getpid())
for line in sys.stdin:
    command, *numbers = line.split()
    if command == "ask":
        ask(*map(int, numbers))
        answer(True)
    elif command == "begin":
        begin(*map(int, numbers))
        answer(True)
    elif command == "work":
        work(*map(int, numbers))
        answer(True)
    elif command == "wait":
        for thread in asking:
            thread.join()
        answer(True)
    elif command == "status":
        answer(status())
    elif command == "flush":
        answer(energy.force_flush())
    elif command == "fork":
        child()
    elif command == "exit":  # but for the end itself
        atexit._run_exitfuncs()
        answer(results())
    elif command == "finish":
        energy.uninstrument()
        answer(results())

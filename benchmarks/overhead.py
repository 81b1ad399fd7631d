"""What does a call cost more with energy on? Against no instrumentation and against a bare span, in one run.

The transport answers at once, so that only our own time is seen. Each candidate is a process of its own; they take many
short turns, and what counts is the median of the differences to the uninstrumented one in the same turn: the machine's
speed drifts. Two processes of the same code may differ by tens of microseconds a call, so that all are launched anew
several times. Where it changes within a turn, compare what each had in its quietest tenth of the turns: "quiet". A
median of calls hides what our own threads take now and then; mean and p99 do not. "CPU added" is CPU time, of the
thread that calls and of all together: the first is what a call waits for where there is an interpreter to spare. A
stream costs more than a call, whatever the number of its chunks (the meter is read at the first of them, too); what
each chunk more costs is seen beside a stream of several times as many.

Calls come without a pause, so that whatever our threads do is in some call's way; with one, most of it is not, as in an
app that waits for its model. Counters are real files of a synthetic powercap tree, read at the calls' edges as on a
real machine.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from pathlib import Path
from typing import Any

CANDIDATES = ("none", "bare-span", "ours", "ours-no-energy")
PEERS = ("genai-openai", "openllmetry", "openinference")
_BEFORE = "ours-before"
CHUNKS = 100
_MANY_CHUNKS = 500
_STEP_SECONDS = 0.02  # of the counters, which another process moves on the same CPUs
_Figures = dict[str, float]
_ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello."}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18},
    "timings": {"prompt_n": 11, "prompt_ms": 0.1, "predicted_n": 7, "predicted_ms": 0.2},
}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks overhead", description=__doc__)
    parser.add_argument("--launches", type=int, default=3, help="of each candidate")
    parser.add_argument("--turns", type=int, default=10, help="after each launch")
    parser.add_argument("--calls", type=int, default=100, help="calls a turn")
    parser.add_argument("--streams", type=int, default=15, help=f"streams of {CHUNKS} chunks a turn")
    parser.add_argument("--pause-ms", type=float, default=0.0, help="between calls; not between chunks")
    parser.add_argument("--peers", action="store_true", help=f"also {', '.join(PEERS)}, where they are installed")
    parser.add_argument(
        "--before", type=Path, metavar="FOLDER", help=f"also {_BEFORE}: ours of another checkout of this repository"
    )
    parser.add_argument("--child", choices=(*CANDIDATES, *PEERS), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        return _child(options.child, options)
    if options.before and not (options.before / "benchmarks" / "overhead.py").is_file():
        parser.error(f"--before {options.before}: this is no checkout of this repository.")
    names = [*CANDIDATES, *([_BEFORE] if options.before else []), *(PEERS if options.peers else [])]
    _compare(names, options)
    return 0


def _compare(names: list[str], options: argparse.Namespace) -> None:
    turns = []
    for _ in range(options.launches):
        with tempfile.TemporaryDirectory() as board:
            children = {name: _launch(name, options, Path(board)) for name in names}
            turns += list(_turns_of_one_launch(children, options.turns))
    _print(turns)


def _launch(name: str, options: argparse.Namespace, board: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks", "overhead", "--calls", str(options.calls)]
    command += ["--streams", str(options.streams), "--pause-ms", str(options.pause_ms), "--child"]
    folder, env = None, dict(os.environ)
    if name == _BEFORE:
        name, folder = "ours", options.before.resolve()
        env["PYTHONPATH"] = os.pathsep.join([str(folder), str(folder / "instrumentation")])
        env["OTEL_LLM_ENERGY_BOARD"] = str(board)  # of its own, or one of both would leave the metering to the other
    return subprocess.Popen(
        [*command, name], cwd=folder, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def _turns_of_one_launch(children: dict[str, subprocess.Popen[str]], turns: int) -> Iterator[dict[str, _Figures]]:
    names = list(children)
    try:
        for turn in range(turns + 1):
            order = names[turn % len(names) :] + names[: turn % len(names)]
            figures = {name: _turn(children[name]) for name in order}
            if turn > 0:  # the first turn warms up
                yield {name: figures[name] for name in names}
    finally:
        for child in children.values():
            with suppress(OSError):
                assert child.stdin is not None
                child.stdin.close()
            child.wait(timeout=30)


def _turn(child: subprocess.Popen[str]) -> _Figures:
    assert child.stdin is not None
    assert child.stdout is not None
    with suppress(BrokenPipeError):
        child.stdin.write("go\n")
        child.stdin.flush()
        line = child.stdout.readline()
        return json.loads(line) if line else {}
    return {}


def _print(turns: list[dict[str, _Figures]]) -> None:
    print(
        f"{'':16} {'call us':>8} {'added':>7} {'quartiles':>12} {'quiet added':>12} {'mean added':>11}"
        f" {'p99 added':>10} {'CPU added':>10} {'of all':>8} {'a stream':>9} {'quiet':>7}"
        f" {'a chunk':>8} {'quartiles':>12} {'quiet':>7}"
    )
    for name in turns[0]:
        if not turns[0][name]:
            print(f"{name:16} not installed")
            continue
        call_us = statistics.median(turn[name]["call"] for turn in turns)
        added = {key: sorted(turn[name][key] - turn["none"][key] for turn in turns) for key in turns[0][name]}
        middle = {key: statistics.median(differences) for key, differences in added.items()}
        quiet = {key: _quiet(turns, name, key) - _quiet(turns, "none", key) for key in ("call", "stream", "chunk")}
        print(
            f"{name:16} {call_us:8.0f} {middle['call']:7.1f} {_quartiles(added['call']):>12} {quiet['call']:12.1f}"
            f" {middle['mean']:11.1f} {middle['p99']:10.0f} {middle['thread']:10.1f} {middle['cpu']:8.1f}"
            f" {middle['stream']:9.0f} {quiet['stream']:7.0f}"
            f" {middle['chunk']:8.2f} {_quartiles(added['chunk']):>12} {quiet['chunk']:7.2f}"
        )


def _quiet(turns: list[dict[str, _Figures]], name: str, key: str) -> float:
    """What was the median in the quietest tenth of the turns."""
    return sorted(turn[name][key] for turn in turns)[len(turns) // 10]


def _quartiles(differences: list[float]) -> str:
    """Between which the middle half of the turns lies."""
    low, _, high = statistics.quantiles(differences, n=4) if len(differences) > 1 else (*differences, *differences * 2)
    return f"{low:.3g}..{high:.3g}"


def _child(name: str, options: argparse.Namespace) -> int:
    with ExitStack() as stack:
        try:
            wrap = set_up(name, stack)
        except ImportError:
            return 0
        call, stream, long_stream = askers(stack, wrap, CHUNKS, _MANY_CHUNKS)
        for _ in sys.stdin:
            figures = _time(call, options.calls, options.pause_ms)
            figures.update(_time_streams(stream, long_stream, options.streams, options.pause_ms))
            print(json.dumps(figures), flush=True)
    return 0


def _time(what: Callable[[], None], times: int, pause_ms: float) -> dict[str, float]:
    """Wall time of a call, its median, mean and 99th percentile, and mean CPU time of this thread and of all, in us."""
    walls, cpu_ns, thread_ns = [], time.process_time_ns(), time.thread_time_ns()
    for _ in range(times):
        walls.append(_wall_ns(what, pause_ms))
    return {
        "call": statistics.median(walls) / 1e3,
        "mean": statistics.fmean(walls) / 1e3,
        "p99": sorted(walls)[int(0.99 * (times - 1))] / 1e3,
        "thread": (time.thread_time_ns() - thread_ns) / times / 1e3,
        "cpu": (time.process_time_ns() - cpu_ns) / times / 1e3,
    }


def _time_streams(
    stream: Callable[[], None], long_stream: Callable[[], None], times: int, pause_ms: float
) -> dict[str, float]:
    """Wall time of a stream, and of each chunk that a long one has more, medians, in us; the two take turns."""
    walls, chunks = [], []
    for _ in range(times):
        walls.append(_wall_ns(stream, pause_ms))
        chunks.append((_wall_ns(long_stream, pause_ms) - walls[-1]) / (_MANY_CHUNKS - CHUNKS))
    return {"stream": statistics.median(walls) / 1e3, "chunk": statistics.median(chunks) / 1e3}


def _wall_ns(what: Callable[[], None], pause_ms: float) -> int:
    start_ns = time.perf_counter_ns()
    what()
    wall_ns = time.perf_counter_ns() - start_ns
    if pause_ms:
        time.sleep(pause_ms / 1e3)
    return wall_ns


def askers(stack: ExitStack, wrap: Callable[[], AbstractContextManager[Any]], *chunks: int) -> list[Callable[[], None]]:
    """What makes a call, and what makes streamed ones of so many chunks and reads them, each inside ``wrap``."""
    # Something listens at the address, so that the server is found and its activity sampled.
    listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    client = _client(listener.getsockname()[1], chunks)
    message = [{"role": "user", "content": "Hello"}]

    def call() -> None:
        with wrap():
            client.chat.completions.create(model="m", messages=message)

    def stream(count: int) -> None:
        with wrap():
            for _ in client.chat.completions.create(model="m", messages=message, stream=True, max_tokens=count):
                pass

    return [call, *(functools.partial(stream, count) for count in chunks)]


def _client(port: int, chunks: Iterable[int]) -> Any:
    """An OpenAI client whose transport answers at once, from memory, in the name of a server of this machine."""
    import httpx2
    from openai import OpenAI

    body = json.dumps(_ANSWER).encode()
    sse = {count: _events(count) for count in chunks}

    def answer(request: Any) -> Any:
        asked = json.loads(request.content)
        if asked.get("stream"):
            content = sse[asked["max_tokens"]]
            return httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=content)
        return httpx2.Response(200, headers={"content-type": "application/json"}, content=body)

    http = httpx2.Client(transport=httpx2.MockTransport(answer))
    return OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", http_client=http)


def _events(chunks: int) -> bytes:
    """A streamed answer."""
    chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    delta = {**chunk, "choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": None}]}
    last = {**chunk, "choices": [], "usage": _ANSWER["usage"], "timings": _ANSWER["timings"]}
    events = [f"data: {json.dumps(each)}\n\n".encode() for each in [*[delta] * (chunks - 1), last]]
    return b"".join([*events, b"data: [DONE]\n\n"])


def tracer_provider() -> Any:
    """One whose spans are thrown away as they end."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

    class Nowhere(SpanExporter):
        def export(self, spans: Any) -> SpanExportResult:
            return SpanExportResult.SUCCESS

    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(Nowhere()))
    return provider


def set_up(name: str, stack: ExitStack) -> Callable[[], AbstractContextManager[Any]]:
    """Instrument as ``name`` does; what each call is wrapped in. Raises `ImportError` where that is not installed."""
    if name == "none":
        return nullcontext
    provider = tracer_provider()
    if name == "bare-span":
        tracer = provider.get_tracer("bench")
        return lambda: tracer.start_as_current_span("chat m")
    if name == "ours":
        _instrument_ours(provider, stack)
    else:
        _instrument_other(name, provider)
    return nullcontext


def _instrument_ours(provider: Any, stack: ExitStack) -> None:
    import otel_llm_energy
    from otel_llm_energy import RaplMeter
    from tests.support.feeder import feeding

    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    tree = stack.enter_context(feeding(folder / "powercap", step_seconds=_STEP_SECONDS))
    handle = otel_llm_energy.instrument(tracer_provider=provider, meters=RaplMeter(tree.root))
    stack.callback(handle.uninstrument)
    time.sleep(2.5)


def _instrument_other(name: str, provider: Any) -> None:
    if name == "ours-no-energy":
        from otel_llm_instrumentation.openai import OpenAIInstrumentor as Ours

        Ours().instrument(tracer_provider=provider)
    elif name == "genai-openai":
        from opentelemetry.instrumentation.genai.openai import OpenAIInstrumentor as GenAI

        GenAI().instrument(tracer_provider=provider)
    elif name == "openllmetry":
        from opentelemetry.instrumentation.openai import OpenAIInstrumentor as OpenLLMetry

        OpenLLMetry().instrument(tracer_provider=provider)
    else:
        from openinference.instrumentation.openai import OpenAIInstrumentor as OpenInference

        OpenInference().instrument(tracer_provider=provider)

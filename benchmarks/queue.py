"""Are equal calls billed equally when they queue? Real llama.cpp and Ollama, synthetic counters as RAPL files.

Eight equal calls at once: by the client's clock they take from one to eight times the work, by the server's own
timings the same each. Also below a parent span, with two slots, and a stream that is read at half the speed at which
it is written.

Equal calls need not have cost the same: the last one of an odd number runs alone in two slots, and other programs slow
some of them down. So each call is also set against its own truth: the server's energy, and the idle energy, in its own
work window, in equal parts with those that were at work at the same instant.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openai import OpenAI
from opentelemetry import context

from benchmarks.bench import LAST_TICK_NS, Call, Session, relative_errors, session, shared_truths
from otel_llm_energy import conventions
from otel_llm_energy.cli.model import ensure_model
from otel_llm_energy.cli.model_server import ModelServer, ServerOptions
from tests.support.backends import running_ollama

_TOKENS_PER_SECOND = 80
_STREAM_TOKENS = 160
_MESSAGES: Any = [{"role": "user", "content": "Tell a long story about the sea."}]
_EXTRA = {"cache_prompt": False, "ignore_eos": True, "temperature": 0, "seed": 1}
# SmolLM2 goes on counting where it ends a story; Ollama cannot be told to ignore the end.
_COUNTING_OPTIONS = {"temperature": 0.0, "seed": 1, "repeat_penalty": 1.0}
_ALLOWED = {0.5: 0.10, 2.0: 0.10}
_ALLOWED_OF_LONG = 0.15


@dataclass(frozen=True, slots=True)
class Served:
    """A server that runs: its process, and how to ask it for so many tokens."""

    pid: int
    ask: Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Case:
    """A server, and calls to it that are all sent at once."""

    name: str
    serve: Callable[[], AbstractContextManager[Served]]
    work: Sequence[float] | None = None
    parent: bool = False


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks queue", description=__doc__)
    parser.add_argument("--work", type=float, nargs="+", default=[0.5, 2.0, 8.0], help="seconds of work of each call")
    parser.add_argument("--calls", type=int, default=8)
    parser.add_argument("--server", nargs="+", choices=(*_CASES, "stream"), help="all of them if left out")
    parser.add_argument("--meter", choices=("rapl", "scaphandre"), default="rapl")
    parser.add_argument("--verbose", action="store_true", help="print every call")
    options = parser.parse_args(arguments)
    for name in options.server or (*_CASES, "stream"):
        if name == "stream":
            _slow_reader(options.meter)
        for case in _CASES.get(name, ()):
            _queue(case, options)
    return 0


def _queue(case: Case, options: argparse.Namespace) -> None:
    with case.serve() as served, session(options.meter, served.pid) as running:
        served.ask(8)  # loads the model and shows the server that it reports timings
        running.calls()
        for seconds in case.work or options.work:
            running.spans.clear()
            before = running.accounts()
            tracer = running.provider.get_tracer("benchmark")
            with tracer.start_as_current_span("chain") if case.parent else nullcontext():
                _at_once(served.ask, options.calls, int(seconds * _TOKENS_PER_SECOND))
            calls = running.calls()
            _report(case, seconds, running, calls, before)
            if options.verbose:
                _print_calls(calls, shared_truths(running.truth(), calls))


def _counting(number: int) -> str:
    """A prompt that begins unlike the others and is as long: what is in Ollama's cache needs no prefill."""
    first = 10 + number % 70
    return " ".join(f"{value}," for value in range(first, first + 16))


def _at_once(ask: Callable[[int], None], calls: int, tokens: int) -> None:
    """All calls at the same time, each in a thread that carries the caller's context."""
    here = context.get_current()

    def one() -> None:
        token = context.attach(here)
        try:
            ask(tokens)
        finally:
            context.detach(token)

    threads = [threading.Thread(target=one) for _ in range(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _report(case: Case, seconds: float, running: Session, calls: Sequence[Call], before: dict[str, int]) -> None:
    joules = [call.joules for call in calls]
    truths = shared_truths(running.truth(), calls)
    spans = [call.end_ns - call.start_ns for call in calls]
    kept = running.accounts()
    unaccounted_nj = kept["metered"] - before["metered"] - kept["settled"] + before["settled"]
    worst, allowed = _worst(joules), _ALLOWED.get(seconds, _ALLOWED_OF_LONG)
    print(
        f"{case.name}, {seconds:g} s each ({statistics.fmean(call.work_ns for call in calls) / 1e9:.2f} s at work)\n"
        f"  ours   {statistics.fmean(joules):7.1f} J each, worst {100 * worst:5.2f} % off the mean"
        f" (target {100 * allowed:g} %: {'met' if worst <= allowed else 'MISSED'}), most/least"
        f" {max(joules) / min(joules):.3f}, where the client's seconds are {max(spans) / min(spans):.1f}\n"
        f"  truth  {statistics.fmean(truths):7.1f} J each, worst {100 * _worst(truths):5.2f} % off the mean, most/least"
        f" {max(truths) / min(truths):.3f}\n"
        f"  ours against each call's own truth: {_errors(joules, truths)}\n"
        f"  unaccounted {unaccounted_nj} nJ; {', '.join(sorted({_quality(call) for call in calls}))}",
        flush=True,
    )
    for span in running.spans.get_finished_spans():
        if span.name == "chain":
            total = float((span.attributes or {})[conventions.SUBTREE_JOULES])  # type: ignore[arg-type]
            print(f"  parent's total {total:.1f} J, sum of its calls {sum(joules):.1f} J")


def _worst(values: Sequence[float]) -> float:
    mean = statistics.fmean(values)
    return max(abs(value / mean - 1) for value in values)


def _errors(values: Sequence[float], truths: Sequence[float]) -> str:
    errors = relative_errors(values, truths)
    return f"bias {100 * statistics.fmean(errors):+.2f} %, worst {100 * max(map(abs, errors)):.2f} %"


def _quality(call: Call) -> str:
    return f"{call.text(conventions.QUALITY)} {call.text(conventions.REASON)}".strip()


def _print_calls(calls: Sequence[Call], truths: Sequence[float]) -> None:
    first_ns = min(call.start_ns for call in calls)
    for call, truth in sorted(zip(calls, truths, strict=True), key=lambda pair: pair[0].end_ns):
        start_ns, end_ns = call.window
        print(
            f"    at work {(start_ns - first_ns) / 1e9:6.2f} to {(end_ns - first_ns) / 1e9:6.2f} s"
            f"  ours {call.joules:7.1f} J  truth {truth:7.1f} J {100 * (call.joules / truth - 1):+6.2f} %"
            f"  tokens {call.text('gen_ai.usage.input_tokens')}/{call.text('gen_ai.usage.output_tokens')}"
            f"  concurrency {call.number(conventions.CONCURRENCY):.2f}  {_quality(call)}"
        )


def _slow_reader(meter: str) -> None:
    with ModelServer(ServerOptions(ensure_model(), threads=1)) as server, session(meter, server.pid) as running:
        client = OpenAI(base_url=server.base_url, api_key="none")
        quick_seconds = _STREAM_TOKENS / _TOKENS_PER_SECOND
        for slowly in (False, True, False, True):
            started, pause = time.monotonic(), 2 * quick_seconds / _STREAM_TOKENS
            stream = client.chat.completions.create(
                model="smollm2", messages=_MESSAGES, max_tokens=_STREAM_TOKENS, stream=True, extra_body=_EXTRA
            )
            for _ in stream:
                if slowly:
                    time.sleep(pause)
            seconds = time.monotonic() - started
            quick_seconds = quick_seconds if slowly else seconds
            print(f"a stream read {'slowly' if slowly else 'at once'}: {seconds:.2f} s")
        calls, truth = running.calls(), running.truth()
        joules = [call.joules for call in calls]
        # Of a slow reader's call only the beginning of the work is seen; idle power is the same throughout.
        truths = [
            truth.server_joules(call.start_ns, call.end_ns + LAST_TICK_NS)
            + truth.idle_joules(call.start_ns, call.start_ns + call.work_ns)
            for call in calls
        ]
        quick, slow = statistics.fmean(joules[::2]), statistics.fmean(joules[1::2])
        off = slow / quick - 1
        print(
            f"read at half the speed: {slow:.1f} J against {quick:.1f} J, {100 * off:+.2f} %"
            f" (target 5 %: {'met' if abs(off) <= 0.05 else 'MISSED'})\n"
            f"  ours against each call's own truth: {_errors(joules, truths)}"
        )


def _llama(slots: int) -> Callable[[], AbstractContextManager[Served]]:
    @contextmanager
    def serve() -> Iterator[Served]:
        with ModelServer(ServerOptions(ensure_model(), slots=slots, threads=1)) as server:
            client = OpenAI(base_url=server.base_url, api_key="none", timeout=600)

            def ask(tokens: int) -> None:
                client.chat.completions.create(
                    model="smollm2", messages=_MESSAGES, max_tokens=tokens, extra_body=_EXTRA
                )

            yield Served(server.pid, ask)

    return serve


@contextmanager
def _ollama() -> Iterator[Served]:
    import ollama

    with tempfile.TemporaryDirectory() as folder, running_ollama(ensure_model(), Path(folder)) as server:
        client = ollama.Client(host=server.host, timeout=600)
        numbers = itertools.count()

        def ask(tokens: int) -> None:
            options: dict[str, Any] = {"num_predict": tokens, **_COUNTING_OPTIONS}
            client.generate(server.model, _counting(next(numbers)), raw=True, options=options)

        yield Served(server.pid, ask)


_CASES = {
    "llama.cpp": (
        Case("llama.cpp, one slot", _llama(1)),
        Case("llama.cpp, one slot, below a parent span", _llama(1), work=[2.0], parent=True),
    ),
    "llama.cpp-2": (Case("llama.cpp, two slots", _llama(2)),),
    "ollama": (Case("Ollama, OLLAMA_NUM_PARALLEL=1", _ollama),),
}

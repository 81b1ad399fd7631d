"""Are equal calls billed equally when they queue? Real llama.cpp and Ollama, synthetic counters as RAPL files.

Eight equal calls at once: by the client's clock they take from one to eight times the work, by the server's own
timings the same each. Also below a parent span, with two slots, and a stream that is read at half the speed at which
it is written.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from openai import OpenAI
from opentelemetry import context
from opentelemetry.sdk.trace import ReadableSpan

from benchmarks.bench import Session, session
from otel_llm_energy import conventions
from otel_llm_energy.cli.model import ensure_model
from otel_llm_energy.cli.model_server import ModelServer, ServerOptions
from tests.support.backends import running_ollama

_TOKENS_PER_SECOND = 80
_MESSAGES = [{"role": "user", "content": "Tell a long story about the sea."}]
_EXTRA = {"cache_prompt": False, "ignore_eos": True, "temperature": 0, "seed": 1}

Ask = Callable[[int], None]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks queue", description=__doc__)
    parser.add_argument("--work", type=float, nargs="+", default=[0.5, 2.0, 8.0], help="seconds of work of each call")
    parser.add_argument("--calls", type=int, default=8)
    parser.add_argument("--server", choices=("llama.cpp", "llama.cpp-2", "ollama", "stream", "all"), default="all")
    parser.add_argument("--meter", choices=("rapl", "scaphandre"), default="rapl")
    parser.add_argument("--verbose", action="store_true", help="print every call")
    options = parser.parse_args(arguments)
    wanted = {"llama.cpp", "llama.cpp-2", "ollama", "stream"} if options.server == "all" else {options.server}
    if "llama.cpp" in wanted:
        _queue("llama.cpp, one slot", _llama(1), options)
        _queue("llama.cpp, one slot, below a parent span", _llama(1), options, parent=True, work=[2.0])
    if "llama.cpp-2" in wanted:
        _queue("llama.cpp, two slots", _llama(2), options)
    if "ollama" in wanted:
        _queue("Ollama, OLLAMA_NUM_PARALLEL=1", _ollama, options)
    if "stream" in wanted:
        _slow_reader(options.meter)
    return 0


def _queue(
    name: str,
    serve: Callable[[], Any],
    options: argparse.Namespace,
    *,
    parent: bool = False,
    work: list[float] | None = None,
) -> None:
    with serve() as ask, session(options.meter) as running:
        ask(8)  # loads the model and shows the server that it reports timings
        running.calls()
        for seconds in work or options.work:
            running.spans.clear()
            before = _accounts(running)
            tracer = running.provider.get_tracer("benchmark")
            if parent:
                with tracer.start_as_current_span("chain"):
                    _at_once(ask, options.calls, int(seconds * _TOKENS_PER_SECOND))
            else:
                _at_once(ask, options.calls, int(seconds * _TOKENS_PER_SECOND))
            _report(f"{name}, {seconds:g} s each", running, before)
            if options.verbose:
                _print_calls(running.calls())


def _at_once(ask: Ask, calls: int, tokens: int) -> None:
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


def _report(name: str, running: Session, before: dict[str, int]) -> None:
    spans = running.calls()
    joules = [float(_attributes(span)[conventions.JOULES]) for span in spans]
    seconds = [((span.end_time or 0) - (span.start_time or 0)) / 1e9 for span in spans]
    mean = statistics.fmean(joules)
    worst = max(abs(value / mean - 1) for value in joules)
    kept = _accounts(running)
    rest = kept["metered"] - before["metered"] - kept["settled"] + before["settled"]
    qualities = sorted({str(_attributes(span)[conventions.QUALITY]) for span in spans})
    print(
        f"{name:46} {mean:7.1f} J each, worst {100 * worst:5.2f} % off the mean, most/least"
        f" {max(joules) / min(joules):.3f} (client's seconds {max(seconds) / min(seconds):.1f});"
        f" unaccounted {rest} nJ; {', '.join(qualities)}"
    )
    parents = [span for span in running.spans.get_finished_spans() if span.name == "chain"]
    for span in parents:
        total = float(_attributes(span)[conventions.SUBTREE_JOULES])
        print(f"{'':46} parent's total {total:.1f} J, sum of its calls {sum(joules):.1f} J")


def _print_calls(spans: list[ReadableSpan]) -> None:
    for span in sorted(spans, key=lambda span: span.end_time or 0):
        values = _attributes(span)
        print(
            f"    ended {((span.end_time or 0) - (spans[0].start_time or 0)) / 1e9:6.2f} s"
            f"  prefill {values[conventions.SERVER_PREFILL_SECONDS]:.3f} s"
            f"  decode {values[conventions.SERVER_DECODE_SECONDS]:.3f} s  {values[conventions.JOULES]:7.1f} J"
            f"  tokens {values.get('gen_ai.usage.input_tokens')}/{values.get('gen_ai.usage.output_tokens')}"
            f"  concurrency {values[conventions.CONCURRENCY]:.2f}  {values[conventions.QUALITY]}"
        )


def _accounts(running: Session) -> dict[str, int]:
    """Metered energy, and all that it was spent on, nJ."""
    balances = [each.balance for each in running.handle.status().channels]
    spent = [b.billed_nj + b.pending_nj + sum(b.unattributed_nj.values()) for b in balances]
    return {"metered": sum(b.metered_nj for b in balances), "settled": sum(spent)}


def _slow_reader(meter: str) -> None:
    with ModelServer(ServerOptions(ensure_model(), slots=1, threads=1)) as server, session(meter) as running:
        client = OpenAI(base_url=server.base_url, api_key="none")
        for slowly in (False, True, False, True):
            started, pause = time.monotonic(), 2 / _TOKENS_PER_SECOND
            stream = client.chat.completions.create(  # type: ignore[call-overload]
                model="smollm2", messages=_MESSAGES, max_tokens=160, stream=True, extra_body=_EXTRA
            )
            for _ in stream:
                if slowly:
                    time.sleep(pause)
            print(f"a stream read {'slowly' if slowly else 'at once'}: {time.monotonic() - started:.2f} s")
        joules = [float(_attributes(span)[conventions.JOULES]) for span in running.calls()]
        quick, slow = statistics.fmean(joules[::2]), statistics.fmean(joules[1::2])
        print(f"read at half the speed: {slow:.1f} J against {quick:.1f} J, {100 * (slow / quick - 1):+.2f} %")


def _llama(slots: int) -> Callable[[], Any]:
    @contextmanager
    def serve() -> Iterator[Ask]:
        with ModelServer(ServerOptions(ensure_model(), slots=slots, threads=1)) as server:
            client = OpenAI(base_url=server.base_url, api_key="none", timeout=300)

            def ask(tokens: int) -> None:
                client.chat.completions.create(  # type: ignore[call-overload]
                    model="smollm2", messages=_MESSAGES, max_tokens=tokens, extra_body=_EXTRA
                )

            yield ask

    return serve


@contextmanager
def _ollama() -> Iterator[Ask]:
    import ollama

    with tempfile.TemporaryDirectory() as folder, running_ollama(ensure_model(), Path(folder)) as server:
        client = ollama.Client(host=server.host, timeout=300)

        def ask(tokens: int) -> None:
            options = {"num_predict": tokens, "temperature": 1.0, "seed": 1}
            client.generate(server.model, "Write the numbers from one to a thousand:", raw=True, options=options)

        yield ask


def _attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})

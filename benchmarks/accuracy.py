"""How right are the joules of one call at a time? Real llama.cpp, real Scaphandre, truth from the server's CPU time.

The counters follow the machine's real CPU use. The truth of a call is the idle energy of its work window (the
server's own prefill and decode time) + the server's own CPU seconds in it x the known watts.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from dataclasses import dataclass

from openai import OpenAI
from opentelemetry.sdk.trace import ReadableSpan

from benchmarks.bench import Session, baseline_summary, relative_errors, session, summary
from otel_llm_energy import conventions
from otel_llm_energy.cli.model import ensure_model
from otel_llm_energy.cli.model_server import ModelServer, ServerOptions
from tests.support.cpu_time import tree_cpu_ns

_TOKENS_PER_SECOND = 80
_PROMPT = "Tell a story about a lighthouse keeper, number {number}."


@dataclass(frozen=True)
class Asked:
    """One call by the client's clock, and the server's CPU time in it."""

    start_ns: int
    end_ns: int
    server_cpu_ns: int
    streamed: bool


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks accuracy", description=__doc__)
    parser.add_argument("--meter", choices=("rapl", "scaphandre", "both"), default="both")
    parser.add_argument("--calls", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--verbose", action="store_true", help="print every call")
    options = parser.parse_args(arguments)
    meters = ("rapl", "scaphandre") if options.meter == "both" else (options.meter,)
    for meter in meters:
        with ModelServer(ServerOptions(ensure_model(), slots=1, threads=1)) as server, session(meter) as running:
            print(f"{meter}: one call at a time, {options.calls} calls of 0.3 to 8 s, every third streamed")
            asked = _ask(server, options.calls, random.Random(options.seed))
            _report(running, asked, verbose=options.verbose)
    return 0


def _ask(server: ModelServer, calls: int, rng: random.Random) -> list[Asked]:
    client = OpenAI(base_url=server.base_url, api_key="none")
    asked = []
    for number in range(calls):
        seconds = 0.3 * (8 / 0.3) ** rng.random()
        asked.append(_one(client, server.pid, number, max(int(seconds * _TOKENS_PER_SECOND), 8)))
        time.sleep(rng.uniform(0.1, 1.5))
    return asked


def _one(client: OpenAI, pid: int, number: int, tokens: int) -> Asked:
    streamed = number % 3 == 2
    extra = {"cache_prompt": False, "ignore_eos": True}
    message = {"role": "user", "content": _PROMPT.format(number=number)}
    before_ns, start_ns = tree_cpu_ns(pid), time.monotonic_ns()
    answer = client.chat.completions.create(  # type: ignore[call-overload]
        model="smollm2", messages=[message], max_tokens=tokens, stream=streamed, extra_body=extra
    )
    if streamed:
        for _ in answer:
            pass
    end_ns = time.monotonic_ns()
    time.sleep(0.02)  # the kernel charges the server's last tick
    return Asked(start_ns, end_ns, tree_cpu_ns(pid) - before_ns, streamed)


def _report(running: Session, asked: list[Asked], *, verbose: bool) -> None:
    spans = running.calls()
    if len(spans) != len(asked):
        raise SystemExit(f"{len(asked)} calls, but {len(spans)} spans")
    truths = [_truth(running, span, call) for span, call in zip(spans, asked, strict=True)]
    ours = [float(_attribute(span, conventions.JOULES)) for span in spans]
    interpolated = [running.recorder.interpolated_joules(call.start_ns, call.end_ns) for call in asked]
    mean_power = [running.recorder.mean_power_joules(call.start_ns, call.end_ns) for call in asked]
    print(f"  otel-llm-energy        {summary(relative_errors(ours, truths))}")
    print(f"  interpolation          {summary(relative_errors(interpolated, truths))}")
    print(f"  mean power x duration  {summary(relative_errors(mean_power, truths))}")
    _report_bounds(spans, truths)
    print(f"  idle learned: {baseline_summary(running.handle)} (true {running.model.idle_watts:g} W)")
    if verbose:
        for span, call, truth in zip(spans, asked, truths, strict=True):
            _print_call(span, call, truth)


def _print_call(span: ReadableSpan, call: Asked, truth: float) -> None:
    ours = float(_attribute(span, conventions.JOULES))
    print(
        f"    {(call.end_ns - call.start_ns) / 1e9:6.2f} s  truth {truth:7.1f} J  ours {ours:7.1f} J"
        f"  {100 * (ours / truth - 1):+6.2f} %  {_attribute(span, conventions.QUALITY)}"
        f" {(span.attributes or {}).get(conventions.REASON, '')}{'  streamed' if call.streamed else ''}"
    )


def _report_bounds(spans: list[ReadableSpan], truths: list[float]) -> None:
    bounds = [
        (float(_attribute(span, conventions.LOWER_JOULES)), float(_attribute(span, conventions.UPPER_JOULES)))
        for span in spans
    ]
    inside = sum(lower <= truth <= upper for (lower, upper), truth in zip(bounds, truths, strict=True))
    widths = [(upper - lower) / truth for (lower, upper), truth in zip(bounds, truths, strict=True)]
    print(f"  bounds hold the truth in {inside} of {len(spans)}; median width {100 * statistics.median(widths):.1f} %")


def _truth(running: Session, span: ReadableSpan, call: Asked) -> float:
    work_seconds = float(_attribute(span, conventions.SERVER_PREFILL_SECONDS))
    work_seconds += float(_attribute(span, conventions.SERVER_DECODE_SECONDS))
    return running.model.joules(work_seconds, call.server_cpu_ns / 1e9)


def _attribute(span: ReadableSpan, key: str) -> str | float:
    value = (span.attributes or {}).get(key)
    if not isinstance(value, (str, int, float)):
        raise SystemExit(f"the span of a call has no {key}: {dict(span.attributes or {})}")
    return value

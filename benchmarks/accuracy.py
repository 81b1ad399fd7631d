"""How right are the joules? Real llama.cpp, RAPL files and the real Scaphandre, truth from the server's own CPU time.

The counters are synthetic and follow the machine's real CPU use, in several shapes. The process that moves them knows
what each joule was for. The truth of a call is the idle energy of its work and what its server added; of calls that
overlap, an equal part of that at each instant. Beside ours: what other methods say on the very same readings.

All of it takes about 25 minutes; --shape, --meter and --calls choose parts.
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from openai import OpenAI

from benchmarks.bench import (
    Call,
    Session,
    baseline_summary,
    lone_truth,
    relative_errors,
    rms,
    session,
    shared_truths,
    together_truth,
)
from benchmarks.loads import background, noisy_neighbour
from benchmarks.replay import replayed, without_activity, without_windows
from otel_llm_energy import conventions
from otel_llm_energy.cli.model import ensure_model
from otel_llm_energy.cli.model_server import ModelServer, ServerOptions
from tests.support.powercap import PowerModel

_TOKENS_PER_SECOND = 80
_PROMPT = "Tell a story about a lighthouse keeper, number {number}."
_SEED = 1
_TINY_CALLS_TOGETHER = 20
_LONG_SECONDS = 2.0
# To move the counters takes CPU time, too, which no hardware's would: so often, and for each reading of RAPL files.
_STEP_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class Target:
    """What a row should reach: relative errors; ``None`` where nothing is asked."""

    bias: float | None = None
    rms: float | None = None

    def met(self, bias: float, rms_error: float) -> bool:
        return (self.bias is None or abs(bias) <= self.bias) and (self.rms is None or rms_error <= self.rms)

    def __str__(self) -> str:
        parts = [("bias", self.bias), ("rms", self.rms)]
        return ", ".join(f"{name} <= {100 * value:g} %" for name, value in parts if value is not None)


class Asker:
    """Asks the model server, in one of several ways."""

    def __init__(self, server: ModelServer, running: Session, rng: random.Random) -> None:
        self._client = OpenAI(base_url=server.base_url, api_key="none", timeout=300)
        self._running = running
        self._rng = rng
        self._numbers = itertools.count()

    def one_at_a_time(self, calls: int) -> None:
        """Of 0.3 to 3 s on a quiet machine; every third streamed."""
        for _ in range(calls):
            number = next(self._numbers)
            self._ask(number, streamed=number % 3 == 2)
            time.sleep(self._rng.uniform(0.1, 1.0))

    def busy_between(self, calls: int) -> None:
        """Of 50 to 250 ms: the client is busy in between, and waits while the server is."""
        for _ in range(calls):
            self._greet(self._rng.randrange(4, 14), ignore_eos=True)
            until = time.monotonic() + self._rng.uniform(0.05, 0.3)
            while time.monotonic() < until:
                pass

    def marked_prefills(self, calls: int) -> None:
        """The same with long prompts, all streamed: the first chunk says that the prompt has been read."""
        for _ in range(calls):
            number = next(self._numbers)
            with self._running.prefilling():
                stream = self._stream(number, words=self._rng.randrange(10, 150))
                next(stream)
            for _ in stream:
                pass
            time.sleep(self._rng.uniform(0.1, 1.0))

    def overlapping(self, calls: int) -> None:
        """Two clients."""
        clients = [threading.Thread(target=self.one_at_a_time, args=(calls // 2,)) for _ in range(2)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()

    def tiny(self, calls: int) -> None:
        """One token each, as fast as it goes: some 50 calls a second."""
        for number in range(calls * _TINY_CALLS_TOGETHER):
            self._greet(1)
            if number % _TINY_CALLS_TOGETHER == _TINY_CALLS_TOGETHER - 1:
                time.sleep(0.3)

    def _greet(self, max_tokens: int, **options: Any) -> None:
        """The prompt is always the same, and read once."""
        messages: Any = [{"role": "user", "content": "Hi."}]
        self._client.chat.completions.create(
            model="smollm2", messages=messages, max_tokens=max_tokens, extra_body={"cache_prompt": True, **options}
        )

    def _ask(self, number: int, *, streamed: bool) -> None:
        if streamed:
            for _ in self._stream(number):
                pass
        else:
            self._create(number, stream=False)

    def _stream(self, number: int, words: int = 0) -> Iterator[Any]:
        return iter(self._create(number, stream=True, words=words))

    def _create(self, number: int, *, stream: bool, words: int = 0) -> Any:
        seconds = 0.3 * (3 / 0.3) ** self._rng.random()
        messages: Any = [{"role": "user", "content": _PROMPT.format(number=number) + " lamp" * words}]
        return self._client.chat.completions.create(
            model="smollm2",
            messages=messages,
            max_tokens=max(int(seconds * _TOKENS_PER_SECOND), 8),
            stream=stream,
            extra_body={"cache_prompt": False, "ignore_eos": True},
        )


@dataclass(frozen=True, slots=True)
class Shape:
    """One row of the table.

    Attributes:
        ask: how the calls are made.
        targets: by meter.
        beside: other load on the machine.
        step_seconds: of the feeder, and none shorter for a reading, as a concave shape wants; ``None`` if any will do.
        lone: one call at a time.
    """

    name: str
    title: str
    targets: Mapping[str, Target]
    model: PowerModel = field(default_factory=PowerModel)
    ask: Callable[[Asker, int], None] = Asker.one_at_a_time
    beside: Callable[[], AbstractContextManager[None]] = nullcontext
    step_seconds: float | None = None
    slots: int = 1
    lone: bool = True


_LONE = {"rapl": Target(rms=0.01), "scaphandre": Target(bias=0.01, rms=0.03)}
_BESIDE = {"rapl": Target(0.02, 0.03), "scaphandre": Target(0.03, 0.06)}
SHAPES = (
    Shape("linear", "60 W for each busy CPU", _LONE),
    Shape("concave", "the second CPU adds less", _LONE, PowerModel(exponent=0.7), step_seconds=0.02),
    Shape("prefill", "prefill 1.4 times decode", _LONE, PowerModel(prefill_factor=1.4), Asker.marked_prefills),
    Shape("drift", "idle 20 W, up and down by 2 W in a minute", _LONE, PowerModel(idle_swing_watts=2.0)),
    Shape("busy", "short calls, between which the client is busy", _BESIDE, ask=Asker.busy_between),
    Shape(
        "neighbour",
        "another program, now busy, now not",
        _BESIDE,
        beside=lambda: noisy_neighbour(_SEED),
    ),
    Shape(
        "background",
        "another program, always half a CPU",
        {"rapl": Target(bias=0.05), "scaphandre": Target(bias=0.05)},
        beside=lambda: background(0.5),
    ),
    Shape(
        "edges",
        f"tiny calls, {_TINY_CALLS_TOGETHER} in a row taken together",
        {"rapl": Target(bias=0.01), "scaphandre": Target(bias=0.01)},
        ask=Asker.tiny,
    ),
    Shape(
        "overlap",
        "two clients, two slots",
        {"rapl": Target(rms=0.03), "scaphandre": Target(rms=0.03)},
        ask=Asker.overlapping,
        slots=2,
        lone=False,
    ),
)


@dataclass(frozen=True, slots=True)
class Sample:
    """One call, or some tiny ones taken together: the truth, and what each method says, J."""

    truth: float
    ours: float
    lower: float
    upper: float
    work_seconds: float
    others: Mapping[str, float | None]
    quality: str


@dataclass(frozen=True, slots=True)
class Row:
    """All samples of one shape with one meter."""

    shape: Shape
    meter: str
    samples: Sequence[Sample]
    calls_per_second: float
    idle: str


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks accuracy", description=__doc__)
    parser.add_argument("--shape", nargs="+", choices=[shape.name for shape in SHAPES], help="all of them if left out")
    parser.add_argument("--meter", choices=("rapl", "scaphandre", "both"), default="both")
    parser.add_argument("--calls", type=int, default=36, help="of each shape with each meter")
    parser.add_argument("--seed", type=int, default=_SEED)
    parser.add_argument("--verbose", action="store_true", help="print every call")
    options = parser.parse_args(arguments)
    meters = ("rapl", "scaphandre") if options.meter == "both" else (options.meter,)
    rows = []
    started = time.monotonic()
    for shape in SHAPES:
        if options.shape is None or shape.name in options.shape:
            for meter in meters:
                rows.append(measure(shape, meter, options.calls, options.seed))
                _print_row(rows[-1], verbose=options.verbose)
    _print_bounds(rows)
    print(f"{(time.monotonic() - started) / 60:.0f} minutes")
    return 0


def measure(shape: Shape, meter: str, calls: int, seed: int) -> Row:
    """Ask the calls of one shape, and set the truth beside what each method says."""
    options = ServerOptions(ensure_model(), slots=shape.slots, threads=1)
    with ModelServer(options) as server, shape.beside(), _running(shape, meter, server) as running:
        asker, started = Asker(server, running, random.Random(seed)), time.monotonic()
        shape.ask(asker, calls)
        seconds = time.monotonic() - started
        found = running.calls()
        samples = _samples(shape, running, found)
        return Row(shape, meter, samples, len(found) / seconds, baseline_summary(running.handle))


@contextmanager
def _running(shape: Shape, meter: str, server: ModelServer) -> Iterator[Session]:
    fresh = meter == "rapl" and shape.step_seconds is None
    step_seconds = shape.step_seconds or _STEP_SECONDS
    with session(meter, server.pid, shape.model, step_seconds, fresh=fresh, clients=["openai"]) as running:
        yield running


def _samples(shape: Shape, running: Session, calls: Sequence[Call]) -> list[Sample]:
    truth, kept = running.truth(), running.ledger
    truths = [lone_truth(truth, call) for call in calls] if shape.lone else shared_truths(truth, calls)
    without = {"without u_s": replayed(kept, without_activity), "without windows": replayed(kept, without_windows)}
    samples = []
    for i, call in enumerate(calls):
        others = {name: values[i] for name, values in without.items()}
        others["interpolation"] = running.recorder.interpolated_joules(call.start_ns, call.end_ns)
        others["mean power"] = running.recorder.mean_power_joules(call.start_ns, call.end_ns)
        samples.append(
            Sample(
                truths[i],
                call.joules,
                call.number(conventions.LOWER_JOULES),
                call.number(conventions.UPPER_JOULES),
                call.work_ns / 1e9,
                others,
                f"{call.text(conventions.QUALITY)} {call.text(conventions.REASON)}",
            )
        )
    if shape.name == "edges":
        groups = [slice(i, i + _TINY_CALLS_TOGETHER) for i in range(0, len(samples), _TINY_CALLS_TOGETHER)]
        return [_together(samples[group], together_truth(truth, calls[group])) for group in groups]
    return samples


def _together(samples: Sequence[Sample], truth: float) -> Sample:
    """Tiny calls are shorter than the ticks in which CPU time is accounted: only their sum has a truth."""
    others = {}
    for name in samples[0].others:
        values = [sample.others[name] for sample in samples]
        others[name] = None if None in values else sum(value for value in values if value is not None)
    return Sample(
        truth,
        sum(sample.ours for sample in samples),
        sum(sample.lower for sample in samples),
        sum(sample.upper for sample in samples),
        sum(sample.work_seconds for sample in samples),
        others,
        samples[0].quality,
    )


def _print_row(row: Row, *, verbose: bool) -> None:
    truths = [sample.truth for sample in row.samples]
    errors = relative_errors([sample.ours for sample in row.samples], truths)
    target = row.shape.targets[row.meter]
    verdict = "met" if target.met(statistics.fmean(errors), rms(errors)) else "MISSED"
    print(
        f"\n{row.shape.name} ({row.shape.title}), {row.meter}: {len(errors)} samples,"
        f" {row.calls_per_second:.1f} calls/s, idle learned {row.idle}"
    )
    print(f"  {'otel-llm-energy':18} {_summary(errors)}   target {target}: {verdict}")
    for name in row.samples[0].others:
        values = [(sample.others[name], sample.truth) for sample in row.samples]
        known = [value / truth - 1 for value, truth in values if value is not None]
        print(f"  {name:18} {_summary(known)}")
    inside = sum(sample.lower <= sample.truth <= sample.upper for sample in row.samples)
    print(f"  bounds hold the truth in {inside} of {len(row.samples)}, median width {_width(row.samples)}", flush=True)
    if verbose:
        for sample in row.samples:
            print(
                f"    {sample.work_seconds:6.2f} s  truth {sample.truth:7.2f} J  ours {sample.ours:7.2f} J"
                f" {100 * (sample.ours / sample.truth - 1):+7.2f} %  [{sample.lower:.2f}, {sample.upper:.2f}]"
                f"  {sample.quality}"
            )


def _print_bounds(rows: Sequence[Row]) -> None:
    samples = [sample for row in rows for sample in row.samples]
    inside = sum(sample.lower <= sample.truth <= sample.upper for sample in samples)
    print(
        f"\nbounds of all: hold the truth in {inside} of {len(samples)}, {100 * inside / len(samples):.1f} %"
        "   target >= 95 % of at least 500"
    )
    lone = [row for row in rows if row.shape.lone and row.shape.name != "edges"]
    print(f"  median width of lone calls of {_LONG_SECONDS:g} s and more, and of all lone calls:")
    for meter, target in (("scaphandre", "30 %"), ("rapl", "5 %")):
        calls = [sample for row in lone if row.meter == meter for sample in row.samples]
        long = [sample for sample in calls if sample.work_seconds >= _LONG_SECONDS]
        print(f"    {meter:10}  {_width(long)}   target <= {target};  {_width(calls)}")


def _width(samples: Sequence[Sample]) -> str:
    if not samples:
        return "of none"
    widths = [(sample.upper - sample.lower) / sample.ours for sample in samples]
    return f"{100 * statistics.median(widths):.1f} % of {len(samples)}"


def _summary(errors: Sequence[float]) -> str:
    if not errors:
        return "says nothing"
    return (
        f"bias {100 * statistics.fmean(errors):+7.2f} %  rms {100 * rms(errors):7.2f} %"
        f"  least {100 * min(errors):+7.2f} %  most {100 * max(errors):+7.2f} %"
    )

"""The first call of a process while other programs keep the CPUs busy, with and without an earlier run's idle power.

Real llama.cpp server, counters that follow the machine's CPU use (20 W, 60 W for each busy CPU, a tenth of that for
memory). The truth is the idle energy of the call's work and what its server's own CPU time cost. Run it on a machine
that is quiet otherwise: idle power is measured first, before the other programs are started.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from openai import OpenAI
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import otel_llm_energy
from benchmarks.loads import background
from otel_llm_energy import conventions as names
from otel_llm_energy.cli.metering import wait_until
from otel_llm_energy.cli.model import ensure_model
from otel_llm_energy.cli.model_server import ModelServer, ServerOptions
from otel_llm_energy.idle_memory import IdleMemory, machine_facts
from otel_llm_energy.meters import OpenMeter, RaplMeter
from otel_llm_energy.quantities import IdlePower
from otel_llm_energy.servers.activity import process_cpu_ns
from tests.support.feeder import feeding
from tests.support.powercap import PowercapTree, PowerModel


def main(arguments: Sequence[str]) -> None:
    """Print the error of each first call, and what it says of itself."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks first_call")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--busy", type=int, default=os.cpu_count() or 1, help="CPUs that others keep busy")
    parser.add_argument("--idle-seconds", type=float, default=10)
    parser.add_argument("--true-idle", action="store_true", help="on a busy machine: do not measure idle power")
    options = parser.parse_args(arguments)
    with (
        tempfile.TemporaryDirectory() as folder,
        feeding(Path(folder) / "powercap") as tree,
        ModelServer(ServerOptions(ensure_model())) as server,
    ):
        cache = Path(folder) / "idle.json"
        if options.true_idle:
            _keep_true_idle(tree, cache)
        else:
            settings: Any = {"meters": "rapl", "powercap_root": tree.root, "idle_cache": cache}
            watts = otel_llm_energy.measure_idle(options.idle_seconds, **settings)
            print("idle power measured, W:", {name: round(each, 2) for name, each in watts.items()})
        with _others(options.busy):
            for how, setting in (("without an earlier run", "off"), ("with one", str(cache))):
                first = [_first_call(server, tree, setting) for _ in range(options.turns)]
                errors = [call.error for call in first]
                held = sum(call.held for call in first)
                rms = statistics.fmean(error**2 for error in errors) ** 0.5
                print(
                    f"{how}: {', '.join(f'{error:+.1%}' for error in errors)}; rms {rms:.1%}; truth in bounds: {held}"
                )
                for said in sorted({call.said for call in first}):
                    print(f"  {said}")


def _keep_true_idle(tree: PowercapTree, cache: Path) -> None:
    """As an earlier run on a quiet machine would have."""
    memory, model = IdleMemory(cache, machine_facts()), PowerModel()
    meter = RaplMeter(tree.root)
    memory.recall([OpenMeter(meter, tuple(meter.open()))])
    meter.close()
    package, dram = model.idle_watts, model.idle_watts * model.memory_part
    memory.keep({"package-0": [IdlePower(package, package, 60)], "package-0/dram": [IdlePower(dram, dram, 60)]})
    print("idle power given as true, W:", {"package-0": package, "package-0/dram": dram})


class Call(NamedTuple):
    """A first call: relative error, whether its bounds hold the truth, and what it says of itself."""

    error: float
    held: bool
    said: str


@contextmanager
def _others(busy: int) -> Iterator[None]:
    """Programs that keep so many CPUs busy."""
    with ExitStack() as stack:
        for _ in range(busy):
            stack.enter_context(background(1.0))
        yield


def _first_call(server: ModelServer, tree: PowercapTree, cache: str) -> Call:
    """The first call of a fresh instrumentation."""
    spans = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    energy = otel_llm_energy.instrument(
        tracer_provider=provider, meters="rapl", powercap_root=tree.root, idle_cache=cache, detail="full"
    )
    try:
        wait_until(lambda: bool(energy.status().channels), 20)
        before_ns = process_cpu_ns(server.pid) or 0
        with OpenAI(base_url=server.base_url, api_key="unused") as client:
            client.chat.completions.create(
                model="smollm2-135m", messages=[{"role": "user", "content": "Describe the ocean."}], max_tokens=60
            )
        cpu_seconds = ((process_cpu_ns(server.pid) or 0) - before_ns) / 1e9
        energy.force_flush()
    finally:
        energy.uninstrument()
    said = dict(spans.get_finished_spans()[-1].attributes or {})
    summary = " ".join(str(said.get(key, "-")) for key in (names.QUALITY, names.REASON, names.METHOD))
    if names.JOULES not in said:
        return Call(float("nan"), False, summary)
    work_seconds = said[names.JOULES] / said[names.MEAN_WATTS]
    truth_joules = PowerModel().joules(work_seconds, cpu_seconds)
    held = said[names.LOWER_JOULES] <= truth_joules <= said[names.UPPER_JOULES]
    return Call(said[names.JOULES] / truth_joules - 1, held, summary)

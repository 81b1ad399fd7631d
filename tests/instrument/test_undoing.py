"""`instrument()` in the app's own process: what it changes, and that all of it can be undone."""

from __future__ import annotations

import gc
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import ollama
import openai
import pytest
from openai import OpenAI
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import SynchronousMultiSpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import otel_llm_energy
from otel_llm_energy import Instrumentation
from otel_llm_energy import conventions as names
from otel_llm_energy.instrument import _registry_lock, active_runtime
from otel_llm_energy.meters import RaplMeter
from otel_llm_energy.runtime import Runtime
from otel_llm_energy.settings import SettingError, settings
from otel_llm_energy.tracing.claims import Claim
from otel_llm_energy.tracing.station import Station
from tests.instrument.asking import ask, calls
from tests.support.powercap import PowercapTree
from tests.support.waiting import until

SEAMS = (
    (openai.OpenAI, "request"),
    (openai.AsyncOpenAI, "request"),
    (ollama.Client, "_request"),
    (ollama.AsyncClient, "_request"),
    (trace, "set_tracer_provider"),
)


@pytest.fixture
def new_threads() -> Callable[[], list[str]]:
    """Names of our threads that were not there when the test began: other tests' processors may still have theirs."""
    before = set(threading.enumerate())

    def names() -> list[str]:
        fresh = set(threading.enumerate()) - before
        return [thread.name for thread in fresh if thread.name.startswith("otel-llm-energy")]

    return names


def until_metered(energy: Instrumentation) -> None:
    until(lambda: bool(energy.status().channels))


@pytest.mark.parametrize("thread", ["discovery", "servers", "board", "settling", "joining"])
def test_app_goes_on_unmeasured_when_no_thread_can_be_started(
    thread: str,
    tmp_path: Path,
    provider: TracerProvider,
    powercap: PowercapTree,
    new_threads: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As where a container limits its processes: a warning says so, nothing is raised, and no other thread is left."""
    start = threading.Thread.start

    def refuse(one: threading.Thread) -> None:
        if one.name == f"otel-llm-energy {thread}":
            raise RuntimeError("can't start new thread")
        start(one)

    seams = [getattr(owner, name) for owner, name in SEAMS]
    monkeypatch.setattr(threading.Thread, "start", refuse)
    board = str(tmp_path / "board")
    energy = otel_llm_energy.instrument(tracer_provider=provider, meters=RaplMeter(powercap.root), board=board)
    try:
        assert not energy.active
        assert energy.force_flush()
        assert [getattr(owner, name) for owner, name in SEAMS] == seams
        assert "LLM calls are not measured: a thread of ours could not be started." in caplog.text
        until(lambda: not new_threads())
    finally:
        energy.uninstrument()


@pytest.fixture
def energy(provider: TracerProvider, powercap: PowercapTree) -> Iterator[Instrumentation]:
    """The one line, metered by counters that follow the real CPU use."""
    energy = otel_llm_energy.instrument(tracer_provider=provider, meters="rapl", powercap_root=powercap.root)
    until_metered(energy)
    yield energy
    energy.uninstrument()


def test_no_trace_is_left_when_it_is_undone(
    client: OpenAI,
    provider: TracerProvider,
    exporter: InMemorySpanExporter,
    powercap: PowercapTree,
    new_threads: Callable[[], list[str]],
) -> None:
    """Methods, hooks and threads are as before, and so are the app's spans."""
    before = [getattr(owner, name) for owner, name in SEAMS]
    energy = otel_llm_energy.instrument(tracer_provider=provider, meters="rapl", powercap_root=powercap.root)
    assert [getattr(owner, name) for owner, name in SEAMS] != before
    ask(client)
    energy.uninstrument()
    assert len(calls(exporter)) == 1
    assert [getattr(owner, name) for owner, name in SEAMS] == before
    until(lambda: new_threads() == [])
    exporter.clear()
    with provider.get_tracer("app").start_as_current_span("request"):
        ask(client)
    (span,) = exporter.get_finished_spans()
    assert (span.name, dict(span.attributes or {})) == ("request", {})
    assert not {"on_start", "on_end", "force_flush", "shutdown"} & vars(provider._active_span_processor).keys()


def test_set_up_of_tracing_is_as_before_when_it_is_undone_before_there_was_any(
    new_threads: Callable[[], list[str]],
) -> None:
    """The global provider is never set: neither by us nor by this test."""
    before = trace.set_tracer_provider
    energy = otel_llm_energy.instrument(meters="cpu-estimate", clients=[])
    assert trace.set_tracer_provider is not before
    energy.uninstrument()
    assert trace.set_tracer_provider is before
    until(lambda: new_threads() == [])


def test_call_is_delivered_when_it_is_undone_at_once(
    client: OpenAI, exporter: InMemorySpanExporter, energy: Instrumentation
) -> None:
    """What is held is settled and handed on."""
    ask(client)
    energy.uninstrument()
    (call,) = calls(exporter)
    assert (call.attributes or {})[names.JOULES] > 0


def test_handle_is_at_rest_when_it_is_undone(energy: Instrumentation) -> None:
    """A repeat does nothing; what it says is true."""
    assert energy.active
    energy.uninstrument()
    energy.uninstrument()
    assert not energy.active
    assert energy.force_flush()
    assert str(energy.status()) == "tracing: not instrumented"


def test_it_can_be_done_again_when_it_was_undone(
    client: OpenAI, provider: TracerProvider, exporter: InMemorySpanExporter, powercap: PowercapTree
) -> None:
    """Each time for as long as it lasts."""
    for _ in range(2):
        energy = otel_llm_energy.instrument(tracer_provider=provider, meters="rapl", powercap_root=powercap.root)
        until_metered(energy)
        ask(client)
        energy.uninstrument()
    assert len(calls(exporter)) == 2
    assert all((call.attributes or {})[names.JOULES] for call in calls(exporter))


def test_pipelines_that_were_left_are_let_go_when_tracing_is_set_up_again_and_again(
    client: OpenAI, provider: TracerProvider, exporter: InMemorySpanExporter, energy: Instrumentation
) -> None:
    """Each had a gate of its own, which would keep it alive and cost every call; what was counted still counts."""
    runtime = active_runtime()
    assert runtime is not None
    joining = runtime.joining
    until(lambda: joining._joint is not None)
    wired = [gate for gate in joining.gates if joining._joint is None or gate is not joining._joint.gate]  # by others
    counted = sum(gate.health.forwarded for gate in wired)
    ask(client)
    energy.force_flush()
    for _ in range(3):
        provider._active_span_processor = SynchronousMultiSpanProcessor()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        until(
            lambda: (
                joining._joint is not None
                and joining._joint.joins(provider)
                and set(joining.gates) == {*wired, joining._joint.gate}
            )
        )
    ask(client)
    energy.force_flush()
    assert [names.JOULES in (call.attributes or {}) for call in calls(exporter)] == [True, True]
    assert sum(health.forwarded for health in joining.health()) - counted == 2


def test_second_call_of_instrument_returns_the_first(energy: Instrumentation, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever it is given; it warns of what is not heeded, and what is wrong is an error all the same."""
    assert otel_llm_energy.instrument(meters="rapl", detail="standard") is energy
    assert caplog.messages == []
    assert otel_llm_energy.instrument(meters="rapl", detail="full", idle_watts=20) is energy
    (warning,) = caplog.messages
    assert "not heeded: detail, idle_watts." in warning
    caplog.clear()
    otel_llm_energy.instrument(tracer_provider=TracerProvider(), meter_provider=MeterProvider([]))
    assert "not heeded: tracer_provider, meter_provider." in caplog.messages[0]
    with pytest.raises(otel_llm_energy.SettingError):
        otel_llm_energy.instrument(detail="verbose")  # type: ignore[arg-type]


def test_call_is_there_right_after_a_flush(
    client: OpenAI, provider: TracerProvider, exporter: InMemorySpanExporter, energy: Instrumentation
) -> None:
    """By the handle, or by the app's own provider as ever."""
    for count, flush in enumerate((energy.force_flush, provider.force_flush), start=1):
        ask(client)
        assert flush()
        assert len(calls(exporter)) == count
        assert (calls(exporter)[-1].attributes or {})[names.JOULES] > 0


def test_stream_that_is_open_when_it_is_undone_still_ends(
    client: OpenAI, exporter: InMemorySpanExporter, energy: Instrumentation
) -> None:
    """Its span comes out, without energy; the app gets its whole answer."""
    stream = client.chat.completions.create(
        model="smollm2-135m", messages=[{"role": "user", "content": "Hello"}], max_tokens=8, stream=True
    )
    next(iter(stream))
    energy.uninstrument()
    assert list(stream)
    (call,) = calls(exporter)
    assert names.JOULES not in (call.attributes or {})


def recorded(provider: TracerProvider, powercap: PowercapTree) -> tuple[Instrumentation, InMemoryMetricReader]:
    """The one line with a meter provider, metered by counters that follow the real CPU use; who reads its metrics."""
    reader = InMemoryMetricReader()
    energy = otel_llm_energy.instrument(
        tracer_provider=provider,
        meter_provider=MeterProvider([reader]),
        meters="rapl",
        powercap_root=powercap.root,
    )
    until_metered(energy)
    return energy, reader


def test_metrics_add_up_when_they_are_flushed(
    client: OpenAI, provider: TracerProvider, exporter: InMemorySpanExporter, powercap: PowercapTree
) -> None:
    """Metered = attributed + unattributed, and attributed is what the spans say."""
    energy, reader = recorded(provider, powercap)
    for _ in range(3):
        ask(client)
    energy.uninstrument()
    totals = sums(reader)
    on_spans = sum(float((call.attributes or {})[names.JOULES]) for call in calls(exporter))
    assert totals[names.CONSUMPTION.name] == pytest.approx(on_spans, rel=1e-5)
    left = totals[names.UNATTRIBUTED.name]
    assert totals[names.METERED.name] == pytest.approx(totals[names.CONSUMPTION.name] + left, rel=1e-9)


def test_what_is_metered_while_it_stops_is_counted(
    provider: TracerProvider, powercap: PowercapTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the settling thread comes to count no more: other processes' calls may have been billed for it."""
    energy, reader = recorded(provider, powercap)
    stop, metered_joules = Station.stop, list[float]()
    runtime = active_runtime()
    assert runtime is not None

    def meter_until_it_stops(station: Station) -> None:
        runtime.desk._poller.stop()
        metered_joules.append(_metered_joules(station))
        while metered_joules[-1] == metered_joules[0]:
            station.meters[0]._poll()
            station.books.settle()
            metered_joules.append(_metered_joules(station))
        stop(station)

    monkeypatch.setattr(Station, "stop", meter_until_it_stops)
    energy.uninstrument()
    assert sums(reader)[names.METERED.name] == pytest.approx(metered_joules[-1], rel=1e-9)


def _metered_joules(station: Station) -> float:
    return sum(balance.metered_nj for _, balance in station.books.balance().values()) / 1e9


def sums(reader: InMemoryMetricReader) -> dict[str, float]:
    """Each counter's total."""
    data = reader.get_metrics_data()
    assert data is not None
    metrics = [m for resource in data.resource_metrics for scope in resource.scope_metrics for m in scope.metrics]
    return {m.name: sum(p.value for p in m.data.data_points if hasattr(p, "value")) for m in metrics}


def test_nothing_is_measured_when_the_sdk_is_disabled(
    monkeypatch: pytest.MonkeyPatch, client: OpenAI, new_threads: Callable[[], list[str]]
) -> None:
    """OTEL_SDK_DISABLED: no thread, no wrapper; the handle says so."""
    before = [getattr(owner, name) for owner, name in SEAMS]
    monkeypatch.setenv("OTEL_SDK_DISABLED", "True")
    energy = otel_llm_energy.instrument()
    assert not energy.active
    assert new_threads() == []
    assert [getattr(owner, name) for owner, name in SEAMS] == before
    assert ask(client)
    energy.uninstrument()


def test_process_that_the_user_names_is_metered_here_whatever_its_address() -> None:
    """A name that only a proxy or a container's network knows: the process is still this machine's."""
    runtime = Runtime(settings({}, servers={"model.example:8080": "pid:1"}))
    claim = Claim()
    runtime.desk.open(claim, "model.example", 8080, "openai", "chat")
    assert claim.books is runtime.desk.stations[0].books
    assert len(runtime.desk.stations) == 1
    other = Claim()
    runtime.desk.open(other, "model.example", 8081, "openai", "chat")
    assert (other.books, other.reason) == (None, "remote")


def test_idle_power_of_a_counter_that_is_not_there_is_pointed_out(
    powercap: PowercapTree, caplog: pytest.LogCaptureFixture
) -> None:
    """A misspelt name would do nothing, silently."""
    energy = otel_llm_energy.instrument(
        meters="rapl", powercap_root=powercap.root, clients=[], idle_watts={"package-9": 20, "package-0": 20}
    )
    until_metered(energy)
    energy.uninstrument()
    assert "idle_watts: no counter of the name package-9 is read." in caplog.text
    assert "There are package-0, package-0/dram." in caplog.text


def test_place_without_a_meter_is_pointed_out_when_another_meter_stands_in(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An estimate in place of the counters that the user named would pass for what was asked for."""
    options = {"powercap_root": tmp_path / "powercap", "scaphandre_url": "http://127.0.0.1:9/metrics"}
    energy = otel_llm_energy.instrument(meters="auto", clients=[], board="off", **options)
    until_metered(energy)
    energy.uninstrument()
    for option, place in options.items():
        (said,) = [message for message in caplog.messages if message.startswith(f"{option}: ")]
        assert str(place) in said
        assert said.endswith("Calls are metered by cpu-estimate meanwhile.")


@pytest.mark.parametrize("name", ["tracer_provider", "meter_provider"])
def test_provider_that_is_none_is_refused(name: str) -> None:
    """By its name and what is allowed, before anything is started."""
    with pytest.raises(SettingError, match=rf"{name} cannot be 'x'\. Allowed: .* None for the global one\."):
        otel_llm_energy.instrument(**{name: "x"})
    assert active_runtime() is None


def test_nothing_is_kept_when_it_is_undone(powercap: PowercapTree) -> None:
    """Hooks that wait for libraries which are never imported cannot be taken back; they hold nothing."""
    energy = otel_llm_energy.instrument(tracer_provider=TracerProvider(), meters="rapl", powercap_root=powercap.root)
    runtime = weakref.ref(active_runtime() or energy)
    assert isinstance(runtime(), Runtime)
    energy.uninstrument()
    del energy
    until(lambda: (gc.collect(), runtime() is None)[1])


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_child_can_instrument_when_another_thread_was_at_it_at_the_fork() -> None:
    """The fork waits for it: half of it would be of no use to the child."""
    held = threading.Event()

    def instrument_slowly() -> None:
        with _registry_lock:
            held.set()
            time.sleep(0.05)

    other = threading.Thread(target=instrument_slowly)
    other.start()
    assert held.wait(10)
    child = os.fork()
    if not child:
        os._exit(0 if _registry_lock.acquire(timeout=5) else 1)
    other.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def holds_in_a_forked_child(powercap: PowercapTree, claim: Callable[[], bool]) -> bool:
    """Whether it holds in a child of a process that measures; it does not if it raises there."""
    energy = otel_llm_energy.instrument(tracer_provider=TracerProvider(), meters="rapl", powercap_root=powercap.root)
    child = os.fork()
    if not child:
        try:
            os._exit(0 if claim() else 1)
        finally:
            os._exit(2)
    energy.uninstrument()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def reads() -> bool:
    """Our threads run."""
    return any(thread.name.startswith("otel-llm-energy") for thread in threading.enumerate())


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_forked_child_starts_no_green_threads_before_its_first_call(
    powercap: PowercapTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under gevent to wait for them in the hook would run the parent's."""
    monkeypatch.setattr("otel_llm_energy.tracing.forks.threads_are_green", lambda: True)
    monkeypatch.setattr("otel_llm_energy.tracing.forks._UNTIL_EXEC_SECONDS", 600)

    def only_from_the_first_call_on() -> bool:
        before = reads()
        with otel_llm_energy.measure("work"):
            return not before and reads()

    assert holds_in_a_forked_child(powercap, only_from_the_first_call_on)


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
@pytest.mark.parametrize("green", [True, False])
def test_forked_child_starts_to_read_when_it_makes_no_call(
    powercap: PowercapTree, monkeypatch: pytest.MonkeyPatch, green: bool
) -> None:
    """Idle power is to be known by its first one."""
    monkeypatch.setattr("otel_llm_energy.tracing.forks.threads_are_green", lambda: green)
    monkeypatch.setattr("otel_llm_energy.tracing.forks._UNTIL_EXEC_SECONDS", 0)

    def in_the_end() -> bool:
        until(reads)
        return True

    assert holds_in_a_forked_child(powercap, in_the_end)


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_forked_child_reads_at_once_when_threads_are_the_systems(powercap: PowercapTree) -> None:
    """Who reads the meters for others is to know of it before its first call, which would be late else."""
    assert holds_in_a_forked_child(powercap, reads)

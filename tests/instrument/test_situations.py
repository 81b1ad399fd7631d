"""The one line in every situation: each a small app in a process of its own, its spans received by OTLP."""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from otel_llm_energy import conventions as names
from tests.instrument.running import REPOSITORY, Apps, joules, subtree_joules
from tests.support.otlp_receiver import OtlpReceiver

_DIGITS = 1e-5  # attributes are rounded to six


def assert_whole_tree(apps: Apps) -> None:
    """One call with joules, and both of its ancestors with the same as total."""
    (call,) = apps.calls()
    total = pytest.approx(joules(call), rel=_DIGITS)
    assert subtree_joules(apps.span("agent")) == total
    assert subtree_joules(apps.span("request")) == total
    assert call.parent_id == apps.span("agent").span_id


@pytest.mark.parametrize(
    "script",
    ["tracing_first.py", "tracing_after.py", "flushed.py", "twice.py", "by_hand.py", "without_metadata.py"],
)
def test_call_and_every_ancestor_get_their_joules(script: str, apps: Apps) -> None:
    """Tracing set up before or after the one line, or by hand; at exit without a shutdown, or flushed right away."""
    apps.run(script)
    assert_whole_tree(apps)
    assert len(apps.receiver.spans) == 3


def test_bare_http_calls_get_their_joules_when_no_client_library_makes_them(apps: Apps) -> None:
    """A POST of requests, and streams of httpx and aiohttp, each with the tokens that the server counted."""
    apps.run("bare_http.py")
    calls = apps.calls()
    assert [call.attributes["gen_ai.usage.output_tokens"] for call in calls] == [8, 8, 8]
    assert all(joules(call) > 0 for call in calls)


@pytest.mark.e2e
def test_first_call_is_noticed_at_the_latest_when_the_set_up_cannot_be_seen(apps: Apps) -> None:
    """From then on every ancestor has its total, and no call is without its joules."""
    apps.run("tracing_by_name.py")
    (first,), (second,) = apps.calls("first request"), apps.calls("second request")
    assert joules(first)
    assert subtree_joules(apps.span("second request")) == pytest.approx(joules(second), rel=_DIGITS)


@pytest.mark.parametrize("script", ["tracing_first.py", "tracing_after.py"])
def test_app_runs_as_ever_when_the_sdk_is_disabled(script: str, apps: Apps) -> None:
    """OTEL_SDK_DISABLED means us, too."""
    apps.run(script, OTEL_SDK_DISABLED="true")
    assert apps.receiver.spans == []


@pytest.mark.parametrize("protocol", ["", "grpc"])
def test_calls_are_exported_when_the_app_has_no_tracing_at_all(protocol: str, apps: Apps) -> None:
    """By OTLP over HTTP unless the standard variables say otherwise; metrics too."""
    receiver = apps.receiver
    endpoint = receiver.grpc_endpoint if protocol else receiver.http_endpoint
    apps.run("no_tracing.py", OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, OTEL_EXPORTER_OTLP_PROTOCOL=protocol)
    (call,) = apps.calls()
    assert set(receiver.requests) == {protocol or "http"}
    (consumption,) = {round(sum(p.value for p in receiver.metrics[names.CONSUMPTION.name]), 3)}
    assert consumption == pytest.approx(joules(call), abs=0.001)


@pytest.mark.e2e
def test_own_tracing_follows_the_standard_variables(apps: Apps) -> None:
    """Here: to the console, and no metrics."""
    printed = apps.run("no_tracing.py", OTEL_TRACES_EXPORTER="console", OTEL_METRICS_EXPORTER="none")
    assert json.loads(printed)["attributes"][names.JOULES] > 0
    assert (apps.receiver.spans, apps.receiver.metrics) == ([], {})


def test_calls_go_to_each_exporter_when_the_standard_variables_name_several(apps: Apps) -> None:
    """As with `opentelemetry-instrument`; the first alone got them."""
    printed = apps.run("no_tracing.py", OTEL_TRACES_EXPORTER="console, otlp", OTEL_METRICS_EXPORTER="console,otlp")
    (call,) = apps.calls()
    joules(call)
    assert names.JOULES in printed
    assert names.CONSUMPTION.name in apps.receiver.metrics
    assert names.CONSUMPTION.name in printed


def test_each_processor_gets_the_joules_when_they_run_in_a_pool(apps: Apps) -> None:
    """Also the one that was added after us, and though the pool is shut before any exit hook."""
    apps.run("pool.py")
    assert sorted(span.name for span in apps.receiver.spans) == sorted(2 * ["request", "agent", "chat smollm2-135m"])
    first, second = apps.calls()
    assert joules(first) == joules(second)


def test_ancestor_that_ends_before_a_background_child_gets_what_is_known(apps: Apps) -> None:
    """It says that something is missing; those that end later get the whole."""
    apps.run("background.py")
    (early,), (late,) = apps.calls("request"), apps.calls("task")
    request, job = apps.span("request"), apps.span("job")
    assert subtree_joules(apps.span("task")) == pytest.approx(joules(late), rel=_DIGITS)
    assert subtree_joules(request) == pytest.approx(joules(early), rel=_DIGITS)
    assert subtree_joules(job) == pytest.approx(joules(early) + joules(late), rel=_DIGITS)
    assert names.SUBTREE_INCOMPLETE not in job.attributes


def test_parent_and_child_measure_and_export_their_own_when_forked(apps: Apps) -> None:
    """Each call once, each with joules."""
    apps.run("forked.py")
    for name in ("before", "parent", "child"):
        (call,) = apps.calls(name)
        assert subtree_joules(apps.span(name)) == pytest.approx(joules(call), rel=_DIGITS)
    assert len(apps.receiver.spans) == 6


def test_calls_of_forked_workers_are_exported_when_their_pool_ends(apps: Apps) -> None:
    """Spans and metrics: such workers run no exit hook, neither the interpreter's nor the SDK's, nor their parent's."""
    apps.run("process_pool.py")
    assert len([joules(call) for call in apps.calls()]) == 4
    assert sum(point.value for point in apps.receiver.metrics[names.CONSUMPTION.name]) > 0


def test_async_calls_of_a_web_app_are_metered_when_it_sets_up_tracing_at_its_start(apps: Apps) -> None:
    """FastAPI's lifespan comes after the import of the one line."""
    apps.run("web.py")
    total = pytest.approx(sum(map(joules, apps.calls())), rel=_DIGITS)
    assert len(apps.calls()) == 2
    assert subtree_joules(apps.span("middleware")) == total


@pytest.mark.e2e
def test_calls_are_metered_when_logfire_is_configured_again(apps: Apps) -> None:
    """Its second configuration makes a new pipeline under the same provider."""
    apps.run("logfire_twice.py", LOGFIRE_IGNORE_NO_CONFIG="1")
    for name in ("first", "second"):
        (call,) = apps.calls(name)
        assert subtree_joules(apps.span(name)) == pytest.approx(joules(call), rel=_DIGITS)
    assert len([joules(call) for call in apps.calls()]) == 3


@pytest.fixture
def distro(tmp_path: Path) -> str:
    """A folder that offers the SDK's own configurator to `opentelemetry-instrument`, as a distribution does."""
    info = tmp_path / "tiny_distro-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-distro\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[opentelemetry_configurator]\nconfigurator = opentelemetry.sdk._configuration:_OTelSDKConfigurator\n"
    )
    return str(tmp_path)


@pytest.mark.parametrize("with_distro", [False, True])
def test_calls_are_metered_without_a_line_of_code(with_distro: bool, distro: str, apps: Apps) -> None:
    """`opentelemetry-instrument`. Without a distribution it sets up no tracing: only calls have spans then."""
    launcher = (str(Path(sys.executable).with_name("opentelemetry-instrument")), sys.executable)
    protocol = "http/protobuf"
    packages = f"{REPOSITORY}:{REPOSITORY / 'instrumentation'}"
    settings = {"PYTHONPATH": f"{packages}:{distro}", "OTEL_TRACES_EXPORTER": "otlp"} if with_distro else {}
    apps.run(
        "plain.py", launcher=launcher, OTEL_EXPORTER_OTLP_PROTOCOL=protocol, OTEL_METRICS_EXPORTER="none", **settings
    )
    if with_distro:
        assert_whole_tree(apps)
    else:
        (call,) = apps.receiver.spans
        assert joules(call)


@contextmanager
def hanging() -> Iterator[tuple[str, threading.Semaphore]]:
    """A collector that accepts connections and never answers; and a semaphore of those it accepted."""
    accepted = threading.Semaphore(0)
    held: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            while True:
                try:
                    held.append(listener.accept()[0])
                except OSError:
                    return
                accepted.release()

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", accepted
        listener.shutdown(socket.SHUT_RDWR)
    for connection in held:
        connection.close()


def test_calls_are_not_delayed_when_a_simple_processors_collector_is_dead(apps: Apps) -> None:
    """All three answers are there while the first export still waits for its own."""
    with (
        hanging() as (endpoint, accepted),
        apps.running(
            "dead_collector.py", OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, OTEL_EXPORTER_OTLP_TIMEOUT="600"
        ) as app,
    ):
        assert app.stdout is not None
        assert app.stdout.readline() == "answered\n"
        assert accepted.acquire(timeout=30)
        assert not accepted.acquire(blocking=False)


def test_counters_hold_all_calls_when_one_in_a_hundred_is_sampled(apps: Apps, receiver: OtlpReceiver) -> None:
    """And a sampled call is billed what the others are, not what the unsampled ones beside it used."""
    count = int(apps.run("sampled.py"))
    sampled = [joules(call) for call in apps.calls()]
    points = receiver.metrics[names.OPERATION.name]
    assert sum(point.count for point in points) == count
    mean = sum(point.value for point in points) / count
    assert len(sampled) == count // 10
    assert sum(sampled) / len(sampled) == pytest.approx(mean, rel=0.5)
    metered, consumed, left = (
        sum(point.value for point in receiver.metrics[metric.name])
        for metric in (names.METERED, names.CONSUMPTION, names.UNATTRIBUTED)
    )
    assert consumed == pytest.approx(mean * count)
    assert metered == pytest.approx(consumed + left, rel=1e-9)

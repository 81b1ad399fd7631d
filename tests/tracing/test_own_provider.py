"""The end of tracing that was set up for an app that has none."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

from otel_llm_energy.tracing.own_provider import _metric_exporter, _ShutDownTogether, _span_exporter

_SECONDS = 20


_APP = """
from otel_llm_energy.tracing.own_provider import set_up_tracing

set_up_tracing().get_tracer("app").start_span("first call").end()
"""


_FORKS = """
import os
from otel_llm_energy.tracing.own_provider import set_up_tracing

provider = set_up_tracing()
if os.fork():
    os.wait()
else:
    provider.get_tracer("app").start_span("of the child").end()
"""


class Meeting:
    """Where the ends of spans and of metrics wait for each other, as each would for a collector that is not there."""

    def __init__(self) -> None:
        self.both = threading.Barrier(2)
        self.ended: list[str] = []

    def come(self, who: str) -> None:
        self.both.wait(_SECONDS)
        self.ended.append(who)


class Spans(SpanProcessor):
    def __init__(self, meeting: Meeting) -> None:
        self.meeting = meeting

    def shutdown(self) -> None:
        self.meeting.come("spans")


class Metrics(InMemoryMetricReader):
    def __init__(self, meeting: Meeting) -> None:
        super().__init__()
        self.meeting = meeting

    def shutdown(self, timeout_millis: float = 30_000, **_: object) -> None:
        self.meeting.come("metrics")


def test_spans_and_metrics_end_at_once_when_the_interpreter_exits() -> None:
    """With a dead collector each takes seven seconds, and the app ends no later than with one of them."""
    meeting = Meeting()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(Spans(meeting))
    _ShutDownTogether(provider, MeterProvider([Metrics(meeting)], shutdown_on_exit=False))()
    assert sorted(meeting.ended) == ["metrics", "spans"]


def test_nothing_is_ended_twice_when_the_app_has_shut_its_metrics_down(caplog: pytest.LogCaptureFixture) -> None:
    """The SDK would complain."""
    meter_provider = MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False)
    hook = _ShutDownTogether(TracerProvider(shutdown_on_exit=False), meter_provider)
    meter_provider.shutdown()
    hook()
    assert caplog.messages == []


def test_nothing_is_said_when_hooks_cannot_be_taken_away_at_the_exit() -> None:
    """As from Python 3.14 on: the providers' own hooks ran after ours, and the SDK complained. (Played on others.)"""
    done = _run_app("import atexit\natexit.unregister = lambda hook: None\n" + _APP)
    assert "first call" in done.stdout
    assert done.stderr == ""


def test_spans_leave_a_forked_child_when_it_exits() -> None:
    """It has not the thread that would end its metrics meanwhile."""
    done = _run_app(_FORKS)
    assert done.stdout.count('"name": "of the child"') == 1
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("variable", "said", "exported"),
    [
        ("OTEL_METRIC_EXPORT_INTERVAL", "Metrics are not exported: what the OTEL_... variables ask for", True),
        ("OTEL_BSP_SCHEDULE_DELAY", "Spans are not exported: what the OTEL_... variables ask for", False),
    ],
)
def test_wrong_variable_costs_no_more_than_it_is_for(variable: str, said: str, exported: bool) -> None:
    """The SDK raises for it: the span of the first call was lost, or tracing was tried anew at each call."""
    done = _run_app(**{variable: "0"})
    assert (said in done.stderr, "first call" in done.stdout) == (True, exported), done.stderr


def test_file_that_would_configure_tracing_is_said_not_to_be_heeded() -> None:
    """Else its spans are missing at the place that it names, and nothing says why."""
    done = _run_app(OTEL_CONFIG_FILE="otel.yaml")
    assert "OTEL_CONFIG_FILE is not heeded" in done.stderr
    assert "first call" in done.stdout


def test_spans_go_nowhere_when_that_is_asked_for() -> None:
    """Not even in vain to a collector on this machine, which would be complained of."""
    done = _run_app(OTEL_TRACES_EXPORTER="none", OTEL_METRICS_EXPORTER="none")
    assert (done.stdout, done.stderr) == ("", "")


def test_spans_go_to_the_exporters_that_are_known_when_others_are_named() -> None:
    """What is not known here is said."""
    done = _run_app(OTEL_TRACES_EXPORTER="zipkin, Console", OTEL_METRICS_EXPORTER="none")
    assert "first call" in done.stdout
    assert "OTEL_TRACES_EXPORTER=zipkin,console is not known here." in done.stderr
    assert done.stderr.endswith("Using console.\n")


@pytest.mark.parametrize(("spans", "metrics"), [("grpc", "http"), ("http", "grpc")])
def test_protocol_is_that_of_the_signal_when_it_has_one_of_its_own(
    spans: str, metrics: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else that of all signals."""
    signal = "TRACES" if spans == "grpc" else "METRICS"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    monkeypatch.setenv(f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL", "grpc")
    for exporter, protocol in ((_span_exporter("otlp"), spans), (_metric_exporter("otlp"), metrics)):
        assert f".proto.{protocol}." in type(exporter).__module__
        exporter.shutdown()


def _run_app(app: str = _APP, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", app],
        env={**os.environ, "OTEL_TRACES_EXPORTER": "console", "OTEL_METRICS_EXPORTER": "console", **settings},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

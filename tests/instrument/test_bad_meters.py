"""A Scaphandre URL behind which anything but Scaphandre answers: the app notices nothing, and its spans say so."""

from __future__ import annotations

import logging
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import pytest
from openai import OpenAI
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import otel_llm_energy
from otel_llm_energy import conventions as names
from tests.instrument.asking import ask, calls
from tests.meters.exporters import Answer, exporter, page, say
from tests.support.children import free_port
from tests.support.powercap import PowercapTree
from tests.support.waiting import until

MAX_HOLD_SECONDS = 1.5
RECORDED = Path(__file__).parents[1] / "meters" / "fixtures" / "two-sockets-0.txt"


def hang(connection: socket.socket) -> None:
    """Never answer: until the client hangs up."""
    connection.settimeout(60)
    with suppress(OSError):
        connection.recv(1)


def endless(connection: socket.socket) -> None:
    """Promise 1 GB, and send as much as is taken."""
    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n")
    line = b'scaph_host_something{a="b"} 1\n' * 2000
    for _ in range(1_000_000_000 // len(line)):
        connection.sendall(line)


def truncated(connection: socket.socket) -> None:
    """Hang up after a part of what was promised."""
    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 5000\r\n\r\nscaph_host_energy_micro")


BAD: dict[str, Answer] = {
    "meter-timeout": hang,
    "meter-http-error": say(page(b"oops", "500 Internal Server Error")),
    "meter-garbage": say(page(b"<html>welcome</html>")),
    "meter-truncated": truncated,
    "meter-too-large": endless,
}


@pytest.fixture(scope="module", autouse=True)
def _no_thread_of_ours_remains() -> Iterator[None]:
    """Threads of ours are gone after these tests, also those that hung in a socket. Earlier tests' may be there yet."""
    threads_before = set(threading.enumerate())
    yield

    def ours() -> list[threading.Thread]:
        return [t for t in set(threading.enumerate()) - threads_before if t.name.startswith("otel-llm-energy")]

    until(lambda: not ours(), 10)


@contextmanager
def refusing() -> Iterator[str]:
    """An address at which nobody listens."""
    yield f"http://127.0.0.1:{free_port()}/metrics"


@contextmanager
def answering(*answers: Answer | bytes) -> Iterator[str]:
    with exporter(*answers) as server:
        yield server.url


def bad_meter(reason: str) -> AbstractContextManager[str]:
    return refusing() if reason == "meter-refused" else answering(BAD[reason])


@pytest.mark.parametrize("reason", ["meter-refused", *BAD])
def test_app_gets_the_same_answer_and_its_span_says_why_when_the_meter_is_bad(
    reason: str,
    client: OpenAI,
    provider: TracerProvider,
    exporter: InMemorySpanExporter,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """No exception, no other answer, no lost span, no joules that nobody measured, and no flood of logs."""
    expected = ask(client)
    with bad_meter(reason) as url, caplog.at_level(logging.INFO):
        energy = otel_llm_energy.instrument(
            tracer_provider=provider, meters="scaphandre", scaphandre_url=url, max_hold=MAX_HOLD_SECONDS
        )
        try:
            until(lambda: bool(energy.status().left_out))
            assert ask(client) == expected
            assert ask(client) == expected
            until(lambda: len(calls(exporter)) == 2)
        finally:
            energy.uninstrument()
    for span in calls(exporter):
        attributes = span.attributes or {}
        assert attributes[names.QUALITY] == "unavailable"
        assert attributes[names.REASON] == reason
        assert names.JOULES not in attributes
    assert_quiet(caplog)


def test_span_leaves_within_the_bound_when_the_meter_hangs_from_the_start(
    client: OpenAI, provider: TracerProvider, exporter: InMemorySpanExporter
) -> None:
    """The first call comes while the exporter is still being asked."""
    with answering(hang) as url:
        energy = otel_llm_energy.instrument(
            tracer_provider=provider, meters="scaphandre", scaphandre_url=url, max_hold=MAX_HOLD_SECONDS
        )
        try:
            ask(client)
            until(lambda: len(calls(exporter)) == 1, MAX_HOLD_SECONDS + 5)
        finally:
            energy.uninstrument()
    (span,) = calls(exporter)
    assert (span.attributes or {})[names.QUALITY] == "unavailable"
    assert (span.attributes or {})[names.REASON]


def test_span_leaves_within_the_bound_when_the_meter_fails_after_it_worked(
    client: OpenAI, provider: TracerProvider, exporter: InMemorySpanExporter
) -> None:
    """A good page at first, then errors: no reading covers the call, and the span says which error it was."""
    with answering(RECORDED.read_bytes(), BAD["meter-http-error"]) as url:
        energy = otel_llm_energy.instrument(
            tracer_provider=provider, meters="scaphandre", scaphandre_url=url, max_hold=MAX_HOLD_SECONDS
        )
        try:
            until(lambda: bool(energy.status().channels))
            ask(client)
            until(lambda: len(calls(exporter)) == 1, MAX_HOLD_SECONDS + 5)
            until(lambda: any(channel.problem for channel in energy.status().channels))
            ask(client)
            until(lambda: len(calls(exporter)) == 2, MAX_HOLD_SECONDS + 5)
        finally:
            energy.uninstrument()
    before, after = [span.attributes or {} for span in calls(exporter)]
    assert names.JOULES not in before
    assert names.JOULES not in after
    assert (after[names.QUALITY], after[names.REASON]) == ("unavailable", "meter-http-error")


def test_span_leaves_within_the_bound_when_the_counters_become_unreadable(
    client: OpenAI, provider: TracerProvider, exporter: InMemorySpanExporter, manual_powercap: PowercapTree
) -> None:
    """A driver that is unloaded under way: the call itself is untouched, though it takes readings at its edges."""
    energy = otel_llm_energy.instrument(
        tracer_provider=provider, meters="rapl", powercap_root=manual_powercap.root, max_hold=MAX_HOLD_SECONDS
    )
    try:
        until(lambda: bool(energy.status().channels))
        expected = ask(client)
        for counter in manual_powercap.root.glob("*/energy_uj"):
            counter.write_text("")
        assert ask(client) == expected
        until(lambda: len(calls(exporter)) == 2, MAX_HOLD_SECONDS + 5)
    finally:
        energy.uninstrument()
    attributes = calls(exporter)[-1].attributes or {}
    assert (attributes[names.QUALITY], attributes[names.REASON]) == ("unavailable", "meter-unreadable")


def assert_quiet(caplog: pytest.LogCaptureFixture) -> None:
    """No kind of line twice: none of these tests takes a minute."""
    ours = [record for record in caplog.records if record.name.startswith(("otel_llm", "opentelemetry"))]
    said = Counter((record.name, record.msg) for record in ours)
    assert all(times == 1 for times in said.values()), said

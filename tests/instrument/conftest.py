"""What tests of the one line need: an app's answers without it, and its spans with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.conftest import LlamaServerFactory
from tests.instrument.running import Apps
from tests.support.otlp_receiver import OtlpReceiver, receiving_otlp
from tests.support.powercap import PowercapTree


@pytest.fixture
def client(llama_server: LlamaServerFactory) -> Iterator[OpenAI]:
    """The plain OpenAI client of an app, aimed at the real llama.cpp server."""
    with OpenAI(base_url=llama_server().base_url, api_key="unused") as openai:
        yield openai


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    """What the app's own tracing exports."""
    return InMemorySpanExporter()


@pytest.fixture
def provider(exporter: InMemorySpanExporter) -> Iterator[TracerProvider]:
    """The app's own tracing; not the global one, so that tests do not meet."""
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield provider
    provider.shutdown()


@pytest.fixture
def receiver() -> Iterator[OtlpReceiver]:
    """Where apps export to."""
    with receiving_otlp() as receiver:
        yield receiver


@pytest.fixture
def apps(llama_server: LlamaServerFactory, powercap: PowercapTree, receiver: OtlpReceiver, tmp_path: Path) -> Apps:
    """Runs small apps, which share their metering with each other and with no other process."""
    return Apps(llama_server().base_url, powercap, receiver, tmp_path / "board")

"""A test of the app that freezes time: what is measured goes on, here and in other processes."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from openai import OpenAI
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from otel_llm_energy import conventions as names
from tests.instrument.asking import ask, calls, measuring
from tests.support.powercap import PowercapTree

_NEW_YEAR_NS = 1_577_880_000_000_000_000


def test_calls_are_measured_when_time_is_frozen(
    client: OpenAI,
    provider: TracerProvider,
    exporter: InMemorySpanExporter,
    powercap: PowercapTree,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As freezegun does it: whoever asks the clock by its name is told another time; after that all is as before."""
    with monkeypatch.context() as frozen:
        frozen.setattr(time, "monotonic_ns", lambda: _NEW_YEAR_NS)
        with measuring(provider, powercap, board=tmp_path / "board") as energy:
            ask(client)
            energy.force_flush()
            frozen.undo()
            ask(client)
            energy.force_flush()
    said = [call.attributes or {} for call in calls(exporter)]
    assert len(said) == 2
    assert all(names.JOULES in each and each.get(names.REASON) != "gap" for each in said), said

"""The three ways to share idle energy, from the setting to the span, with a real server and counters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from openai import OpenAI
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import otel_llm_energy
from otel_llm_energy import conventions as names
from tests.instrument.asking import ask, calls
from tests.support.powercap import PowercapTree
from tests.support.waiting import until

IDLE_WATTS = {"package-0": 20.0, "package-0/dram": 2.0}


def call_billed_with(
    idle: str, client: OpenAI, provider: TracerProvider, exporter: InMemorySpanExporter, powercap: PowercapTree
) -> tuple[Mapping[str, Any], int]:
    """What the span of a lone call says, and the idle energy that is nobody's, nJ."""
    energy = otel_llm_energy.instrument(
        tracer_provider=provider,
        meters="rapl",
        powercap_root=powercap.root,
        idle=idle,  # type: ignore[arg-type]
        idle_watts=IDLE_WATTS,
        detail="full",
    )
    try:
        until(lambda: bool(energy.status().channels))
        ask(client)
        ask(client, max_tokens=24)
        until(lambda: len(calls(exporter)) == 2)
        unattributed_nj = sum(each.balance.unattributed_nj.get("idle", 0) for each in energy.status().channels)
    finally:
        energy.uninstrument()
    return calls(exporter)[-1].attributes or {}, unattributed_nj


def test_idle_of_its_time_is_a_calls_when_idle_is_shared_by_time(
    client: OpenAI, provider: TracerProvider, exporter: InMemorySpanExporter, powercap: PowercapTree
) -> None:
    """A lone call gets all idle power while it is at work."""
    said, _ = call_billed_with("time", client, provider, exporter, powercap)
    work_seconds = said[names.JOULES] / said[names.MEAN_WATTS]
    idle_joules = said[names.JOULES] - said[names.ABOVE_IDLE_JOULES]
    assert idle_joules == pytest.approx(sum(IDLE_WATTS.values()) * work_seconds, rel=0.01)
    assert said[names.METHOD] == "above-idle/equal-time"


def test_idle_is_the_servers_part_when_idle_is_shared_by_activity(
    client: OpenAI, provider: TracerProvider, exporter: InMemorySpanExporter, powercap: PowercapTree
) -> None:
    """As much of idle as of what is above it: in both the server has its part of the CPU time."""
    said, unattributed_nj = call_billed_with("activity", client, provider, exporter, powercap)
    assert 0 < said[names.ABOVE_IDLE_JOULES] < said[names.JOULES]
    assert said[names.METHOD] == "above-idle/equal-time/idle-activity"
    assert unattributed_nj > 0


def test_idle_is_nobodys_when_it_is_not_shared(
    client: OpenAI, provider: TracerProvider, exporter: InMemorySpanExporter, powercap: PowercapTree
) -> None:
    """A call is what it added."""
    said, unattributed_nj = call_billed_with("none", client, provider, exporter, powercap)
    assert said[names.JOULES] == said[names.ABOVE_IDLE_JOULES] > 0
    assert said[names.METHOD] == "above-idle/equal-time/idle-none"
    work_seconds = said[names.JOULES] / said[names.MEAN_WATTS]
    assert unattributed_nj > sum(IDLE_WATTS.values()) * work_seconds * 1e9

"""A call that reached no server has no joules, though its span took a moment."""

from __future__ import annotations

import socket

import openai
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import otel_llm_energy
from otel_llm_energy import conventions as names
from tests.instrument.asking import calls
from tests.support.powercap import PowercapTree
from tests.support.waiting import until


def test_call_has_no_joules_when_nobody_listens_at_its_address(
    provider: TracerProvider, exporter: InMemorySpanExporter, powercap: PowercapTree
) -> None:
    """What other programs drew in that moment is not taken for its work."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    energy = otel_llm_energy.instrument(tracer_provider=provider, meters="rapl", powercap_root=powercap.root)
    try:
        until(lambda: bool(energy.status().channels))
        with pytest.raises(openai.APIConnectionError):
            openai.OpenAI(base_url=url, api_key="k", max_retries=0).chat.completions.create(model="m", messages=[])
        until(lambda: bool(calls(exporter)))
    finally:
        energy.uninstrument()
    attributes = dict(calls(exporter)[0].attributes or {})
    assert names.JOULES not in attributes
    assert (attributes[names.QUALITY], attributes[names.REASON]) == ("unavailable", "no-work")

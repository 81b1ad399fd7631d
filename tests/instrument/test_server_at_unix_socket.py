"""Calls through a Unix socket are billed to the processes that listen there, whatever host their URL names."""

from __future__ import annotations

import sys
from pathlib import Path

import httpx
import pytest
from openai import OpenAI
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from otel_llm_energy import conventions as names
from tests.instrument.asking import calls, measuring
from tests.support import model_at_socket
from tests.support.burner import burning
from tests.support.children import running
from tests.support.powercap import PowercapTree

_WORK_SECONDS = 0.8
_WATTS_PER_CPU = 66  # of the counters: 60 W, and a tenth of that for memory


def test_call_is_billed_to_the_sockets_process_when_its_url_says_localhost(
    tmp_path: Path, provider: TracerProvider, exporter: InMemorySpanExporter, powercap: PowercapTree
) -> None:
    """And for its work alone, beside another busy program; the second of two, when the server is known."""
    path = tmp_path / "llm.sock"
    command = [sys.executable, model_at_socket.__file__, str(path), str(_WORK_SECONDS)]
    client = OpenAI(
        base_url="http://localhost/v1",
        api_key="k",
        http_client=httpx.Client(transport=httpx.HTTPTransport(uds=str(path))),  # type: ignore[arg-type, unused-ignore]
    )
    with (
        running(command, path.exists, tmp_path / "server.log") as server,
        burning("stranger", tmp_path, duty=0.5),
        client,
        measuring(provider, powercap) as energy,
    ):
        for _ in range(2):
            client.chat.completions.create(model="m", messages=[])
        energy.force_flush()
        status = energy.status()
    assert status.servers[f"{path}:0"].pid == server.pid
    assert f"server {path}: model_at_socket (pid {server.pid})" in str(status)
    said = calls(exporter)[1].attributes or {}
    assert (said[names.SCOPE], said["server.address"]) == ("process", str(path))
    assert said[names.ABOVE_IDLE_JOULES] == pytest.approx(_WATTS_PER_CPU * _WORK_SECONDS, rel=0.15)

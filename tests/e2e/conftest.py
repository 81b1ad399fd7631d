"""A user's script as a child process, between a real model, the real Scaphandre and the real Jaeger."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e import stack
from tests.e2e import whole_way as way
from tests.support.backends import Jaeger, Ollama, Tempo, running_scaphandre, running_tempo
from tests.support.children import free_port
from tests.support.powercap import PowercapTree

if TYPE_CHECKING:
    from tests.conftest import LlamaServerFactory

RunApp = Callable[[str, str, Mapping[str, str]], None]

_APPS = Path(__file__).with_name("apps")
_APP_SECONDS = 100
_SETTINGS_OF_THE_OUTSIDE = ("OTEL_", "OPENAI_", "OLLAMA_")


@pytest.fixture(scope="session")
def run_app(
    jaeger: Jaeger, powercap: PowercapTree, tmp_path_factory: pytest.TempPathFactory, scaphandre_program: Path
) -> Iterator[RunApp]:
    """Runs a script of ``apps`` as this service, metered by the real Scaphandre, its spans going to Jaeger."""

    def run(script: str, service: str, env: Mapping[str, str]) -> None:
        with running_scaphandre(powercap.root, tmp_path_factory.mktemp(service)) as exporter:
            own = {key: value for key, value in os.environ.items() if not key.startswith(_SETTINGS_OF_THE_OUTSIDE)}
            settings = {
                "OTEL_SERVICE_NAME": service,
                "OTEL_EXPORTER_OTLP_ENDPOINT": jaeger.otlp_http,
                "OTEL_METRICS_EXPORTER": "none",
                "OTEL_LLM_ENERGY_METERS": "scaphandre",
                "OTEL_LLM_ENERGY_BOARD": str(tmp_path_factory.mktemp("board")),
                "OTEL_LLM_ENERGY_SCAPHANDRE_URL": exporter.url,
                "OTEL_LLM_ENERGY_DETAIL": "full",
                "OTEL_LLM_ENERGY_IDLE_CACHE": "off",
            }
            command = [sys.executable, str(_APPS / script)]
            environment = {**own, **settings, **env}
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=_APP_SECONDS, check=False
            )
        assert done.returncode == 0, done.stdout + done.stderr

    yield run


@pytest.fixture(scope="session")
def tempo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tempo]:
    """The real Tempo, which takes a quarter of a minute to start."""
    with running_tempo(tmp_path_factory.mktemp("tempo")) as backend:
        yield backend


@pytest.fixture(scope="session")
def whole_way(
    tmp_path_factory: pytest.TempPathFactory,
    llama_server: LlamaServerFactory,
    ollama: Ollama,
    powercap: PowercapTree,
    tempo: Tempo,
) -> Iterator[way.WholeWay]:
    """A service has asked both servers, and everything has arrived behind agent and gateway."""
    env = {
        "OPENAI_BASE_URL": llama_server().base_url,
        "OLLAMA_HOST": ollama.host,
        "APP_MODEL": ollama.model,
        "APP_QUESTIONS": str(way.QUESTIONS),
        "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "SPAN_ONLY",
        "APP_NOBODY": f"http://127.0.0.1:{free_port()}/v1",
        "OTEL_LLM_ENERGY_IDLE_WATTS": "package-0=20,package-0/dram=2",  # as the synthetic counters have it
        "OTEL_LLM_ENERGY_POWERCAP_ROOT": str(powercap.root),
    }
    with stack.running_stack(tmp_path_factory.mktemp("whole"), tempo) as behind, behind.jaeger() as jaeger:
        last_line = stack.run_app("whole_way.py", way.SERVICE, behind.agent.otlp_http, env)
        yield way.WholeWay(behind, jaeger, json.loads(last_line))

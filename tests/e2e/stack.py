"""The whole way as a fleet has it: app -> agent -> gateway -> Jaeger, Tempo and Prometheus, all real, on free ports."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tests.support.backends import (
    CONFIG,
    Collector,
    Jaeger,
    Prometheus,
    Tempo,
    running_jaeger,
    running_prometheus,
)
from tests.support.children import free_port

APPS = Path(__file__).with_name("apps")
_SETTINGS_OF_THE_OUTSIDE = ("OTEL_", "OPENAI_", "OLLAMA_")
_PATIENCE_SECONDS = 40
_APP_SECONDS = 110

_T = TypeVar("_T")


def awaited(find: Callable[[], _T], enough: Callable[[_T], bool]) -> _T:
    """What ``find`` gives once that is enough; after 40 s what it gives then, for the assertion to show."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not enough(found := find()) and time.monotonic() < deadline:
        time.sleep(0.5)
    return found


@dataclass
class Stack:
    """What runs, and the folder that it writes to."""

    folder: Path
    jaeger_port: int
    tempo: Tempo
    prometheus: Prometheus
    gateway: Collector
    agent: Collector

    @contextmanager
    def jaeger(self) -> Iterator[Jaeger]:
        """Jaeger, at the address that the gateway sends to all the time."""
        with running_jaeger(self.folder, self.jaeger_port) as jaeger:
            yield jaeger


@contextmanager
def running_stack(folder: Path, tempo: Tempo, sampling: Mapping[str, str] | None = None) -> Iterator[Stack]:
    """All but Jaeger, before a Tempo that runs already; with settings for the gateway's sampling, it samples."""
    with ExitStack() as stack:
        jaeger_port = free_port()
        prometheus = stack.enter_context(running_prometheus(CONFIG / "prometheus.yaml", folder))
        outlets = {"JAEGER": f"127.0.0.1:{jaeger_port}", "TEMPO": tempo.otlp_grpc, "PROMETHEUS": prometheus.url}
        files = ["gateway.yaml"] if sampling is None else ["gateway.yaml", "gateway-sampling.yaml"]
        gateway = _collector(stack, files, folder / "gateway", {**outlets, **(sampling or {})})
        agent = _collector(stack, ["agent.yaml"], folder / "agent", {"GATEWAY": gateway.otlp_grpc})
        yield Stack(folder, jaeger_port, tempo, prometheus, gateway, agent)


def _collector(stack: ExitStack, files: Sequence[str], folder: Path, env: Mapping[str, str]) -> Collector:
    folder.mkdir()
    return stack.enter_context(Collector(files, folder, env))


@contextmanager
def running_app(script: str, service: str, endpoint: str, env: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A script of ``apps`` as this service, exporting to ``endpoint`` at a quick pace; its words are on its stdout."""
    own = {key: value for key, value in os.environ.items() if not key.startswith(_SETTINGS_OF_THE_OUTSIDE)}
    settings = {
        "OTEL_SERVICE_NAME": service,
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "OTEL_EXPORTER_OTLP_TIMEOUT": "60",
        "OTEL_BSP_SCHEDULE_DELAY": "500",
        "OTEL_METRIC_EXPORT_INTERVAL": "500",
        "OTEL_LLM_ENERGY_DETAIL": "full",
        "OTEL_LLM_ENERGY_IDLE_CACHE": "off",
        "OPENAI_API_KEY": "unused",
    }
    with subprocess.Popen(
        [sys.executable, str(APPS / script)], env={**own, **settings, **env}, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def run_app(script: str, service: str, endpoint: str, env: Mapping[str, str]) -> str:
    """`running_app` to its end; its last line. Raises `AssertionError` if it failed."""
    with running_app(script, service, endpoint, env) as process:
        words, _ = process.communicate(timeout=_APP_SECONDS)
    assert process.returncode == 0, words
    return words.splitlines()[-1]

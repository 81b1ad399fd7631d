"""The real back ends on free loopback ports, each for the length of a ``with`` block."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from tests.support.children import answers, free_port, listens, running
from tests.support.hosts import Host
from tools.backends import binary, obtain, scaphandre_environment

OLLAMA_MODEL = "smollm2"

_HTTP_SECONDS = 10
CONFIG = Path(__file__).parents[2] / "collector-config"


@dataclass(frozen=True, slots=True)
class Scaphandre:
    """A running exporter. Any two requests less than 2 s apart leave its figures as they were.

    Attributes:
        url: of its metrics.
        pid: its process.
    """

    url: str
    pid: int


@contextmanager
def running_scaphandre(
    powercap_root: Path, log_folder: Path, host: Host | None = None, *options: str
) -> Iterator[Scaphandre]:
    """The real exporter over a powercap tree. Not a request is made: the first one is the caller's."""
    host = host or Host()
    port = free_port()
    listening = ["--vm", "--no-header", "prometheus", "--address", host.address, "--port", str(port)]
    command = [*host.enter, str(obtain("scaphandre")), *listening, *options]
    env = {"SCAPHANDRE_POWERCAP_PATH": str(powercap_root), **scaphandre_environment()}
    with running(command, lambda: listens(port, host.address), log_folder / "scaphandre.log", env) as process:
        yield Scaphandre(f"http://{host.address}:{port}/metrics", process.pid)


@contextmanager
def streaming_scaphandre(powercap_root: Path, file: Path, step_seconds: float = 0.25) -> Iterator[int]:
    """The real Scaphandre that writes its JSON records to ``file``; its process's number."""
    step = ["--step", "0", "--step-nano", str(round(step_seconds * 1e9))]
    command = [str(obtain("scaphandre")), "--vm", "--no-header", "json", *step, "--file", str(file)]
    env = {"SCAPHANDRE_POWERCAP_PATH": str(powercap_root), **scaphandre_environment()}
    with running(command, lambda: file.exists() and file.stat().st_size > 0, file.with_suffix(".log"), env) as process:
        yield process.pid


@dataclass(frozen=True, slots=True)
class Prometheus:
    """A running Prometheus that also takes remote writes and keeps exemplars.

    Attributes:
        url: base of its API.
        pid: its process.
    """

    url: str
    pid: int

    def query(self, promql: str) -> list[dict[str, Any]]:
        """The series of an instant query now, as ``/api/v1/query`` gives them."""
        return self.get("query", query=promql)["result"]  # type: ignore[no-any-return]

    def exemplars(self, selector: str) -> list[dict[str, Any]]:
        """The exemplars of these series over the last hour."""
        now = time.time()
        found = self.get("query_exemplars", query=selector, start=str(now - 3600), end=str(now + 60))
        return [exemplar for series in found for exemplar in series["exemplars"]]

    def get(self, path: str, **parameters: str) -> Any:
        """``data`` of any answer of the API. Raises `requests.HTTPError`, with Prometheus's own words."""
        answer = requests.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=_HTTP_SECONDS)
        if not answer.ok:
            raise requests.HTTPError(answer.text, response=answer)
        return answer.json()["data"]


@contextmanager
def running_prometheus(
    config: Path, folder: Path, port: int | None = None, *, address: str = "127.0.0.1", web_config: Path | None = None
) -> Iterator[Prometheus]:
    """The real Prometheus with a configuration, its data in ``folder``; on ``port``, or any that is free.

    With a ``web_config`` (TLS, users) it may not answer yet when it listens.
    """
    port = port or free_port()
    command = [
        str(obtain("prometheus")),
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'prometheus'}",
        f"--web.listen-address={address}:{port}",
        "--web.enable-remote-write-receiver",
        "--enable-feature=exemplar-storage",
        "--log.level=warn",
    ]
    if web_config is not None:
        command.append(f"--web.config.file={web_config}")
        url = f"https://{address}:{port}"
    else:
        url = f"http://{address}:{port}"

    def ready() -> bool:
        return answers(f"{url}/-/ready") if web_config is None else listens(port, address)

    with running(command, ready, folder / "prometheus.log") as process:
        yield Prometheus(url, process.pid)


@dataclass(frozen=True, slots=True)
class Jaeger:
    """A running Jaeger with an empty memory.

    Attributes:
        otlp_http: base URL for ``OTEL_EXPORTER_OTLP_ENDPOINT`` with ``http/protobuf``.
        otlp_grpc: the same with ``grpc``.
        api: base URL of the query API, which the web page uses too.
    """

    otlp_http: str
    otlp_grpc: str
    api: str

    def traces(self, service: str, tags: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
        """The traces of a service that hold a span with these tags, as ``/api/traces`` gives them."""
        query = {"service": service, "limit": "1000"}
        if tags:
            query["tags"] = json.dumps(tags)
        answer = requests.get(f"{self.api}/api/traces", params=query, timeout=_HTTP_SECONDS)
        answer.raise_for_status()
        found: list[dict[str, Any]] = answer.json()["data"]
        return found

    def await_traces(self, service: str, tags: Mapping[str, str] | None = None, count: int = 1) -> list[dict[str, Any]]:
        """`traces`, asked again until ``count`` are there. Raises `AssertionError` after 10 s."""
        deadline = time.monotonic() + _HTTP_SECONDS
        while len(found := self.traces(service, tags)) < count:
            if time.monotonic() > deadline:
                raise AssertionError(f"Jaeger has {len(found)} of {count} traces of {service} with {tags}.")
            time.sleep(0.1)
        return found


@contextmanager
def running_jaeger(folder: Path, otlp_grpc: int | None = None) -> Iterator[Jaeger]:
    """The real Jaeger, storage in memory; its OTLP over gRPC on a port that was chosen before, or any that is free.

    Raises:
        tools.backends.BackendError: it was never built.
    """
    otlp_http, api, api_grpc, health = (free_port() for _ in range(4))
    otlp_grpc = otlp_grpc or free_port()
    env = {
        "OTLP_HTTP": f"127.0.0.1:{otlp_http}",
        "OTLP_GRPC": f"127.0.0.1:{otlp_grpc}",
        "JAEGER_HTTP": f"127.0.0.1:{api}",
        "JAEGER_GRPC": f"127.0.0.1:{api_grpc}",
        "JAEGER_HEALTH": f"127.0.0.1:{health}",
        "JAEGER_UI": str(CONFIG / "jaeger-ui.json"),
    }
    command = [str(binary("jaeger")), "--config", str(CONFIG / "jaeger.yaml")]
    with running(command, lambda: all(map(listens, (api, otlp_http, otlp_grpc))), folder / "jaeger.log", env):
        yield Jaeger(
            otlp_http=f"http://127.0.0.1:{otlp_http}",
            otlp_grpc=f"http://127.0.0.1:{otlp_grpc}",
            api=f"http://127.0.0.1:{api}",
        )


@dataclass(frozen=True, slots=True)
class Ollama:
    """A running Ollama that has the model.

    Attributes:
        host: base URL, as in ``OLLAMA_HOST``.
        model: name of the model.
        pid: the process that listens; its child does the work.
    """

    host: str
    model: str
    pid: int


@contextmanager
def running_ollama(gguf: Path, folder: Path, parallel: int = 1, host: Host | None = None) -> Iterator[Ollama]:
    """The real Ollama with ``gguf`` imported, one thread, ``parallel`` requests at a time.

    Raises:
        tools.backends.BackendError: it was never built.
    """
    host = host or Host()
    port = free_port()
    program = binary("ollama")
    env = {
        "HOME": str(folder),  # it writes a key there
        "OLLAMA_HOST": f"{host.address}:{port}",
        "OLLAMA_MODELS": str(folder / "models"),
        "OLLAMA_NUM_PARALLEL": str(parallel),
    }
    modelfile = folder / "Modelfile"
    modelfile.write_text(f"FROM {gguf}\nPARAMETER num_thread 1\n")
    serve = [*host.enter, str(program), "serve"]
    with running(serve, lambda: listens(port, host.address), folder / "ollama.log", env) as process:
        create = [str(program), "create", OLLAMA_MODEL, "-f", str(modelfile)]
        subprocess.run(create, env=env, check=True, capture_output=True, timeout=60)
        yield Ollama(f"http://{host.address}:{port}", OLLAMA_MODEL, process.pid)


@dataclass(frozen=True, slots=True)
class Tempo:
    """A running Tempo with empty blocks.

    Attributes:
        url: base of its API.
        otlp_grpc: ``host:port`` of its receiver.
    """

    url: str
    otlp_grpc: str

    def search(self, traceql: str) -> list[dict[str, Any]]:
        """Traces that a query finds, as ``/api/search`` gives them; up to 1000, with up to 100 spans each."""
        asked = {"q": traceql, "limit": "1000", "spss": "100", **self._last_hour()}
        return self._get("/api/search", asked).get("traces", [])  # type: ignore[no-any-return]

    def metrics(self, traceql: str, step_seconds: int = 3600) -> list[dict[str, Any]]:
        """Series that a metrics query gives over the last hour."""
        asked = {"q": traceql, "step": f"{step_seconds}s", **self._last_hour()}
        return self._get("/api/metrics/query_range", asked).get("series", [])  # type: ignore[no-any-return]

    def totals(self, traceql: str) -> dict[tuple[str, ...], float]:
        """What a metrics query of sums gives over the last hour, by the values of its labels."""
        return {
            tuple(_label_value(label["value"]) for label in series["labels"] if label["key"] != "__name__"): sum(
                sample.get("value", 0.0) for sample in series["samples"]
            )
            for series in self.metrics(traceql)
        }

    def _get(self, path: str, parameters: Mapping[str, str]) -> Any:
        answer = requests.get(self.url + path, params=parameters, timeout=_HTTP_SECONDS)
        if not answer.ok:
            raise requests.HTTPError(answer.text, response=answer)
        return answer.json()

    @staticmethod
    def _last_hour() -> dict[str, str]:
        now = int(time.time())
        return {"start": str(now - 3600), "end": str(now + 60)}


def _label_value(value: Mapping[str, Any]) -> str:
    (text,) = value.values()
    return str(text)


@contextmanager
def running_tempo(folder: Path) -> Iterator[Tempo]:
    """The real Tempo, its blocks in ``folder``. Raises `tools.backends.BackendError` if it was never built."""
    http, grpc, otlp_grpc, otlp_http = (free_port() for _ in range(4))
    env = {
        "TEMPO_DIR": str(folder / "tempo"),
        "TEMPO_HTTP": str(http),
        "TEMPO_GRPC": str(grpc),
        "TEMPO_OTLP_GRPC": str(otlp_grpc),
        "TEMPO_OTLP_HTTP": str(otlp_http),
    }
    command = [str(binary("tempo")), f"-config.file={CONFIG / 'tempo.yaml'}", "-config.expand-env=true"]
    url = f"http://127.0.0.1:{http}"
    with running(command, lambda: answers(f"{url}/ready"), folder / "tempo.log", env, kill=True):
        yield Tempo(url, f"127.0.0.1:{otlp_grpc}")


class Collector:
    """A Collector with files of ``collector-config``, which can be killed and started again on the same ports.

    Args:
        files: names in ``collector-config``, merged in this order.
        folder: for its queue on disk and its log.
        env: where its exporters send to, and what else the files ask for.

    Attributes:
        otlp_grpc: ``host:port`` of its receiver.
        otlp_http: base URL of the same over HTTP.
    """

    def __init__(self, files: Sequence[str], folder: Path, env: Mapping[str, str]) -> None:
        grpc, http, self._health = (free_port() for _ in range(3))
        self.otlp_grpc = f"127.0.0.1:{grpc}"
        self.otlp_http = f"http://127.0.0.1:{http}"
        self._folder = folder
        self._command = [str(binary("otelcol"))]
        self._command += [word for name in files for word in ("--config", str(CONFIG / name))]
        self._env = {
            "QUEUE_DIR": str(folder / "queue"),
            "OTLP_GRPC": self.otlp_grpc,
            "OTLP_HTTP": f"127.0.0.1:{http}",
            "HEALTH": f"127.0.0.1:{self._health}",
            **env,
        }
        self._stack = ExitStack()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; ready when it returns. Raises `RuntimeError` with the end of its log if it ended."""
        log = self._folder / "otelcol.log"
        ready = f"http://127.0.0.1:{self._health}"
        self._process = self._stack.enter_context(running(self._command, lambda: answers(ready), log, self._env))

    def kill(self) -> None:
        """End it without a warning, as a crash does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._stack.close()

    def __enter__(self) -> Collector:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

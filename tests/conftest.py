"""Fixtures that every area shares: the real model, real servers, and power counters that follow real CPU use.

What is missing fails the test: a test that is skipped tests nothing. The one exception is Scaphandre on systems
that have no package of it, outside CI.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import pytest
from hypothesis import HealthCheck, settings

from otel_llm_energy.cli.model import ensure_model
from otel_llm_energy.cli.model_server import ModelServer, ServerOptions
from tests.support.backends import (
    Jaeger,
    Ollama,
    Scaphandre,
    running_jaeger,
    running_ollama,
    running_scaphandre,
)
from tests.support.fake_nvml import VARIABLE, FakeDriver, built, loaded
from tests.support.feeder import feeding
from tests.support.powercap import PowercapTree
from tools.backends import BackendError, obtain

# No test asserts how long something takes: others run beside it.
settings.register_profile("untimed", settings.default, deadline=None, suppress_health_check=(HealthCheck.too_slow,))
settings.load_profile("untimed")


@pytest.fixture(autouse=True, scope="session")
def _nothing_of_other_runs() -> Iterator[None]:
    """Tests learn from each other, and share meters with other processes, only where they say so."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_LLM_ENERGY_IDLE_CACHE", "off")
        patch.setenv("OTEL_LLM_ENERGY_BOARD", "off")
        yield


def pytest_collection_finish() -> None:
    """What is there by now stays: let no garbage collection of a test go through it again."""
    gc.collect()
    gc.freeze()


class LlamaServerFactory(Protocol):
    """Gives a running server with these options; asked again for the same options, the same server."""

    def __call__(self, *, slots: int = 1, threads: int = 1, embeddings: bool = False) -> ModelServer: ...


@pytest.fixture(scope="session")
def model_path() -> Path:
    """The GGUF file of the small real model, fetched if it is not in the cache."""
    return ensure_model()


@pytest.fixture(scope="session")
def llama_server(model_path: Path) -> Iterator[LlamaServerFactory]:
    """The real llama.cpp server, one process for each set of options that is asked for."""
    started: dict[ServerOptions, ModelServer] = {}
    with ExitStack() as stack:

        def server(*, slots: int = 1, threads: int = 1, embeddings: bool = False) -> ModelServer:
            asked = ServerOptions(model_path, slots=slots, threads=threads, embeddings=embeddings)
            if asked not in started:
                started[asked] = stack.enter_context(ModelServer(asked))
            return started[asked]

        yield server


@pytest.fixture
def manual_powercap(tmp_path: Path) -> Iterator[PowercapTree]:
    """A synthetic powercap tree whose counters stand still until the test sets them."""
    with PowercapTree(tmp_path / "powercap") as tree:
        yield tree


@pytest.fixture(scope="session")
def powercap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PowercapTree]:
    """A synthetic powercap tree whose counters follow the machine's real CPU use (20 W + 60 W for each busy CPU)."""
    with feeding(tmp_path_factory.mktemp("fed") / "powercap") as tree:
        yield tree


@pytest.fixture(scope="session")
def scaphandre_program() -> Path:
    """The real Scaphandre, fetched if it is not in the cache."""
    try:
        return obtain("scaphandre")
    except BackendError as err:
        if "CI" in os.environ or Path("/etc/debian_version").exists():
            raise
        pytest.skip(f"NOT TESTED, no Scaphandre: {err}")


@pytest.fixture
def scaphandre(scaphandre_program: Path, powercap: PowercapTree, tmp_path: Path) -> Iterator[Scaphandre]:
    """The real Scaphandre exporter over `powercap`; a fresh process, since requests of another test would freeze it."""
    with running_scaphandre(powercap.root, tmp_path) as exporter:
        yield exporter


@pytest.fixture(scope="session")
def gpu_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that plays NVIDIA's driver, in this process from now on. No GPU is measured with it."""
    library = built(tmp_path_factory.mktemp("nvml"))
    loaded(library)
    return library


@pytest.fixture
def gpu_driver(gpu_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    """What that driver answers: it has one GPU, with an energy counter."""
    driver = FakeDriver(tmp_path / "nvml.txt")
    driver.say(
        count=1, gpu0_energy_mj=5_000_000, gpu0_power_mw=50_000, gpu0_limit_mw=300_000, gpu0_pstate=0, gpu0_busy=0
    )
    monkeypatch.setenv(VARIABLE, str(driver.path))
    return driver


@pytest.fixture(scope="session")
def jaeger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jaeger]:
    """The real Jaeger, storage in memory. For tests marked e2e."""
    with running_jaeger(tmp_path_factory.mktemp("jaeger")) as backend:
        yield backend


@pytest.fixture(scope="session")
def ollama(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ollama]:
    """The real Ollama with the small model, one request at a time. For tests marked e2e."""
    with running_ollama(model_path, tmp_path_factory.mktemp("ollama")) as server:
        yield server

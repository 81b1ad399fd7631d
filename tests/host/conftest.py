"""What tests of the board need: an app of several processes, and folders to meet in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import LlamaServerFactory
from tests.host.workers import Crew, crew
from tests.support.powercap import PowercapTree


@pytest.fixture
def workers(llama_server: LlamaServerFactory, powercap: PowercapTree, tmp_path: Path) -> Iterator[Crew]:
    """Processes that ask a real model and share the metering by counters that follow the real CPU use."""
    with crew(llama_server(slots=2).base_url, powercap.root, tmp_path / "board") as hired:
        yield hired

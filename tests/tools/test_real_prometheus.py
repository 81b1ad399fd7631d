"""Prometheus comes with its checker and runs a configuration."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import requests

from tests.support.backends import running_prometheus
from tests.support.children import free_port
from tools.backends import obtain, promtool

_CONFIG = """\
global: {{scrape_interval: 1s}}
scrape_configs:
  - job_name: itself
    static_configs: [{{targets: ["127.0.0.1:{port}"]}}]
"""


def test_prometheus_answers_when_it_is_started_with_a_configuration(tmp_path: Path) -> None:
    """What was fetched starts with a file that its checker approves, and says what is wrong with a query."""
    port = free_port()
    config = tmp_path / "prometheus.yml"
    config.write_text(_CONFIG.format(port=port))
    obtain("prometheus")
    subprocess.run([promtool(), "check", "config", str(config)], check=True, capture_output=True)
    with running_prometheus(config, tmp_path, port) as prometheus:
        assert "job_name: itself" in prometheus.get("status/config")["yaml"]
        assert prometheus.query("vector(7)")[0]["value"][1] == "7"
        with pytest.raises(requests.HTTPError, match="parse error"):
            prometheus.query("not {{ a query")

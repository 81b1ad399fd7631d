"""Every file of ``collector-config`` is read by the program that it is for; Grafana's and compose's by us."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.backends import CONFIG
from tools.backends import binary, promtool
from tools.dashboards import FLEET

pytestmark = pytest.mark.e2e

_PRODUCTION = CONFIG.parent / "docs" / "production.md"
_PROVISIONING = CONFIG / "grafana" / "provisioning"


def _check(command: Sequence[str | Path], env: Mapping[str, str] | None = None) -> None:
    done = subprocess.run(
        [str(word) for word in command],
        cwd=CONFIG.parent,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


@pytest.mark.parametrize(
    "files",
    [
        ["agent.yaml"],
        ["agent.yaml", "agent-scaphandre.yaml"],
        ["gateway.yaml"],
        ["gateway.yaml", "gateway-sampling.yaml"],
    ],
    ids=lambda files: files[-1],
)
def test_collector_accepts_its_files_when_it_validates_them(files: list[str], tmp_path: Path) -> None:
    """Alone and on top of each other."""
    named = [word for name in files for word in ("--config", CONFIG / name)]
    _check([binary("otelcol"), "validate", *named], {"QUEUE_DIR": str(tmp_path)})


def test_jaeger_accepts_its_file_when_it_validates_it() -> None:
    """With the page's own settings, found from the top of the checkout."""
    _check([binary("jaeger"), "validate", "--config", CONFIG / "jaeger.yaml"])


def test_tempo_accepts_its_file_when_it_verifies_it() -> None:
    """With the defaults of all its variables."""
    _check([binary("tempo"), f"-config.file={CONFIG / 'tempo.yaml'}", "-config.expand-env=true", "-config.verify=true"])


def test_tempo_3_takes_the_variables_of_tempo_2_and_nothing_that_was_removed_when_it_is_used_instead() -> None:
    """All that can be held to without a Tempo 3: its migration guide names the blocks that it refuses."""
    old, new = ((CONFIG / name).read_text() for name in ("tempo.yaml", "tempo-3.yaml"))
    assert set(re.findall(r"\$\{(\w+)", new)) == set(re.findall(r"\$\{(\w+)", old))
    assert not set(yaml.safe_load(new)) & {"ingester", "ingester_client", "compactor", "metrics_generator_client"}
    assert "local_blocks" not in new


@pytest.mark.parametrize(
    "words",
    [
        ["check", "config", "prometheus.yaml"],
        ["check", "rules", "prometheus-rules.yaml"],
        ["test", "rules", "prometheus-rules-test.yaml"],
    ],
    ids=" ".join,
)
def test_prometheus_accepts_its_files_when_promtool_checks_them(words: list[str]) -> None:
    """Configuration and rules are read, and each rule and alert does on made-up series what it is to do."""
    _check([promtool(), *words[:-1], CONFIG / words[-1]])


_CONSUMED = "llm_energy_consumption_joules_total"


def test_last_hours_joules_are_right_when_an_outage_lies_where_the_hour_begins(tmp_path: Path) -> None:
    """All that a process had counted in eight hours was in the last one. Of others, one begins and one ends amid it."""
    page = (CONFIG.parent / "docs" / "backends" / "prometheus.md").read_text()
    (documented,) = re.findall(r"^\| joules of the last hour, by model \| `(.+?)`", page, re.MULTILINE)
    (panel,) = [panel for panel in FLEET.panels if panel.title.startswith("Energy in this range of time")]
    drawn = panel.queries[0].text.replace("$__range", "1h").replace("$service", ".+")
    by_model = {
        "outage": ("0+60x474 _x12 29220+60x60", 3960),  # what was counted in the outage cannot be told apart
        "whole": ("0+60x560", 3600),
        "ended": ("0+60x520 _x60", 2400),
        "begun": ("_x520 60+60x60", 1260),
    }
    series = [
        {"series": f'{_CONSUMED}{{gen_ai_request_model="{model}", job="app"}}', "values": counted}
        for model, (counted, _) in by_model.items()
    ]
    right = [
        {"labels": f'{{gen_ai_request_model="{model}"}}', "value": value} for model, (_, value) in by_model.items()
    ]
    asked = [{"expr": query, "eval_time": "9h", "exp_samples": right} for query in (documented, drawn)]
    tests = tmp_path / "tests.yaml"
    tests.write_text(yaml.safe_dump({"tests": [{"interval": "1m", "input_series": series, "promql_expr_test": asked}]}))
    _check([promtool(), "test", "rules", tests])


def test_every_alert_is_tried_when_rules_are_tested() -> None:
    """No alert is shipped that no made-up series sets off, and none is shipped that always is."""
    groups = _yaml(CONFIG / "prometheus-rules.yaml")["groups"]
    alerts = {rule["alert"] for group in groups for rule in group["rules"] if "alert" in rule}
    tried = [case for test in _yaml(CONFIG / "prometheus-rules-test.yaml")["tests"] for case in _alert_tests(test)]
    assert {case["alertname"] for case in tried if case["exp_alerts"]} == alerts


def _alert_tests(test: Mapping[str, Any]) -> list[dict[str, Any]]:
    cases: list[dict[str, Any]] = test.get("alert_rule_test", [])
    return cases


def test_exporters_wait_for_ever_and_on_disk_when_a_back_end_is_away() -> None:
    """No exporter of spans gives up, and what it holds outlives the Collector."""
    for name in ("agent.yaml", "gateway.yaml"):
        exporters = _yaml(CONFIG / name)["exporters"]
        spans = {key: exporter for key, exporter in exporters.items() if key.startswith("otlp")}
        assert spans
        for exporter in spans.values():
            assert exporter["retry_on_failure"]["max_elapsed_time"] == 0
            assert exporter["sending_queue"]["storage"] == "file_storage"


def test_grafana_is_told_of_sources_that_dashboards_use_when_it_starts() -> None:
    """The sources' uids are those that panels name, and exemplars lead to one of them."""
    sources = _yaml(_PROVISIONING / "datasources" / "otel-llm-energy.yaml")["datasources"]
    uids = {source["uid"] for source in sources}
    assert uids == {"prometheus", "tempo", "jaeger"}
    used = set()
    for path in (CONFIG / "grafana" / "dashboards").glob("*.json"):
        used |= set(re.findall(r'"uid": "(prometheus|tempo|jaeger|[^"]*-ds)"', path.read_text()))
    assert used <= uids
    (prometheus,) = (source for source in sources if source["type"] == "prometheus")
    assert prometheus["jsonData"]["exemplarTraceIdDestinations"] == [{"name": "trace_id", "datasourceUid": "tempo"}]


def test_compose_mounts_files_that_are_there_when_it_starts_all() -> None:
    """Each file that a command names is in this folder; addresses between services name services; ports are local."""
    services = _yaml(CONFIG / "compose.yaml")["services"]
    assert set(services) == {"gateway", "jaeger", "tempo", "prometheus", "grafana"}
    for name, service in services.items():
        for word in service.get("command", ()):
            path = word.partition("=")[2]
            if path.startswith("/etc/"):
                assert (CONFIG / Path(path).name).is_file(), f"{name}: {path}"
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    for key in ("JAEGER", "TEMPO", "PROMETHEUS"):
        host = services["gateway"]["environment"][key].removeprefix("http://").partition(":")[0]
        assert host in services


def _yaml_blocks(page: Path) -> list[str]:
    return re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL)


def test_prometheus_accepts_the_scraping_of_a_cluster_when_promtool_checks_it(tmp_path: Path) -> None:
    """As the production page has it."""
    (scraping,) = (block for block in _yaml_blocks(_PRODUCTION) if block.startswith("scrape_configs:"))
    (tmp_path / "prometheus.yaml").write_text(scraping)
    _check([promtool(), "check", "config", tmp_path / "prometheus.yaml"])


def test_daemon_set_is_allowed_to_list_pods_when_it_runs_as_the_account_that_it_names() -> None:
    """The production page's objects, which no cluster has seen, name each other."""
    (manifest,) = (block for block in _yaml_blocks(_PRODUCTION) if "kind: DaemonSet" in block)
    objects = {each["kind"]: each for each in yaml.safe_load_all(manifest)}
    pod = objects["DaemonSet"]["spec"]["template"]
    account = objects["ServiceAccount"]["metadata"]
    assert pod["spec"]["serviceAccountName"] == account["name"]
    (subject,) = objects["ClusterRoleBinding"]["subjects"]
    assert subject == {"kind": "ServiceAccount", **account}
    assert objects["ClusterRoleBinding"]["roleRef"]["name"] == objects["ClusterRole"]["metadata"]["name"]
    assert objects["DaemonSet"]["spec"]["selector"]["matchLabels"] == pod["metadata"]["labels"]
    (container,) = pod["spec"]["containers"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        volume["name"] for volume in pod["spec"]["volumes"]
    }

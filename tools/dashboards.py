"""Grafana's dashboards, as the JSON files below ``collector-config/grafana/dashboards``, from one table of panels.

``python -m tools.dashboards`` writes them. The end-to-end tests run every query of every panel.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

FOLDER: Final = Path(__file__).parents[1] / "collector-config" / "grafana" / "dashboards"

_COLUMNS: Final = 24
_HEIGHT: Final = 8
_SERVICE_OF_METRICS: Final = 'job=~"$service"'
_SERVICE_OF_SPANS: Final = 'resource.service.name =~ "$service"'
_BY_SERVER: Final = "gen_ai_request_model, server_address, server_port"

Source = Literal["prometheus", "tempo"]


@dataclass(frozen=True, slots=True)
class Query:
    """One query of a panel.

    Attributes:
        text: PromQL or TraceQL.
        legend: name of a series: Prometheus' labels in double braces, else a word.
        instant: one value for the whole range of time instead of a course.
        search: TraceQL that finds spans, rather than one that makes a course.
    """

    text: str
    legend: str = ""
    instant: bool = False
    search: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture: what it shows, what it says about itself, and where its figures come from."""

    title: str
    description: str
    source: Source
    queries: tuple[Query, ...]
    kind: Literal["timeseries", "bargauge", "table"] = "timeseries"
    unit: str = "joule"
    width: int = 12
    stacked: bool = False


@dataclass(frozen=True, slots=True)
class Dashboard:
    """One page; its file is ``uid`` with ``.json``."""

    uid: str
    title: str
    variables: Sequence[Mapping[str, Any]]
    panels: Sequence[Panel]


def _rate(metric: str, labels: str = "", by: str = "", of: str = "rate") -> str:
    """A sum of rates (or increases) of a counter over the chosen services."""
    chosen = ", ".join(filter(None, (_SERVICE_OF_METRICS, labels)))
    grouped = f" by ({by})" if by else ""
    return f"sum{grouped} ({of}({metric}{{{chosen}}}[$__rate_interval]))"


def _total(metric: str, by: str) -> str:
    """What a counter has come to in the range shown. `increase` leaves a process's first sample out, which holds all
    that it had counted by then: everything, where the process was over before the second. Nor may samples be missing
    where the range begins, as while a Collector is away: all that the process ever counted would be in the range."""
    chosen = f"{metric}{{{_SERVICE_OF_METRICS}}}"
    last, before = f"last_over_time({chosen}[$__range])", f"last_over_time({chosen}[1h] offset $__range)"
    return f"sum by ({by}) ({last} - ({before} <= {last} or 0 * {last}))"


def _spans(key: str, then: str, more: str = "") -> str:
    """Spans of the chosen services that have an attribute; without that filter one that lacks it voids the sum."""
    condition = " && ".join(filter(None, (_SERVICE_OF_SPANS, f"span.{key} != nil", more)))
    return f"{{ {condition} }} | {then}"


def _sum_over_time(key: str, by: str = "", top: bool = False) -> str:
    grouped = f" by ({by})" if by else ""
    return _spans(key, f"sum_over_time(span.{key}){grouped}{' | topk(10)' if top else ''}", _known(by))


def _known(by: str) -> str:
    return f"{by} != nil" if by.startswith("span.") else ""


_CONSUMPTION: Final = "llm_energy_consumption_joules_total"
_TOKENS: Final = "gen_ai_client_token_usage_sum"
_OUTPUT: Final = 'gen_ai_token_type="output"'

FLEET: Final = Dashboard(
    uid="llm-energy-fleet",
    title="LLM energy: fleet",
    variables=[
        {
            "name": "service",
            "label": "Service",
            "type": "query",
            "datasource": {"type": "prometheus", "uid": "prometheus"},
            "query": {"query": f"label_values({_CONSUMPTION}, job)", "refId": "service"},
            "definition": f"label_values({_CONSUMPTION}, job)",
            "includeAll": True,
            "allValue": ".*",
            "multi": True,
            "refresh": 2,
        }
    ],
    panels=[
        Panel(
            "Joules per output token, by model and server",
            "Energy of all calls over tokens of all calls: a long answer weighs more than a short one.",
            "prometheus",
            (
                Query(
                    f"{_rate(_CONSUMPTION, by=_BY_SERVER)} / {_rate(_TOKENS, _OUTPUT, _BY_SERVER)}",
                    "{{gen_ai_request_model}} on {{server_address}}:{{server_port}}",
                ),
            ),
            width=24,
        ),
        Panel(
            "Power by service",
            "Power that the calls of each service take.",
            "prometheus",
            (Query(_rate(_CONSUMPTION, by="job"), "{{job}}"),),
            unit="watt",
            stacked=True,
        ),
        Panel(
            "Power by operation",
            "Power that chats, completions and embeddings take.",
            "prometheus",
            (Query(_rate(_CONSUMPTION, by="gen_ai_operation_name"), "{{gen_ai_operation_name}}"),),
            unit="watt",
            stacked=True,
        ),
        Panel(
            "Where the metered power went",
            "Calls and, by reason, what is nobody's; together they are what the meters read (the line). "
            "idle: drawn anyway. other: other programs. outside: the server, but no call of ours.",
            "prometheus",
            (
                Query(_rate(_CONSUMPTION), "calls"),
                Query(_rate("llm_energy_unattributed_joules_total", by="llm_energy_reason"), "{{llm_energy_reason}}"),
                Query(_rate("llm_energy_metered_joules_total"), "metered"),
            ),
            unit="watt",
            stacked=True,
            width=24,
        ),
        Panel(
            "Energy of a call",
            "Median and 95th percentile by model; the dots lead to the calls' traces.",
            "prometheus",
            tuple(
                Query(
                    f"histogram_quantile({part}, "
                    + _rate("llm_energy_operation_joules_bucket", by="le, gen_ai_request_model")
                    + ")",
                    f"{{{{gen_ai_request_model}}}} p{part * 100:.0f}",
                )
                for part in (0.5, 0.95)
            ),
        ),
        Panel(
            "Energy in this range of time, by model",
            "All calls of each model.",
            "prometheus",
            (Query(_total(_CONSUMPTION, by="gen_ai_request_model"), "{{gen_ai_request_model}}", instant=True),),
            kind="bargauge",
        ),
        Panel(
            "Calls by quality",
            "How well the energy of calls is known. Those without any are on the next panel.",
            "prometheus",
            (
                Query(
                    _rate("llm_energy_operation_joules_count", by="llm_energy_quality", of="increase"),
                    "{{llm_energy_quality}}",
                ),
            ),
            unit="short",
            stacked=True,
        ),
        Panel(
            "Degraded and unavailable, by reason",
            "Why the energy of a call is known less well than it could be, or not at all.",
            "prometheus",
            (
                Query(
                    _rate("llm_energy_processor_degraded_total", by="llm_energy_reason", of="increase"),
                    "{{llm_energy_reason}}",
                ),
            ),
            unit="short",
            stacked=True,
        ),
        Panel(
            "Age of the newest reading",
            "A meter that stands still makes calls unavailable.",
            "prometheus",
            (
                Query(
                    "max by (job, llm_energy_meter, llm_energy_host)"
                    f" (llm_energy_meter_lag_seconds{{{_SERVICE_OF_METRICS}}})",
                    "{{job}} {{llm_energy_meter}} {{llm_energy_host}}",
                ),
            ),
            unit="s",
        ),
        Panel(
            "Spans held and lost",
            "Held: waiting for their energy. Lost: refused by the next span processor with an exception.",
            "prometheus",
            (
                Query(f"sum (llm_energy_processor_held{{{_SERVICE_OF_METRICS}}})", "held"),
                Query(_rate("llm_energy_processor_dropped_total", of="increase"), "lost"),
            ),
            unit="short",
        ),
    ],
)

TRACES: Final = Dashboard(
    uid="llm-energy-traces",
    title="LLM energy: traces",
    variables=[
        {
            "name": "service",
            "label": "Service",
            "type": "query",
            "datasource": {"type": "tempo", "uid": "tempo"},
            "query": {"label": "service.name", "refId": "service", "type": 1},
            "includeAll": True,
            "allValue": ".*",
            "multi": True,
            "refresh": 2,
        },
        {
            "name": "above",
            "label": "Calls above, J (with a decimal point)",
            "type": "textbox",
            "query": "10.0",
            "current": {"text": "10.0", "value": "10.0"},
        },
    ],
    panels=[
        Panel(
            "Energy by operation and model",
            "Sums over spans: with sampling, of the sampled ones only. The fleet page counts all.",
            "tempo",
            (Query(_sum_over_time("llm.energy.joules", "name")),),
            stacked=True,
        ),
        Panel(
            "Prefill against decode",
            "Reading prompts and writing answers, where readings part the two.",
            "tempo",
            (
                Query(_sum_over_time("llm.energy.prefill_joules"), "prefill"),
                Query(_sum_over_time("llm.energy.decode_joules"), "decode"),
            ),
            stacked=True,
        ),
        Panel(
            "Top traces",
            "The ten traces whose calls took most. Tempo leaves out zeros at the start of an id here.",
            "tempo",
            (Query(_sum_over_time("llm.energy.joules", "trace:id", top=True)),),
            kind="bargauge",
        ),
        Panel(
            "Top conversations",
            "The ten conversations (gen_ai.conversation.id) whose calls took most.",
            "tempo",
            (Query(_sum_over_time("llm.energy.joules", "span.gen_ai.conversation.id", top=True)),),
            kind="bargauge",
        ),
        Panel(
            "Above idle, by model",
            "What came on top of the idle power: compare models by this.",
            "tempo",
            (Query(_sum_over_time("llm.energy.above_idle_joules", "span.gen_ai.request.model")),),
            stacked=True,
        ),
        Panel(
            "Energy of a call, quantiles",
            "Median and 95th percentile, in mJ, to within powers of two: Tempo's quantiles take only integers.",
            "tempo",
            (Query(_spans("llm.energy.millijoules", "quantile_over_time(span.llm.energy.millijoules, 0.5, 0.95)")),),
            unit="short",
        ),
        Panel(
            "Calls above the limit",
            "The limit is at the top of the page; without a decimal point TraceQL finds nothing.",
            "tempo",
            (
                Query(
                    f"{{ {_SERVICE_OF_SPANS} && span.llm.energy.joules > $above }} | select(span.llm.energy.joules, "
                    "span.llm.energy.quality, span.gen_ai.request.model, span.gen_ai.usage.output_tokens)",
                    search=True,
                ),
            ),
            kind="table",
            width=24,
        ),
    ],
)

DASHBOARDS: Final = (FLEET, TRACES)


def text_of(dashboard: Dashboard) -> str:
    """The file of a dashboard."""
    return json.dumps(_json_of(dashboard), indent=2) + "\n"


def _json_of(dashboard: Dashboard) -> dict[str, Any]:
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "tags": ["llm", "energy"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": list(dashboard.variables)},
        "panels": list(_placed(dashboard.panels)),
    }


def _placed(panels: Iterable[Panel]) -> Iterable[dict[str, Any]]:
    """Panels from left to right, in rows of 24 columns."""
    x = y = 0
    for number, panel in enumerate(panels, 1):
        if x + panel.width > _COLUMNS:
            x, y = 0, y + _HEIGHT
        yield {**_panel_json(panel, number), "gridPos": {"x": x, "y": y, "w": panel.width, "h": _HEIGHT}}
        x += panel.width


def _panel_json(panel: Panel, number: int) -> dict[str, Any]:
    source = {"type": panel.source, "uid": panel.source}
    custom = {"stacking": {"mode": "normal" if panel.stacked else "none"}, "fillOpacity": 20 if panel.stacked else 0}
    drawn: dict[str, Any] = {"unit": panel.unit}
    if panel.kind == "timeseries":
        drawn["custom"] = custom
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": source,
        "fieldConfig": {"defaults": drawn, "overrides": _unstacked(panel)},
        "targets": [
            {"refId": chr(ord("A") + index), "datasource": source, **_target(panel.source, query)}
            for index, query in enumerate(panel.queries)
        ],
    }


def _unstacked(panel: Panel) -> list[dict[str, Any]]:
    """What the parts add up to is a line over them, not one more part."""
    if not any(query.legend == "metered" for query in panel.queries):
        return []
    line = [{"id": "custom.stacking", "value": {"mode": "none"}}, {"id": "custom.fillOpacity", "value": 0}]
    return [{"matcher": {"id": "byName", "options": "metered"}, "properties": line}]


def _target(source: Source, query: Query) -> dict[str, Any]:
    if source == "prometheus":
        return {
            "expr": query.text,
            "legendFormat": query.legend,
            "instant": query.instant,
            "range": not query.instant,
            "exemplar": "_bucket" in query.text,
        }
    shown = {"tableType": "spans", "limit": 100, "spss": 10} if query.search else {"metricsQueryType": "range"}
    return {"queryType": "traceql", "query": query.text, "legendFormat": query.legend, **shown}


def main() -> None:
    """Write the files."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for dashboard in DASHBOARDS:
        (FOLDER / f"{dashboard.uid}.json").write_text(text_of(dashboard))


if __name__ == "__main__":
    main()

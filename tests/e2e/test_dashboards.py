"""Every query of every panel, asked of the real Prometheus and Tempo with a real run's data, gives the right number.

What is right is worked out here from the spans in Jaeger and from raw samples. That Grafana draws it is not tested.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from otel_llm_energy import conventions as names
from tests.e2e.spans import JaegerSpan
from tests.e2e.stack import awaited
from tests.e2e.whole_way import SERVICE, Totals, WholeWay, values
from tools.dashboards import DASHBOARDS, FLEET, FOLDER, TRACES, Panel, Query, text_of

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

_WINDOW_SECONDS = 3600
_ABOVE_JOULES = 10.0
_EXTRAPOLATED = 0.15  # Prometheus adds up to half a sample's distance at each end of what it has
_SAME = 1e-3
_MODEL = "gen_ai_request_model"
_SERVER = (_MODEL, "server_address", "server_port")
_CONSUMPTION = "llm_energy_consumption_joules_total"
_BUCKETS = "llm_energy_operation_joules_bucket"

_Oracle = Callable[[WholeWay, Query], None]


def test_files_are_those_of_the_table_when_dashboards_are_shipped() -> None:
    """The JSON files are what `python -m tools.dashboards` writes."""
    assert {path.stem for path in FOLDER.glob("*.json")} == {dashboard.uid for dashboard in DASHBOARDS}
    for dashboard in DASHBOARDS:
        assert (FOLDER / f"{dashboard.uid}.json").read_text() == text_of(dashboard), "run python -m tools.dashboards"


@pytest.mark.parametrize("panel", [*FLEET.panels, *TRACES.panels], ids=lambda panel: panel.title)
def test_panel_shows_the_right_number_when_there_is_a_real_run(panel: Panel, whole_way: WholeWay) -> None:
    """Each of its queries is held to what spans or samples add up to without it."""
    for number, query in enumerate(panel.queries):
        _ORACLES[panel.title][number](whole_way, query)


def _filled_in(query: Query) -> str:
    text = query.text.replace("$service", SERVICE).replace("$above", str(_ABOVE_JOULES))
    return text.replace("$__rate_interval", "1h").replace("$__range", "1h")


def _grows(metric: str, *by: str, per_second: bool = False, **labels: str) -> _Oracle:
    """A sum of rates or increases: what the raw samples grew by."""

    def check(run: WholeWay, query: Query) -> None:
        shown = values(run.prometheus.query(_filled_in(query)), by, _WINDOW_SECONDS if per_second else 1)
        _compare(shown, run.growth(metric, by, **labels), _EXTRAPOLATED)

    return check


def _joules_per_token(run: WholeWay, query: Query) -> None:
    energy = run.growth(_CONSUMPTION, _SERVER)
    tokens = run.growth("gen_ai_client_token_usage_sum", _SERVER, gen_ai_token_type="output")
    expected = {server: energy[server] / tokens[server] for server in tokens}  # a server that is away writes none
    assert len(expected) == 2
    _compare(values(run.prometheus.query(_filled_in(query)), _SERVER), expected, _EXTRAPOLATED)


def _percentile(part: float) -> _Oracle:
    """Of each model's calls since the first sample, to within a bucket."""

    def check(run: WholeWay, query: Query) -> None:
        assert _counts(run.newest(_BUCKETS, (_MODEL, "le"))) == _counts_of_spans(run)
        grown = _counts(run.growth(_BUCKETS, (_MODEL, "le")))
        shown = values(run.prometheus.query(_filled_in(query)), (_MODEL,))
        assert {model for (model,) in shown} >= {"smollm2", "smollm2-135m"}
        for (model,), joules in shown.items():
            lower, upper = _around_bucket_of(grown[model], part)
            assert lower <= joules <= upper, model

    return check


def _counts(buckets: Totals) -> dict[str, dict[float, float]]:
    """Of each model, how many calls were within a bound in J, by bound."""
    found: dict[str, dict[float, float]] = {}
    for (model, bound), count in buckets.items():
        found.setdefault(model, {})[float(bound)] = count
    return found


def _counts_of_spans(run: WholeWay) -> dict[str, dict[float, float]]:
    bounds = [*names.OPERATION.boundaries, math.inf]
    joules: dict[str, list[float]] = {}
    for call in run.calls:
        joules.setdefault(_model(call), []).append(call.joules())
    return {model: {bound: sum(one <= bound for one in each) for bound in bounds} for model, each in joules.items()}


def _around_bucket_of(counts: Mapping[float, float], part: float) -> tuple[float, float]:
    """The bounds of the bucket that holds the quantile, and of one more on each side."""
    bounds = [0.0, *sorted(counts)]
    above = next(index for index, bound in enumerate(bounds) if counts.get(bound, 0) >= part * counts[math.inf])
    return bounds[max(above - 2, 0)], bounds[min(above + 1, len(bounds) - 1)]


def _quantile(joules: list[float], part: float) -> float:
    return sorted(joules)[math.ceil(part * len(joules)) - 1]


def _newest(metric: str, *by: str) -> _Oracle:
    """The latest sample: no sum over time."""

    def check(run: WholeWay, query: Query) -> None:
        _compare(values(run.prometheus.query(_filled_in(query)), by), run.newest(metric, by), _SAME)

    return check


def _sums(attribute: str, group: Callable[[JaegerSpan], str | None] = lambda _: "") -> _Oracle:
    """TraceQL's sum over spans: the same from Jaeger's spans."""

    def check(run: WholeWay, query: Query) -> None:
        _compare(run.tempo.totals(_filled_in(query)), run.sums(attribute, group), _SAME)

    return check


def _quantiles_between_powers_of_two(run: WholeWay, query: Query) -> None:
    """Tempo interpolates between the powers of two that hold spans, over empty ones too."""
    millijoules = [float(call.attributes[names.MILLIJOULES]) for call in run.calls]
    shown = run.tempo.totals(_filled_in(query))
    bounds = [0.0, *sorted({_power_of_two(each) for each in millijoules})]
    for part in (0.5, 0.95):
        upper = _power_of_two(_quantile(millijoules, part))
        assert bounds[bounds.index(upper) - 1] <= shown[(str(part),)] <= upper


def _power_of_two(millijoules: float) -> float:
    """The least one that is not less."""
    return float(2 ** math.ceil(math.log2(millijoules)))


def _calls_above(run: WholeWay, query: Query) -> None:
    expected = sorted(call.joules() for call in run.calls if call.joules() > _ABOVE_JOULES)
    assert expected
    found = awaited(lambda: _spans_found(run, query), lambda spans: len(spans) == len(expected))
    assert sorted(_attributes(span)[names.JOULES] for span in found) == pytest.approx(expected)
    assert {_attributes(span)["gen_ai.request.model"] for span in found} <= {_model(call) for call in run.calls}


def _spans_found(run: WholeWay, query: Query) -> list[dict[str, Any]]:
    """A trace is searched in pieces until its spans have stopped coming."""
    return [span for trace in run.tempo.search(_filled_in(query)) for span in trace["spanSet"]["spans"]]


def _attributes(span: Mapping[str, Any]) -> dict[str, Any]:
    return {one["key"]: next(iter(one["value"].values())) for one in span["attributes"]}


def _model(call: JaegerSpan) -> str:
    return str(call.attributes["gen_ai.request.model"])


def _compare(shown: Totals, expected: Totals, tolerance: float) -> None:
    assert expected
    assert shown == pytest.approx(expected, rel=tolerance, abs=1e-9)


_ORACLES: dict[str, list[_Oracle]] = {
    "Joules per output token, by model and server": [_joules_per_token],
    "Power by service": [_grows(_CONSUMPTION, "job", per_second=True)],
    "Power by operation": [_grows(_CONSUMPTION, "gen_ai_operation_name", per_second=True)],
    "Where the metered power went": [
        _grows(_CONSUMPTION, per_second=True),
        _grows("llm_energy_unattributed_joules_total", "llm_energy_reason", per_second=True),
        _grows("llm_energy_metered_joules_total", per_second=True),
    ],
    "Energy of a call": [_percentile(0.5), _percentile(0.95)],
    "Energy in this range of time, by model": [_newest(_CONSUMPTION, _MODEL)],
    "Calls by quality": [_grows("llm_energy_operation_joules_count", "llm_energy_quality")],
    "Degraded and unavailable, by reason": [_grows("llm_energy_processor_degraded_total", "llm_energy_reason")],
    "Age of the newest reading": [_newest("llm_energy_meter_lag_seconds", "job", "llm_energy_meter")],
    "Spans held and lost": [_newest("llm_energy_processor_held"), _grows("llm_energy_processor_dropped_total")],
    "Energy by operation and model": [_sums(names.JOULES, lambda call: call.name)],
    "Prefill against decode": [_sums(names.PREFILL_JOULES), _sums(names.DECODE_JOULES)],
    "Top traces": [_sums(names.JOULES, lambda call: call.trace_id.lstrip("0"))],  # as Tempo writes it
    "Top conversations": [_sums(names.JOULES, lambda call: str(call.attributes["gen_ai.conversation.id"]))],
    "Above idle, by model": [_sums(names.ABOVE_IDLE_JOULES, _model)],
    "Energy of a call, quantiles": [_quantiles_between_powers_of_two],
    "Calls above the limit": [_calls_above],
}

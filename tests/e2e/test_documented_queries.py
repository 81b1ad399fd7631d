"""The queries that the pages of the back ends give, asked of the real Prometheus and Tempo after a real run."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable

import pytest

from otel_llm_energy import conventions as names
from tests.e2e.stack import awaited
from tests.e2e.typed import ROOT
from tests.e2e.whole_way import SERVICE, WholeWay, values

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

_PAGES = ROOT / "docs" / "backends"
_EXTRAPOLATED = 0.15  # Prometheus adds up to half a sample's distance at each end of what it has
_WINDOW_SECONDS = 3600
_CONSUMPTION = "llm_energy_consumption_joules_total"
_REASON = "llm_energy_reason"


def _traceql() -> list[str]:
    """Of the page's list."""
    (listed,) = re.findall(
        r"## Queries that work\n\n```\n(.*?)```", (_PAGES / "tempo-grafana.md").read_text(), re.DOTALL
    )
    return str(listed).splitlines()


def _promql() -> list[str]:
    """Of the page's table, and what its picture shows."""
    page = (_PAGES / "prometheus.md").read_text()
    return re.findall(r"^\| .+? \| `(.+?)`", page, re.MULTILINE) + re.findall(r"```\n(.*?)```", page, re.DOTALL)


def _calls_above_10_joules(run: WholeWay, query: str) -> None:
    expected = sum(call.joules() > 10 for call in run.calls)
    assert 0 < expected < len(run.spans)
    found = awaited(
        lambda: [span for trace in run.tempo.search(query) for span in trace["spanSet"]["spans"]],
        lambda spans: len(spans) == expected,  # a trace is searched in pieces until its spans have stopped coming
    )
    assert len(found) == expected


def _spans_by_reason(run: WholeWay, query: str) -> None:
    doubtful = [span for span in run.spans if span.attributes.get(names.QUALITY) in ("degraded", "unavailable")]
    expected = Counter((str(span.attributes[names.REASON]),) for span in doubtful)
    assert expected
    assert run.tempo.totals(query) == expected


def _joules_by(attribute: str) -> Callable[[WholeWay, str], None]:
    def check(run: WholeWay, query: str) -> None:
        expected = run.sums(names.JOULES, lambda call: str(call.attributes[attribute]))
        assert run.tempo.totals(query) == pytest.approx(expected, rel=1e-3)

    return check


def _two_quantiles(run: WholeWay, query: str) -> None:
    shown = run.tempo.totals(query)
    assert 0 < shown[("0.5",)] <= shown[("0.99",)]


_TRACEQL = [
    _calls_above_10_joules,
    _spans_by_reason,
    _joules_by("gen_ai.request.model"),
    _two_quantiles,
    _joules_by("gen_ai.conversation.id"),
]


@pytest.mark.parametrize(("query", "check"), [*zip(_traceql(), _TRACEQL, strict=True)], ids=_traceql())
def test_traceql_of_the_page_gives_the_right_number_when_there_is_a_real_run(
    query: str, check: Callable[[WholeWay, str], None], whole_way: WholeWay
) -> None:
    """Of this run's spans alone, since Tempo has those of other tests, too."""
    check(whole_way, query.replace("{ ", f'{{ resource.service.name = "{SERVICE}" && ', 1))


def _watts(metric: str, *by: str) -> Callable[[WholeWay, str], None]:
    def check(run: WholeWay, query: str) -> None:
        shown = values(run.prometheus.query(query), by, _WINDOW_SECONDS)
        assert shown == pytest.approx(run.growth(metric, by), rel=_EXTRAPOLATED, abs=1e-9)

    return check


def _joules_per_token(run: WholeWay, query: str) -> None:
    by = ("gen_ai_request_model",)
    joules = run.growth(_CONSUMPTION, by)
    tokens = run.growth("gen_ai_client_token_usage_sum", by, gen_ai_token_type="output")
    expected = {model: joules[model] / tokens[model] for model in tokens}
    assert len(expected) == 2
    assert values(run.prometheus.query(query), by) == pytest.approx(expected, rel=_EXTRAPOLATED)


def _joules_by_model(run: WholeWay, query: str) -> None:
    """All of them: what was counted at the first sample is among it."""
    by = ("gen_ai_request_model",)
    assert values(run.prometheus.query(query), by) == pytest.approx(run.newest(_CONSUMPTION, by), rel=1e-3)


def _a_calls_joules(run: WholeWay, query: str) -> None:
    """Prometheus goes by the buckets: between the bounds of those that hold the least and the most."""
    ((_, median),) = values(run.prometheus.query(query), ()).items()
    bounds = sorted(float(le) for (le,) in values(run.prometheus.query("llm_energy_operation_joules_bucket"), ("le",)))
    joules = sorted(call.joules() for call in run.calls)
    least = max((bound for bound in bounds if bound < joules[0]), default=0.0)
    most = min(bound for bound in bounds if bound >= joules[-1])
    assert least < median <= most < math.inf


def _age_of_a_reading(run: WholeWay, query: str) -> None:
    (series,) = run.prometheus.query(query)
    assert series["metric"]["instance"]
    assert float(series["value"][1]) >= 0


def _all_that_was_metered(run: WholeWay, query: str) -> None:
    shown = values(run.prometheus.query(query), (_REASON,), _WINDOW_SECONDS)
    assert {("calls",), ("idle",), ("other",)} <= set(shown)
    metered = run.growth("llm_energy_metered_joules_total")
    assert sum(shown.values()) == pytest.approx(sum(metered.values()), rel=_EXTRAPOLATED)


_PROMQL = [
    _watts(_CONSUMPTION),
    _joules_per_token,
    _joules_by_model,
    _watts("llm_energy_unattributed_joules_total", _REASON),
    _a_calls_joules,
    _age_of_a_reading,
    _all_that_was_metered,
]


@pytest.mark.parametrize(("query", "check"), [*zip(_promql(), _PROMQL, strict=True)], ids=_promql())
def test_promql_of_the_page_gives_the_right_number_when_there_is_a_real_run(
    query: str, check: Callable[[WholeWay, str], None], whole_way: WholeWay
) -> None:
    """Over the hour in which all of the run lies, as a rate of its few samples in the last minutes would be none."""
    check(whole_way, re.sub(r"\[\w+\]", f"[{_WINDOW_SECONDS}s]", query))

"""One real run through it all: its joules are the same in Tempo, in Prometheus, in Jaeger and in the ledger."""

from __future__ import annotations

import json

import pytest

from otel_llm_energy import conventions as names
from tests.e2e.whole_way import CALLS, QUESTIONS, SERVICE, WholeWay

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

SECRET = "the secret of the ocean"  # as in the app

_SAME = 1e-3
_UNTIL_ITS_END = 0.05
_ROUNDING = 1e-5  # attributes are rounded to six digits


def test_ledger_adds_up_when_the_run_is_over(whole_way: WholeWay) -> None:
    """What was metered is what calls were billed and what is nobody's."""
    ledger = whole_way.ledger
    assert ledger["billed"] > 0
    assert ledger["billed"] + ledger["unattributed"] == pytest.approx(ledger["metered"], rel=1e-6)


def test_spans_sum_up_to_the_ledger_when_tempo_adds_them(whole_way: WholeWay) -> None:
    """Tempo's own sum over the spans is what the ledger billed."""
    have_joules = f'{{ resource.service.name = "{SERVICE}" && span.{names.JOULES} != nil }}'
    (total,) = whole_way.tempo.totals(f"{have_joules} | sum_over_time(span.{names.JOULES})").values()
    assert total == pytest.approx(whole_way.ledger["billed"], rel=_SAME)


def test_counters_are_the_ledger_when_prometheus_has_them(whole_way: WholeWay) -> None:
    """The counters stand where the ledger did; what is nobody's went on from the app's last words to its end."""
    billed, unattributed, metered = (_counted(whole_way, name) for name in ("consumption", "unattributed", "metered"))
    assert billed == pytest.approx(whole_way.ledger["billed"], rel=_SAME)
    assert billed + unattributed == pytest.approx(metered, rel=_SAME)
    assert 1 - _SAME < metered / whole_way.ledger["metered"] < 1 + _UNTIL_ITS_END


def _counted(run: WholeWay, metric: str) -> float:
    """The sum of a counter at its last, J."""
    (sample,) = run.prometheus.query(f'sum(last_over_time(llm_energy_{metric}_joules_total{{job="{SERVICE}"}}[1h]))')
    return float(sample["value"][1])


def test_root_holds_the_sum_of_its_calls_when_it_is_looked_up_in_jaeger(whole_way: WholeWay) -> None:
    """Jaeger cannot add; each root's total is what the calls below it took."""
    assert sum(span.is_llm_call for span in whole_way.spans) == CALLS
    roots = [span for span in whole_way.spans if span.parent_id is None]
    assert len(roots) == QUESTIONS
    for root in roots:
        below = sum(call.joules() for call in whole_way.calls if call.trace_id == root.trace_id)
        assert root.joules(names.SUBTREE_JOULES) == pytest.approx(below, rel=_ROUNDING)


def test_content_is_gone_when_the_app_sent_it(whole_way: WholeWay) -> None:
    """Captured prompts left the app on every call's span, and are in no back end; nor are those of its event."""
    assert whole_way.ledger["with_content"] == 2 * QUESTIONS  # the one that is away was asked something else
    text = json.dumps(whole_way.raw_traces)
    assert "gen_ai.client.inference.operation.details" in text
    tags = [tag for trace in whole_way.raw_traces for span in trace["spans"] for tag in span["tags"]]
    assert {tag["key"] for tag in tags if SECRET in str(tag["value"])} == set()
    assert SECRET not in text
    assert "gen_ai.input.messages" not in text
    assert whole_way.tempo.search(f'{{ resource.service.name = "{SERVICE}" }}')
    assert not whole_way.tempo.search("{ span.gen_ai.input.messages != nil }")


def test_exemplar_leads_to_the_span_when_a_bucket_has_one(whole_way: WholeWay) -> None:
    """From a bucket of the histogram in Prometheus to one call's span in Jaeger, which took what the exemplar says."""
    found = whole_way.prometheus.exemplars(f'llm_energy_operation_joules_bucket{{job="{SERVICE}"}}')
    assert found
    calls = {(call.trace_id, call.span_id): call for call in whole_way.calls}
    for exemplar in found:
        labels = exemplar["labels"]
        call = calls[labels["trace_id"], labels["span_id"]]
        assert float(exemplar["value"]) == pytest.approx(call.joules(), rel=_ROUNDING)

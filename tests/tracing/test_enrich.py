"""What a bill says on a span, and that the span is otherwise the same."""

from __future__ import annotations

import dataclasses
import json

import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.trace import Link, SpanContext, TraceFlags

from otel_llm_energy import conventions
from otel_llm_energy.conventions import ATTRIBUTES, TIERS
from otel_llm_energy.ledger.bill import Bill, Quality, unavailable
from otel_llm_energy.tracing.claims import Tokens
from otel_llm_energy.tracing.enrich import (
    Style,
    Total,
    call_attributes,
    energy_class,
    enriched_copy,
    rounded,
    total_attributes,
)
from tests.tracing.fakes import Collecting

FULL_BILL = Bill(
    energy_nj=12_345_678_901,
    quality=Quality.SHARED,
    above_idle_nj=10_000_000_000,
    lower_nj=11_000_000_000,
    upper_nj=13_000_000_000,
    phases_nj={"prefill": 2_000_000_000, "decode": 10_000_000_000, "load": 345_678_901},
    components_nj={"cpu": 12_000_000_000, "memory": 345_678_901},
    meter="rapl",
    scope="process",
    method="above-idle/equal-time",
    coverage=1.0,
    concurrency=1.5,
    work_ns=500_000_000,
    queue_ns=250_000_000,
)
ALL = Style("full", grid_grams_per_kwh=400.0)


def finished_span(limits: SpanLimits | None = None, **attributes: str) -> ReadableSpan:
    """A span of the real SDK with events, links and dropped things."""
    out = Collecting()
    provider = TracerProvider(
        resource=Resource.create({"service.name": "app"}),
        shutdown_on_exit=False,
        span_limits=limits or SpanLimits(max_events=1, max_links=1),
    )
    provider.add_span_processor(out)
    link = Link(SpanContext(1, 2, is_remote=True, trace_flags=TraceFlags(1)))
    span = provider.get_tracer("scope", "1.0").start_span("chat", attributes=attributes, links=[link, link])
    span.add_event("one")
    span.add_event("two")
    span.end()
    return out.spans[0]


def test_values_are_rounded_and_typed_as_the_conventions_say() -> None:
    """Doubles have six significant digits; each attribute has its declared type."""
    values = call_attributes(FULL_BILL, Tokens(10, 100), ALL)
    assert values[conventions.JOULES] == 12.3457
    assert values[conventions.MILLIJOULES] == 12346
    assert values[conventions.CLASS] == "10-100 J"
    assert values[conventions.JOULES_PER_OUTPUT_TOKEN] == 0.123457
    assert values[conventions.JOULES_PER_TOKEN] == 0.112233
    assert values[conventions.MEAN_WATTS] == 24.6914
    assert values[conventions.QUEUE_SECONDS] == 0.25
    assert values[conventions.CO2E_GRAMS] == pytest.approx(12.3457 / 3.6e6 * 400, rel=1e-5)
    python = {"double": float, "int": int, "string": str, "bool": bool}
    types = {attribute.key: python[attribute.type] for attribute in ATTRIBUTES}
    assert {key: type(value) for key, value in values.items()} == {key: types[key] for key in values}


@pytest.mark.parametrize("detail", TIERS)
def test_only_the_asked_tiers_are_written(detail: conventions.Tier) -> None:
    """Attributes cost money: a tier holds no attribute of a later one."""
    style = Style(detail, grid_grams_per_kwh=400.0)
    values = call_attributes(FULL_BILL, Tokens(10, 100), style)
    copy = enriched_copy(finished_span(), {**values, **total_attributes(Total(1), style)})
    allowed = {a.key for a in ATTRIBUTES if TIERS.index(a.tier) <= TIERS.index(detail)}
    assert set(copy.attributes or {}) <= allowed


def test_nothing_but_quality_and_reason_is_written_when_unavailable() -> None:
    """Never a fabricated number."""
    assert call_attributes(unavailable("no-meter"), Tokens(10, 100), ALL) == {
        conventions.QUALITY: "unavailable",
        conventions.REASON: "no-meter",
    }


@pytest.mark.parametrize("tokens", [Tokens(), Tokens(10, None), Tokens(10, 0)])
def test_no_energy_per_token_when_the_server_reported_none(tokens: Tokens) -> None:
    """J/token needs a count that the server gave."""
    assert conventions.JOULES_PER_OUTPUT_TOKEN not in call_attributes(FULL_BILL, tokens, ALL)


@pytest.mark.parametrize(
    ("joules", "name"),
    [
        (0, "<0.001 J"),
        (0.000999, "<0.001 J"),
        (0.001, "0.001-0.01 J"),
        (0.5, "0.1-1 J"),
        (1, "1-10 J"),
        (9.99999999, "10-100 J"),
        (99_999, "10000-100000 J"),
        (1e9, ">=100000 J"),
    ],
)
def test_class_is_the_decade_of_the_displayed_joules(joules: float, name: str) -> None:
    """The class never contradicts the number beside it."""
    assert energy_class(rounded(joules)) == name
    values = call_attributes(dataclasses.replace(FULL_BILL, energy_nj=round(joules * 1e9)), Tokens(), Style())
    assert values[conventions.CLASS] == name


def test_total_is_labelled_when_it_holds_an_estimate() -> None:
    """An estimate calls itself one everywhere."""
    assert total_attributes(Total(2_000_000_000, incomplete=True, estimated=True), Style()) == {
        conventions.SUBTREE_JOULES: 2.0,
        conventions.SUBTREE_INCOMPLETE: True,
        conventions.QUALITY: "estimated",
    }


def test_copy_keeps_all_of_the_span_and_leaves_the_original_alone() -> None:
    """Names, times, resource, scope, events, links, status and dropped counts are those of the span."""
    span = finished_span(user="kept")
    before = span.to_json()
    copy = enriched_copy(span, {conventions.JOULES: 1.0})
    assert span.to_json() == before
    assert (copy.dropped_events, copy.dropped_links) == (1, 1)
    expected = json.loads(before)
    expected["attributes"][conventions.JOULES] = 1.0
    assert json.loads(copy.to_json()) == expected
    encoded = encode_spans([copy]).resource_spans[0].scope_spans[0].spans[0]
    assert [attribute.key for attribute in encoded.attributes] == ["user", conventions.JOULES]
    assert (encoded.dropped_events_count, encoded.dropped_links_count) == (1, 1)
    assert copy.instrumentation_scope == span.instrumentation_scope
    assert copy.resource is span.resource
    with pytest.raises(TypeError):
        copy._attributes["more"] = 1  # type: ignore[index]


def test_our_last_attributes_are_left_out_when_the_provider_limits_their_number() -> None:
    """No attribute of the user is evicted, and what is kept is kept in the order of the conventions."""
    span = finished_span(SpanLimits(max_span_attributes=5), a="1", b="2", c="3", d="4", e="5", f="6")
    assert span.dropped_attributes == 1
    values = call_attributes(FULL_BILL, Tokens(10, 100), Style())
    full = enriched_copy(span, values)
    assert dict(full.attributes or {}) == dict(span.attributes or {})
    assert full.dropped_attributes == 1
    roomy = finished_span(SpanLimits(max_span_attributes=5), a="1", b="2", c="3")
    copy = enriched_copy(roomy, values)
    assert list(copy.attributes or {}) == ["a", "b", "c", conventions.JOULES, conventions.QUALITY]


def test_our_strings_are_cut_when_the_provider_limits_their_length() -> None:
    """The limit on values holds for ours, too."""
    span = finished_span(SpanLimits(max_span_attribute_length=4), user="12345678")
    copy = enriched_copy(span, {conventions.QUALITY: "measured"})
    assert dict(copy.attributes or {}) == {"user": "1234", conventions.QUALITY: "meas"}


def test_attribute_of_the_user_wins_when_it_has_our_name() -> None:
    """What the app wrote itself stays."""
    span = finished_span(**{conventions.METER: "mine"})
    copy = enriched_copy(span, {conventions.METER: "rapl"})
    assert dict(copy.attributes or {}) == {conventions.METER: "mine"}

"""What a real run through the whole way left behind, for the tests that look at it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from otel_llm_energy import conventions as names
from tests.e2e.spans import JaegerSpan, spans_of
from tests.e2e.stack import Stack, awaited
from tests.support.backends import Jaeger

SERVICE = "whole-way"
QUESTIONS = 8
CALLS = 3 * QUESTIONS  # of two servers, and of one that is away
SPANS = CALLS + QUESTIONS

Totals = dict[tuple[str, ...], float]


class WholeWay:
    """A run of ``apps/whole_way.py`` of which everything has arrived everywhere.

    Args:
        stack: through which it went.
        jaeger: behind that.
        ledger: what the app's own ledger said at the end, J: ``metered``, ``billed``, ``unattributed``; and on how many
            spans it had captured the prompt, ``with_content``.

    Attributes:
        raw_traces: what Jaeger has, as its API gives it.
        spans: the same, in the order in which they started.
    """

    def __init__(self, stack: Stack, jaeger: Jaeger, ledger: Mapping[str, float]) -> None:
        self.tempo = stack.tempo
        self.prometheus = stack.prometheus
        self.ledger = ledger
        self.raw_traces = awaited(lambda: jaeger.traces(SERVICE), lambda found: len(spans_of(found)) >= SPANS)
        self.spans: Sequence[JaegerSpan] = spans_of(self.raw_traces)
        self._await_tempo()

    @property
    def calls(self) -> Sequence[JaegerSpan]:
        """The spans of calls that have joules."""
        return [span for span in self.spans if names.JOULES in span.attributes]

    def sums(self, attribute: str, group: Callable[[JaegerSpan], str | None] = lambda _: "") -> Totals:
        """Sums of an attribute over the calls that have it, by a name; ``None`` leaves a call out."""
        found: defaultdict[tuple[str, ...], float] = defaultdict(float)
        for call in self.calls:
            name = group(call)
            if attribute in call.attributes and name is not None:
                found[(name,) if name else ()] += call.joules(attribute)
        return dict(found)

    def growth(self, metric: str, by: Sequence[str] = (), **labels: str) -> Totals:
        """How far counters have come since their first sample, from the raw samples, by the values of labels."""
        chosen = ",".join(f'{key}="{value}"' for key, value in {"job": SERVICE, **labels}.items())
        found: defaultdict[tuple[str, ...], float] = defaultdict(float)
        for series in self.prometheus.query(f"{metric}{{{chosen}}}[1h]"):
            samples = [float(value) for _, value in series["values"]]
            found[tuple(series["metric"].get(key, "") for key in by)] += samples[-1] - samples[0]
        return dict(found)

    def newest(self, metric: str, by: Sequence[str] = ()) -> Totals:
        """The latest samples added up by the values of labels."""
        found: defaultdict[tuple[str, ...], float] = defaultdict(float)
        for series in self.prometheus.query(f'{metric}{{job="{SERVICE}"}}'):
            found[tuple(series["metric"].get(key, "") for key in by)] += float(series["value"][1])
        return dict(found)

    def _await_tempo(self) -> None:
        """Tempo can be searched, and sums up, some seconds after it was sent to."""
        chosen = f'resource.service.name = "{SERVICE}" && span.{names.JOULES} != nil'
        awaited(
            lambda: self.tempo.totals(f"{{ {chosen} }} | count_over_time()"),
            lambda counts: sum(counts.values()) >= len(self.calls),
        )


def values(series: Sequence[Mapping[str, Any]], by: Sequence[str], factor: float = 1) -> Totals:
    """An instant query's answer by the values of labels."""
    return {tuple(one["metric"].get(key, "") for key in by): float(one["value"][1]) * factor for one in series}

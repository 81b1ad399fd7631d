"""Write docs/reference.md: every attribute, quality, reason, metric and setting, from the tables that the code uses.

``python -m tools.reference`` writes it; ``--check`` only says whether it is current.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from otel_llm_energy import conventions
from otel_llm_energy.cli.reasons import REASONS
from otel_llm_energy.settings import OPTIONS

PAGE = Path(__file__).parents[1] / "docs" / "reference.md"

_HEAD = """# Reference

Written by `python -m tools.reference` from `conventions.py`, `cli/reasons.py` and `settings.py`: do not edit it here.
"""
_ATTRIBUTES = """## Span attributes

Each tier of `detail=` adds to the one before: minimal, standard (the default), full. Where the tracer provider limits
the number of attributes they are kept in this order. Doubles are rounded to 6 significant digits.
"""
_SERVER = """## The server's own timings

The client instrumentors put them on the span of a call whose server tells them (Ollama, llama.cpp), with energy or not.
"""
_SERVER_ATTRIBUTES = (
    (conventions.SERVER_LOAD_SECONDS, "Loading the model, at the start of the request, before the queue, s."),
    (conventions.SERVER_PREFILL_SECONDS, "Reading the prompt, s."),
    (conventions.SERVER_DECODE_SECONDS, "Writing the answer, s."),
    (conventions.SERVER_END_TIME, "The server's wall-clock time at the end, s since 1970."),
)
_QUALITIES = """## Qualities

`llm.energy.quality` is the first of these that applies.

| quality | meaning |
|---|---|
| `unavailable` | no joules; `llm.energy.reason` says why |
| `estimated` | CPU time times a published power model, not a measurement |
| `degraded` | measured, but less well than it looks; `llm.energy.reason` says why |
| `shared` | measured, and other calls were at work on the same server (mean concurrency above 1.05) |
| `measured` | measured, and alone |
"""
_REASONS = """## Reasons

Of `unavailable` and `degraded` energy (`llm.energy.reason`), and of energy that is nobody's (the attribute of
`llm.energy.unattributed`).
"""
_METRICS = """## Metrics

Recorded in the span's context, so that exemplars lead to the span. Every call counts, sampled or not. A rate of
counters is the right figure for joules per token of a fleet; a mean of the spans' ratios is not.
"""
_METRIC_ATTRIBUTES = """
Besides the standard attributes of a call (model, operation, provider, server), their series are told apart by these:
"""
_SETTINGS = """## Settings

As keywords of `instrument()` or as variables; the keyword wins. A wrong keyword raises, a wrong variable warns once.
The standard `OTEL_*` variables are obeyed, `OTEL_SDK_DISABLED` among them; `OTEL_CONFIG_FILE` by
`opentelemetry-instrument` only.
"""


def page() -> str:
    """The page as it should be."""
    attributes = ((f"`{each.key}`", each.type, each.tier, each.meaning) for each in conventions.ATTRIBUTES)
    server = ((f"`{key}`", "double", meaning) for key, meaning in _SERVER_ATTRIBUTES)
    reasons = ((f"`{reason}`", meaning) for reason, meaning in REASONS.items())
    metrics = ((f"`{each.name}`", each.instrument, each.unit, each.meaning) for each in _metrics())
    metric_attributes = ((f"`{key}`", meaning) for key, meaning in conventions.METRIC_ATTRIBUTES)
    settings = ((f"`{each.name}`", f"`{each.variable}`", each.meaning, each.allowed) for each in OPTIONS)
    sections = (
        _HEAD,
        _ATTRIBUTES + _table(("attribute", "type", "tier", "meaning"), attributes),
        _SERVER + _table(("attribute", "type", "meaning"), server),
        _QUALITIES,
        _REASONS + _table(("reason", "meaning"), reasons),
        _METRICS
        + _table(("metric", "instrument", "unit", "meaning"), metrics)
        + _METRIC_ATTRIBUTES
        + _table(("attribute", "meaning"), metric_attributes),
        _SETTINGS + _table(("keyword", "variable", "meaning", "allowed"), settings),
    )
    return "\n".join(sections)


def _metrics() -> list[conventions.Metric]:
    return [value for value in vars(conventions).values() if isinstance(value, conventions.Metric)]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main(arguments: Sequence[str]) -> int:
    current = PAGE.exists() and PAGE.read_text() == page()
    if "--check" in arguments:
        if not current:
            print(f"{PAGE.name} is not what the code says. Run: python -m tools.reference", file=sys.stderr)
        return 0 if current else 1
    PAGE.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

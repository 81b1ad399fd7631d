"""Shows a service's newest trace from Jaeger as a tree with joules: ``python examples/joules.py SERVICE``.

``JAEGER`` is the base URL of its page, http://localhost:16686 if unset. ``--all`` shows every trace.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import requests

JAEGER = os.environ.get("JAEGER", "http://localhost:16686")


def newest_first(service: str) -> list[dict[str, Any]]:
    """The service's traces, once no more spans of them come."""
    before = 0
    for _ in range(20):
        answer = requests.get(f"{JAEGER}/api/traces", params={"service": service, "limit": "100"}, timeout=10)
        traces: list[dict[str, Any]] = answer.json()["data"] or []
        spans = sum(len(trace["spans"]) for trace in traces)
        if spans and spans == before:
            return sorted(traces, key=lambda trace: -min(span["startTime"] for span in trace["spans"]))
        before = spans
        time.sleep(1)
    raise SystemExit(f"Jaeger at {JAEGER} has no trace of {service}.")


def lines(trace: dict[str, Any]) -> Iterator[str]:
    """The tree of one trace, a line for each span."""
    children: dict[str | None, list[dict[str, Any]]] = {}
    known = {span["spanID"] for span in trace["spans"]}
    for span in sorted(trace["spans"], key=lambda span: int(span["startTime"])):
        above = next((one["spanID"] for one in span["references"] if one["spanID"] in known), None)
        children.setdefault(above, []).append(span)
    yield from _below(None, 0, children)


def _below(parent: str | None, depth: int, children: dict[str | None, list[dict[str, Any]]]) -> Iterator[str]:
    for span in children.get(parent, []):
        name = f"{'  ' * depth}{span['operationName']}"
        yield f"{name:<44}{_energy({tag['key']: tag['value'] for tag in span['tags']})}".rstrip()
        yield from _below(span["spanID"], depth + 1, children)


def _energy(attributes: dict[str, Any]) -> str:
    if "llm.energy.joules" not in attributes:
        total = attributes.get("llm.energy.subtree_joules")
        return "" if total is None else f"Σ {total:9.4g} J"
    words = [f"  {attributes['llm.energy.joules']:9.4g} J"]
    if "llm.energy.joules_per_output_token" in attributes:
        words.append(f"{attributes['llm.energy.joules_per_output_token']:.3g} J/token")
    words.append(attributes["llm.energy.quality"])
    if "llm.energy.reason" in attributes:
        words.append(f"({attributes['llm.energy.reason']})")
    return "  ".join(words)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    found = newest_first(sys.argv[1])
    for each in found if "--all" in sys.argv else found[:1]:
        print("\n".join(lines(each)))

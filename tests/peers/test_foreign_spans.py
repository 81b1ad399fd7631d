"""Spans of other instrumentations get the energy of the calls they stand for: one call, one span, one bill."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from otel_llm_energy import conventions as names
from tests.instrument.running import REPOSITORY
from tests.support.powercap import PowercapTree

BySurface = dict[str, list[dict[str, Any]]]
Exported = Callable[[str, str], BySurface]

APP = Path(__file__).parent / "apps" / "foreign.py"
OURS = "otel_llm_instrumentation."
OFFICIAL = "opentelemetry.instrumentation.genai.langchain"  # which ours turns on, and off for another one of LangChain
CALLS = {"two at once": 2, "batch": 2, "abatch": 2, "then a client's": 2}
ORDERS = ("theirs-first", "ours-first")
# Where they make no span, or none that could be known for the call's while it lasts, ours is the one with the bill.
OURS_ALONE = {
    "openllmetry-openai": {"responses"},  # made when the call is over
    "openllmetry-ollama": {"embeddings"},
    "openllmetry-langchain": {"embeddings"},
    "openinference-ollama": {"generate", "embeddings"},
    # In asynchronous code made in a thread that leaves no trace in the task.
    "openinference-langchain": {"abatch", "then a client's", "embeddings"},
    "genai-langchain": {"embeddings"},
    "openlit-ollama": {"embeddings"},
}
# It starts two spans for a stream and ends the one that was not there during the call: the bill is never shown.
NEVER_ENDED = {"openlit-ollama": {"stream"}}


@pytest.fixture(scope="session")
def exported(powercap: PowercapTree) -> Exported:
    """Runs the app once for each of its arguments."""
    return functools.lru_cache(lambda whose, order: spans_of(whose, order, powercap))


def spans_of(whose: str, order: str, powercap: PowercapTree) -> BySurface:
    """What the app exported, by the surface that it called."""
    own = {key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "OPENAI_", "LOGFIRE_"))}
    settings = {
        "OTEL_LLM_ENERGY_METERS": "rapl",
        "OTEL_LLM_ENERGY_POWERCAP_ROOT": str(powercap.root),
        "OTEL_LLM_ENERGY_IDLE_WATTS": "package-0=20,package-0/dram=2",
        "OTEL_TRACES_EXPORTER": "none",
        "OTEL_METRICS_EXPORTER": "none",
        "LOGFIRE_IGNORE_NO_CONFIG": "1",
        "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'instrumentation'}",
    }
    command = [sys.executable, str(APP), whose, order]
    done = subprocess.run(command, env={**own, **settings}, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    said = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"surface"')]
    return {each["surface"]: each["spans"] for each in said}


def billed(spans: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The spans that carry a call's own joules."""
    return [span for span in spans if names.JOULES in span["attributes"]]


def peers() -> list[str]:
    """OpenLIT holds the openai client below 3, so it has an environment of its own."""
    wanted = os.environ.get("OTEL_LLM_ENERGY_TEST_PEERS", "")
    return wanted.split() or ["no peers named: run these tests by `make peers`"]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("whose", peers())
def test_each_call_has_one_bill_on_one_span_when_somebody_else_instruments_it(
    whose: str, order: str, exported: Exported
) -> None:
    """Whoever was first; on theirs, wherever theirs can be known for the call's, and then ours makes none."""
    found = exported(whose, order)
    assert len(found) > 3
    for number, (surface, spans) in enumerate(found.items()):
        bills = billed(spans)
        expected = 0 if surface in NEVER_ENDED.get(whose, ()) else CALLS.get(surface, 1)
        assert len(bills) == expected, (surface, spans)
        ours = [span for span in spans if span["scope"].startswith(OURS)]
        if surface in OURS_ALONE.get(whose, ()):
            assert ours == bills, surface
        elif surface == "then a client's":  # of which theirs says nothing
            assert len(ours) == 1, spans
        else:
            assert ours == [], surface
        if whose != "genai-langchain" and (order == "theirs-first" or number > 0):  # before, nothing shows theirs
            assert not any(span["scope"] == OFFICIAL for span in spans), surface
        assert not any(span["attributes"].get(names.REASON) == "server_unknown" for span in spans), (surface, spans)


@pytest.mark.parametrize("whose", peers())
def test_span_of_another_library_says_what_ours_would(whose: str, exported: Exported) -> None:
    """The server's own timings, and joules per token by the tokens that the server reported."""
    found = exported(whose, "theirs-first")
    first, *_ = found.values()
    (span,) = billed(first)
    said = span["attributes"]
    assert said["llm.server.decode_seconds"] in (0.09225, 0.003)
    assert said[names.JOULES_PER_OUTPUT_TOKEN] == pytest.approx(said[names.JOULES] / 8, rel=1e-4)

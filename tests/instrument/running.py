"""Runs a small app as a process of its own, and reads what it exported."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from otel_llm_energy import conventions as names
from tests.support.otlp_receiver import OtlpReceiver, ReceivedSpan
from tests.support.powercap import PowercapTree

APPS = Path(__file__).with_name("apps")
REPOSITORY = APPS.parents[2]
_SETTINGS_OF_THE_OUTSIDE = ("OTEL_", "OPENAI_", "OLLAMA_", "LOGFIRE_")
_APP_SECONDS = 60


@dataclass(frozen=True)
class Apps:
    """Runs apps of the folder ``apps``: against a real model, metered by counters that follow the real CPU use."""

    base_url: str
    powercap: PowercapTree
    receiver: OtlpReceiver
    board: Path

    def environment(self, settings: Mapping[str, str]) -> dict[str, str]:
        """Of an app: nothing of ours, then what these tests need, then ``settings``; empty ones are left out."""
        own = {key: value for key, value in os.environ.items() if not key.startswith(_SETTINGS_OF_THE_OUTSIDE)}
        ours = {
            "OPENAI_BASE_URL": self.base_url,
            "OPENAI_API_KEY": "unused",
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.receiver.http_endpoint,
            "OTEL_LLM_ENERGY_BOARD": str(self.board),
            "OTEL_LLM_ENERGY_METERS": "rapl",
            "OTEL_LLM_ENERGY_POWERCAP_ROOT": str(self.powercap.root),
            "OTEL_LLM_ENERGY_IDLE_WATTS": "package-0=20,package-0/dram=2",
            "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'instrumentation'}",
        }
        return {key: value for key, value in {**own, **ours, **settings}.items() if value}

    def run(self, script: str, *, launcher: Sequence[str] = (sys.executable,), **settings: str) -> str:
        """Run a script to its end; what it printed. It must end well and say nothing on standard error."""
        done = subprocess.run(
            [*launcher, str(APPS / script)],
            env=self.environment(settings),
            capture_output=True,
            text=True,
            timeout=_APP_SECONDS,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
        return done.stdout

    @contextmanager
    def running(self, script: str, **settings: str) -> Iterator[subprocess.Popen[str]]:
        """A script under way, its standard output to be read; ended with the block."""
        with subprocess.Popen(
            [sys.executable, str(APPS / script)], env=self.environment(settings), stdout=subprocess.PIPE, text=True
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    # What was exported

    def span(self, name: str) -> ReceivedSpan:
        """The one span of this name."""
        (span,) = [span for span in self.receiver.spans if span.name == name]
        return span

    def calls(self, parent: str | None = None) -> list[ReceivedSpan]:
        """The spans of LLM calls; only those below the span ``parent``, if named."""
        wanted = None if parent is None else self.span(parent).span_id
        found = [span for span in self.receiver.spans if "gen_ai.operation.name" in span.attributes]
        return [span for span in found if wanted in (None, span.parent_id)]


def joules(span: ReceivedSpan) -> float:
    """A call's own joules, which must be measured, lie within their bounds and be said completely."""
    said = span.attributes
    assert said.get(names.QUALITY) in ("measured", "shared", "degraded"), said
    assert said[names.LOWER_JOULES] <= said[names.JOULES] <= said[names.UPPER_JOULES], said
    assert said[names.METER] == "rapl"
    assert said[names.JOULES] > 0
    return float(said[names.JOULES])


def subtree_joules(span: ReceivedSpan) -> float:
    """An ancestor's total."""
    return float(span.attributes[names.SUBTREE_JOULES])

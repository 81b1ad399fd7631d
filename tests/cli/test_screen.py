"""The demo's table on terminals of any width."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from rich.console import Console

from otel_llm_energy import conventions as names
from otel_llm_energy.cli.results import Node, Results
from otel_llm_energy.cli.screen import show
from otel_llm_energy.status import Status

_CALL = {
    "gen_ai.operation.name": "chat",
    names.JOULES: 42.13,
    names.ABOVE_IDLE_JOULES: 31.5,
    names.JOULES_PER_OUTPUT_TOKEN: 0.4213,
    names.LOWER_JOULES: 39.9,
    names.UPPER_JOULES: 44.81,
    names.QUALITY: "estimated",
    names.METER: "cpu-estimate",
}


def shown(width: int) -> str:
    """What the demo prints of one call on a terminal so many columns wide."""
    call = Node(ReadableSpan("chat", attributes=_CALL), "Why does bread rise?", 2, ())
    phase = Node(ReadableSpan("phase", attributes={names.SUBTREE_JOULES: 42.13}), "one after another", 1, (call,))
    root = Node(ReadableSpan("demo", attributes={names.SUBTREE_JOULES: 42.13}), "demo", 0, (phase,))
    console = Console(width=width, file=io.StringIO(), highlight=False)
    show(Results(root, (), Status((), (), {}, "joined")), console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [36, 40, 50, 60, 70, 80, 96, 120])
def test_joules_and_bounds_are_whole_when_the_terminal_is_narrow(width: int) -> None:
    """A figure without its last digits is another figure; other columns give way, and no line is too long."""
    (line,) = [line for line in shown(width).splitlines() if "~39.9..44.8" in line]
    assert "~42.1 " in line
    assert len(line.rstrip()) <= width


@pytest.mark.parametrize("on_the_path", [False, True])
def test_command_that_is_named_can_be_typed_when_make_ran_the_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_the_path: bool
) -> None:
    """From a checkout it is there by its path only; in an environment that is active, by its name."""
    program = tmp_path / "otel-llm-energy"
    program.touch(mode=0o755)
    monkeypatch.setattr("sys.argv", [str(program), "demo"])
    monkeypatch.setenv("PATH", str(tmp_path if on_the_path else tmp_path / "elsewhere"))
    named = "otel-llm-energy" if on_the_path else str(program)
    assert f"`{named} doctor` says what would mend that." in shown(500)

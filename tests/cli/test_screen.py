"""The demo's tables: on terminals of any width, and what they say of calls and of where the energy went."""

from __future__ import annotations

import io
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext
from rich.console import Console

from otel_llm_energy import conventions as names
from otel_llm_energy.cli.progress import count_up
from otel_llm_energy.cli.results import Node, Results, balance_of, tree_of
from otel_llm_energy.cli.screen import show
from otel_llm_energy.ledger.ledger import Balance
from otel_llm_energy.quantities import Channel
from otel_llm_energy.status import ChannelStatus, Status

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


def span(name: str, number: int, parent: int | None, **attributes: str | float | bool) -> ReadableSpan:
    """A span with its number as id, and as second of its start."""
    above = None if parent is None else SpanContext(1, parent, is_remote=False)
    context = SpanContext(1, number, is_remote=False)
    start_ns = number * 10**9
    return ReadableSpan(
        name, context, above, attributes=attributes, start_time=start_ns, end_time=start_ns + 250_000_000
    )


def call(number: int, parent: int, quality: str, reason: str) -> ReadableSpan:
    facts = {"gen_ai.operation.name": "chat", "gen_ai.response.id": f"r{number}", names.JOULES: 1.0}
    return span("chat m", number, parent, **facts, **{names.QUALITY: quality, names.REASON: reason})


SPANS = [
    call(4, 2, "degraded", "flush"),
    call(3, 2, "shared", ""),
    span("both", 2, 1, **{names.SUBTREE_JOULES: 2.0, names.SUBTREE_INCOMPLETE: True}),
    span("another", 9, None),
    span("demo", 1, None, **{names.SUBTREE_JOULES: 2.0}),
]


def counter(name: str, *, metered: int, billed: int, pending: int = 0, idle: int = 0) -> ChannelStatus:
    """What became of so many J of a counter of RAPL."""
    unattributed_nj = {"idle": idle * 10**9, "other": 0}
    balance = Balance(metered * 10**9, billed * 10**9, pending * 10**9, unattributed_nj)
    return ChannelStatus(Channel(name, "cpu", "rapl"), balance, 20.0, "learned", None, 0.5, None)


STATUS = Status(
    (counter("a", metered=100, billed=70, pending=5, idle=25), counter("b", metered=8, billed=8)), (), {}, ""
)


def test_tree_is_in_the_order_of_time_when_spans_come_in_any_order() -> None:
    """Each call by its question, each other span by its name; nothing while the root is not there."""
    tree = tree_of(SPANS, "demo", {"r3": "First?", "r4": "Second?"})
    assert tree is not None
    assert [(node.label, node.depth) for node in tree.walk()] == [
        ("demo", 0),
        ("both", 1),
        ("First?", 2),
        ("Second?", 2),
    ]
    assert tree_of(SPANS[:-1], "demo", {}) is None


def test_json_names_question_span_and_seconds_when_a_call_is_shown() -> None:
    """Ids as a back end shows them."""
    tree = tree_of(SPANS, "demo", {"r3": "First?"})
    assert tree is not None
    said = Results(tree, balance_of(STATUS), STATUS).as_json()
    first, second = said["calls"]
    assert (first["question"], second["question"]) == ("First?", "chat m")
    assert (first["trace_id"], first["span_id"]) == (f"{1:032d}", f"{3:016d}")
    assert (first["seconds"], first["joules"], first["quality"]) == (0.25, 1.0, "shared")
    assert said["balance"][0]["unattributed_joules"] == {"idle": 25.0, "other": 0.0}


def test_balance_and_reasons_are_told_when_calls_are_shown() -> None:
    """Every joule of every counter and of their sum; each word that is shown is told, and no other."""
    tree = tree_of(SPANS, "demo", {"r3": "First?", "r4": "Second?"})
    assert tree is not None
    console = Console(width=120, file=io.StringIO(), highlight=False)
    show(Results(tree, balance_of(STATUS), STATUS), console)
    assert isinstance(console.file, io.StringIO)
    lines = [" ".join(line.split()) for line in console.file.getvalue().splitlines()]
    assert "demo Σ 2.000" in lines
    assert "└ both Σ 2.000+" in lines
    assert [line for line in lines if line.startswith(("where", "rapl", "sum"))] == [
        "where the energy went, J metered = calls + pending + idle",
        "rapl a 100.0 70.0 5.0 25.0",
        "rapl b 8.0 8.0 0.0 0.0",
        "sum 108.0 78.0 5.0 25.0",
    ]
    assert "flush: a flush could not wait for the next reading (Second?)." in lines
    assert "shared: other calls were at work at the same time; each gets an equal part of each instant." in lines
    assert "idle: drawn anyway, while no call was at work." in lines
    assert not [line for line in lines if line.startswith(("other:", "~:", "No power meter"))]


def test_counters_can_be_told_apart_when_the_terminal_is_narrow() -> None:
    """By the ends of their names, which are folded and not cut off."""
    tree = tree_of(SPANS, "demo", {})
    assert tree is not None
    balance = [replace(one, channel=f"package-{number}/dram") for number, one in enumerate(balance_of(STATUS))]
    console = Console(width=40, file=io.StringIO(), highlight=False)
    show(Results(tree, balance, STATUS), console)
    assert isinstance(console.file, io.StringIO)
    beginnings = "".join(line.partition(" ")[0] for line in console.file.getvalue().splitlines())
    assert "raplpackage-0/dramraplpackage-1/dramsum" in beginnings


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("kind", "shown_there"), [("dumb", "Idle baseline ...\n"), ("xterm", "\r\033[K")], ids=["dumb", "other"]
)
def test_line_is_drawn_anew_when_the_terminal_can_do_that(
    kind: str, shown_there: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shells of editors show the codes for it as rubbish."""
    monkeypatch.setenv("TERM", kind)
    monkeypatch.setattr("sys.stderr", _Terminal())
    assert count_up("Idle baseline", lambda: True, at_least_seconds=0, at_most_seconds=0)
    assert isinstance(sys.stderr, _Terminal)
    assert sys.stderr.getvalue() == shown_there

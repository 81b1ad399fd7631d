"""The demo's results on a terminal: the span tree, the balance, and what the words mean. Needs rich."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from otel_llm_energy import conventions as names
from otel_llm_energy.cli.metering import missing
from otel_llm_energy.cli.reasons import REASONS, UNATTRIBUTED
from otel_llm_energy.cli.results import ChannelBalance, Node, Results

_PLAIN_WIDTH = 100
_COLOURS = {"measured": "green", "shared": "green", "degraded": "yellow", "estimated": "magenta", "unavailable": "red"}
_NOTHING = "-"


def show(results: Results, console: Console | None = None) -> None:
    """Print everything to the console; standard output if ``None``, without colours where that is no terminal."""
    if console is None:
        console = Console(width=None if sys.stdout.isatty() else _PLAIN_WIDTH, highlight=False)
    console.print()
    for sentence in _warnings(results):
        console.print(sentence, style="bold yellow")
    console.print(_tree_table(results))
    for line in _legend(results):
        console.print(line, style="dim")
    if results.balance:
        console.print()
        console.print(_balance_table(results.balance, results.estimated))
        for line in _balance_legend(results.balance):
            console.print(line, style="dim")


def _warnings(results: Results) -> Iterator[str]:
    if not results.estimated:
        return
    tried = ", ".join(f"{one.name}: {one.reason}" for one in missing(results.status))
    so = "every figure below is an estimate from CPU time" if results.balance else "the calls below have no joules"
    yield f"No power meter can be read on this machine ({tried or 'none was tried'}), so {so}."
    yield "`otel-llm-energy doctor` says what would mend that.\n"


# The tree


def _tree_table(results: Results) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("\nspan", no_wrap=True)
    kind = "estimate" if results.estimated else ""
    for header in (f"{kind}\nJ", "above\nidle J", "J/output\ntoken", "prefill\nJ", "decode\nJ", "lower..\nupper J"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("\nquality", no_wrap=True)
    table.add_column("\nmeter", no_wrap=True)
    guides = _guides(results.tree)
    for node in results.tree.walk():
        cells = _call_cells(node) if node.is_call else _parent_cells(node)
        table.add_row(Text(guides[id(node)] + node.label), *cells)
    return table


def _guides(root: Node) -> dict[int, str]:
    """The lines that lead to each node, two characters for each level."""
    guides: dict[int, str] = {id(root): ""}

    def draw(node: Node, stem: str) -> None:
        for child in node.children:
            last = child is node.children[-1]
            guides[id(child)] = stem + ("└ " if last else "├ ")
            draw(child, stem + ("  " if last else "│ "))

    draw(root, "")
    return guides


def _call_cells(node: Node) -> Sequence[str | Text]:
    quality = node.text(names.QUALITY)
    about = "~" if quality == "estimated" else ""

    def cell(key: str) -> str:
        value = node.joules(key)
        return _NOTHING if value is None else about + significant(value)

    return (
        Text(cell(names.JOULES), style="bold"),
        cell(names.ABOVE_IDLE_JOULES),
        cell(names.JOULES_PER_OUTPUT_TOKEN),
        cell(names.PREFILL_JOULES),
        cell(names.DECODE_JOULES),
        f"{cell(names.LOWER_JOULES)}..{cell(names.UPPER_JOULES).lstrip(about)}"
        if node.joules(names.JOULES)
        else _NOTHING,
        Text(quality, style=_COLOURS.get(quality, "")),
        node.text(names.METER) or _NOTHING,
    )


def _parent_cells(node: Node) -> Sequence[str | Text]:
    total = node.joules(names.SUBTREE_JOULES)
    if total is None:
        return ()
    about = "~" if node.text(names.QUALITY) == "estimated" else ""
    cut = "+" if node.attributes.get(names.SUBTREE_INCOMPLETE) else ""
    return (Text(f"Σ {about}{significant(total, 4)}{cut}", style="bold cyan"),)


def _legend(results: Results) -> Iterator[str]:
    yield "Σ: all calls below the span. lower..upper: the bounds of J, given the way energy is shared."
    if results.estimated:
        yield "~: an estimate, not a measurement."
    calls = results.calls()
    if any(node.joules(names.JOULES) and node.joules(names.DECODE_JOULES) is None for node in calls):
        yield "-: the readings do not part prefill from decode."
    if any(node.text(names.QUALITY) == "shared" for node in calls):
        yield "shared: other calls were at work at the same time; each gets an equal part of each instant."
    for reason in sorted({node.text(names.REASON) for node in calls} - {""}):
        labels = ", ".join(node.label for node in calls if node.text(names.REASON) == reason)
        yield f"{reason}: {REASONS.get(reason, 'see the documentation')} ({labels})."


# The balance


def _balance_table(balance: Sequence[ChannelBalance], estimated: bool) -> Table:
    digits = _digits(max(one.metered for one in balance))
    reasons = [reason for reason in UNATTRIBUTED if any(_shows(one, reason, digits) for one in balance)]
    pending = any(round(one.pending, digits) for one in balance)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("where the energy went, J")
    columns = ["estimated" if estimated else "metered", "= calls", *(["+ pending"] if pending else [])]
    for header in (*columns, *(f"+ {reason}" for reason in reasons)):
        table.add_column(header, justify="right")
    for label, rows in _balance_rows(balance):
        parts = [sum(one.metered for one in rows), sum(one.attributed for one in rows)]
        parts += [sum(one.pending for one in rows)] if pending else []
        parts += [sum(one.unattributed.get(reason, 0.0) for one in rows) for reason in reasons]
        table.add_row(label, *(f"{part:.{digits}f}" for part in parts), style="bold" if len(rows) > 1 else "")
    return table


def _balance_rows(balance: Sequence[ChannelBalance]) -> Iterator[tuple[str, Sequence[ChannelBalance]]]:
    for one in balance:
        yield f"{one.meter} {one.channel}" if one.meter != one.channel else one.channel, [one]
    if len(balance) > 1:
        yield "sum", balance


def _balance_legend(balance: Sequence[ChannelBalance]) -> Iterator[str]:
    digits = _digits(max(one.metered for one in balance))
    for reason, meaning in UNATTRIBUTED.items():
        if any(_shows(one, reason, digits) for one in balance):
            yield f"{reason}: {meaning}."


def _shows(one: ChannelBalance, reason: str, digits: int) -> bool:
    return round(one.unattributed.get(reason, 0.0), digits) != 0


def _digits(joules: float) -> int:
    """Decimals with which the largest figure shows at least four digits."""
    return 1 if joules >= 100 else 2


def significant(value: float, digits: int = 3) -> str:
    """A figure with so many significant digits, never with an exponent: ``0.0123``, ``1.23``, ``1230``."""
    if value == 0:
        return "0"
    rounded = f"{value:.{digits - 1}e}"
    decimals = max(digits - 1 - int(rounded.partition("e")[2]), 0)
    return f"{float(rounded):.{decimals}f}"

"""The demo's results on a terminal: the span tree, the balance, and what the words mean. Needs rich."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from otel_llm_energy import conventions as names
from otel_llm_energy.cli import typed
from otel_llm_energy.cli.metering import missing
from otel_llm_energy.cli.reasons import REASONS, UNATTRIBUTED
from otel_llm_energy.cli.results import ChannelBalance, Node, Results

_PLAIN_WIDTH = 100
_ENOUGH_OF_A_LABEL = 20
_COLOURS = {"measured": "green", "shared": "green", "degraded": "yellow", "estimated": "magenta", "unavailable": "red"}
_NOTHING = "-"


def show(results: Results, console: Console | None = None) -> None:
    """Print everything to the console; standard output if ``None``, without colours where that is no terminal."""
    if console is None:
        console = Console(width=None if sys.stdout.isatty() else _PLAIN_WIDTH, highlight=False)
    console.print()
    for sentence in _warnings(results):
        console.print(sentence, style="bold yellow")
    columns = _columns_that_fit(results, console.width)
    console.print(_tree_table(results, columns, console.width))
    for line in _legend(results, columns):
        console.print(line, style="dim")
    if results.balance:
        console.print()
        console.print(_balance_table(results.balance, results.estimated))
        for line in _balance_legend(results.balance):
            console.print(line, style="dim")


def _warnings(results: Results) -> Iterator[str]:
    if results.measured:
        return
    tried = ", ".join(f"{one.name}: {one.reason}" for one in missing(results.status))
    so = "every figure below is an estimate from CPU time" if results.estimated else "the calls below have no joules"
    yield f"No power meter can be read on this machine ({tried or 'none was tried'}), so {so}."
    yield f"`{typed('doctor')}` says what would mend that.\n"


# The tree


def _tree_table(results: Results, columns: Sequence[_Column], width: int) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    # Only the span gives way: a figure without its last digits would be another figure.
    table.add_column("\nspan", no_wrap=True, max_width=max(width - _width(results, columns), 1))
    for column in columns:
        least = _column_width(results, column)
        table.add_column(_header(results, column), justify=column.justify, no_wrap=True, min_width=least)
    for node, label in _labels(results.tree):
        cells = [column.cell(node) for column in columns] if node.is_call else [_total(node)]
        table.add_row(Text(label), *cells)
    return table


def _columns_that_fit(results: Results, width: int) -> list[_Column]:
    """All of them, but for those that must go so that figures are whole, and spans can be told apart."""
    columns = list(_COLUMNS)
    label_width = min(max(cell_len(label) for _, label in _labels(results.tree)), _ENOUGH_OF_A_LABEL)
    for least in sorted((column for column in _COLUMNS if column.goes), key=lambda column: column.goes):
        if label_width + _width(results, columns) > width:
            columns.remove(least)
    return columns


def _width(results: Results, columns: Sequence[_Column]) -> int:
    """What the columns take beside the span, each with the space before it."""
    return sum(1 + _column_width(results, column) for column in columns)


def _column_width(results: Results, column: _Column) -> int:
    cells = [column.cell(node) for node in results.calls()]
    if column.header == "J":
        cells += [_total(node) for node in results.tree.walk() if not node.is_call]
    return max(cell_len(str(line)) for line in (*_header(results, column).split("\n"), *cells))


def _header(results: Results, column: _Column) -> str:
    header = f"estimate\n{column.header}" if column.header == "J" and results.estimated else column.header
    return header if "\n" in header else f"\n{header}"


def _labels(root: Node) -> list[tuple[Node, str]]:
    guides = _guides(root)
    return [(node, guides[id(node)] + node.label) for node in root.walk()]


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


@dataclass(frozen=True, slots=True)
class _Column:
    """What the tree says of a call; the lower ``goes``, the sooner it goes where there is no room, and 0 never."""

    header: str
    cell: Callable[[Node], str | Text]
    justify: Literal["left", "right"] = "right"
    goes: int = 0


def _joules_of(key: str) -> Callable[[Node], str]:
    return lambda node: _figure(node, key)


def _figure(node: Node, key: str) -> str:
    value = node.joules(key)
    return _NOTHING if value is None else _about(node) + significant(value)


def _bounds(node: Node) -> str:
    lower, upper = node.joules(names.LOWER_JOULES), node.joules(names.UPPER_JOULES)
    if lower is None or upper is None:
        return _NOTHING
    return f"{_about(node)}{significant(lower)}..{significant(upper)}"


def _quality(node: Node) -> Text:
    quality = node.text(names.QUALITY)
    return Text(quality, style=_COLOURS.get(quality, ""))


def _total(node: Node) -> Text:
    """What the calls below a span took together."""
    total = node.joules(names.SUBTREE_JOULES)
    if total is None:
        return Text()
    more = "+" if node.attributes.get(names.SUBTREE_INCOMPLETE) else ""
    return Text(f"Σ {_about(node)}{significant(total, 4)}{more}", style="bold cyan")


def _about(node: Node) -> str:
    """Marks every figure of an estimate as one."""
    return "~" if node.text(names.QUALITY) == "estimated" else ""


_COLUMNS: Final = (
    _Column("J", lambda node: Text(_figure(node, names.JOULES), style="bold")),
    _Column("above\nidle J", _joules_of(names.ABOVE_IDLE_JOULES), goes=5),
    _Column("J/output\ntoken", _joules_of(names.JOULES_PER_OUTPUT_TOKEN), goes=4),
    _Column("prefill\nJ", _joules_of(names.PREFILL_JOULES), goes=2),
    _Column("decode\nJ", _joules_of(names.DECODE_JOULES), goes=3),
    _Column("lower..\nupper J", _bounds),
    _Column("quality", _quality, "left", goes=6),
    _Column("meter", lambda node: node.text(names.METER) or _NOTHING, "left", goes=1),
)


def _legend(results: Results, columns: Sequence[_Column]) -> Iterator[str]:
    gone = ", ".join(column.header.replace("\n", " ") for column in _COLUMNS if column not in columns)
    if gone:
        yield f"Left out, since the terminal is narrow: {gone}."
    yield "Σ: all calls below the span. lower..upper: the bounds of J, given the way energy is shared."
    if results.estimated:
        yield "~: an estimate, not a measurement."
    calls = results.calls()
    phases = any(column.header.startswith("decode") for column in columns)
    if phases and any(node.joules(names.JOULES) and node.joules(names.DECODE_JOULES) is None for node in calls):
        yield "-: the readings do not part prefill from decode."
    if any(node.text(names.QUALITY) == "shared" for node in calls):
        yield "shared: other calls were at work at the same time; each gets an equal part of each instant."
    for reason in sorted({node.text(names.REASON) for node in calls} - {""}):
        labels = [node.label for node in calls if node.text(names.REASON) == reason]
        which = "all calls" if len(labels) == len(calls) else ", ".join(labels)
        yield f"{reason}: {REASONS.get(reason, 'see the documentation')} ({which})."


# The balance


def _balance_table(balance: Sequence[ChannelBalance], estimated: bool) -> Table:
    digits = _digits(max(one.metered_joules for one in balance))
    reasons = [reason for reason in UNATTRIBUTED if any(_shows(one, reason, digits) for one in balance)]
    pending = any(round(one.pending_joules, digits) for one in balance)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("where the energy went, J", overflow="fold")  # two counters differ in the ends of their names
    columns = ["estimated" if estimated else "metered", "= calls", *(["+ pending"] if pending else [])]
    for header in (*columns, *(f"+ {reason}" for reason in reasons)):
        table.add_column(header, justify="right")
    for label, rows in _balance_rows(balance):
        parts = [sum(one.metered_joules for one in rows), sum(one.attributed_joules for one in rows)]
        parts += [sum(one.pending_joules for one in rows)] if pending else []
        parts += [sum(one.unattributed_joules.get(reason, 0.0) for one in rows) for reason in reasons]
        table.add_row(label, *(f"{part:.{digits}f}" for part in parts), style="bold" if len(rows) > 1 else "")
    return table


def _balance_rows(balance: Sequence[ChannelBalance]) -> Iterator[tuple[str, Sequence[ChannelBalance]]]:
    for one in balance:
        yield f"{one.meter} {one.channel}" if one.meter != one.channel else one.channel, [one]
    if len(balance) > 1:
        yield "sum", balance


def _balance_legend(balance: Sequence[ChannelBalance]) -> Iterator[str]:
    digits = _digits(max(one.metered_joules for one in balance))
    for reason, meaning in UNATTRIBUTED.items():
        if any(_shows(one, reason, digits) for one in balance):
            yield f"{reason}: {meaning}."


def _shows(one: ChannelBalance, reason: str, digits: int) -> bool:
    return round(one.unattributed_joules.get(reason, 0.0), digits) != 0


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

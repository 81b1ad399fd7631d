"""Small charts as SVG text: no script, no font, no network; legible on a phone and in print.

Every chart has one width in its own units, so that at a phone's width its words are still of a readable size.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

WIDTH: Final = 460
HEIGHT: Final = 290
_LEFT, _RIGHT, _TOP, _BOTTOM = 68, 12, 12, 46

# Okabe and Ito 2008: told apart by people who do not see all colours; and each has a mark of its own.
COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#000000")
_MARKS: Final = ("circle", "square", "triangle", "diamond")
_CORNERS: Final[Mapping[str, Sequence[tuple[float, float]]]] = {
    "square": ((-1, -1), (1, -1), (1, 1), (-1, 1)),
    "triangle": ((0, -1.2), (1.1, 0.9), (-1.1, 0.9)),
    "diamond": ((0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)),
}


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis: what stands beside it and where it goes from and to."""

    label: str
    low: float
    high: float

    @staticmethod
    def over(label: str, values: Sequence[float], *, from_zero: bool = True) -> Axis:
        """An axis on which all values lie, with a little room."""
        finite = [value for value in values if math.isfinite(value)] or [0.0]
        low, high = min(finite), max(finite)
        room = (high - (0.0 if from_zero else low)) * 0.06 or abs(high) * 0.1 or 1.0
        return Axis(label, min(0.0, low) if from_zero else low - room, high + room)

    def ticks(self) -> list[tuple[float, str]]:
        """Three to six round values, and how they are written."""
        step = _round_step((self.high - self.low) / 5)
        first = math.ceil(self.low / step - 1e-9)
        count = math.floor(self.high / step + 1e-9) - first + 1
        decimals = max(-math.floor(math.log10(step) + 1e-9), 0)
        return [((first + index) * step, f"{(first + index) * step:,.{decimals}f}") for index in range(count)]


def _round_step(step: float) -> float:
    magnitude: float = 10.0 ** math.floor(math.log10(step))
    return next(magnitude * factor for factor in (1, 2, 5, 10) if magnitude * factor >= step * 0.999)


def number(value: float, digits: int = 3) -> str:
    """A figure for people: so many significant digits, thousands parted, small ones with an exponent."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "-"
    if abs(value) < 1e-4:
        return f"{value:.{digits - 1}e}"
    decimals = max(digits - 1 - math.floor(math.log10(abs(value))), 0)
    return f"{value:,.{decimals}f}"


class Plot:
    """A plot with two axes, to which shapes are added; `svg` is the whole."""

    def __init__(self, x: Axis, y: Axis, title: str) -> None:
        self.x, self.y = x, y
        self._title = title
        self._shapes: list[str] = []

    def at_x(self, value: float) -> float:
        return _LEFT + (value - self.x.low) / (self.x.high - self.x.low) * (WIDTH - _LEFT - _RIGHT)

    def at_y(self, value: float) -> float:
        span = HEIGHT - _TOP - _BOTTOM
        return HEIGHT - _BOTTOM - (value - self.y.low) / (self.y.high - self.y.low) * span

    def mark(self, x: float, y: float, series: int, *, size: float = 3.0, opacity: float = 0.75, tip: str = "") -> None:
        """A mark in the colour and shape of a series."""
        self._shapes.append(mark(self.at_x(x), self.at_y(y), series, size, opacity, tip))

    def line(self, points: Sequence[tuple[float, float]], colour: str, *, width: float = 2, dashes: str = "") -> None:
        """Points joined by a line."""
        where = " ".join(f"{self.at_x(x):.1f},{self.at_y(y):.1f}" for x, y in points)
        dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
        self._shapes.append(
            f'<polyline points="{where}" fill="none" stroke="{colour}" stroke-width="{width}"{dashed}/>'
        )

    def area(self, lower: Sequence[tuple[float, float]], upper: Sequence[tuple[float, float]], colour: str) -> None:
        """The area between two lines."""
        where = " ".join(f"{self.at_x(x):.1f},{self.at_y(y):.1f}" for x, y in (*lower, *reversed(upper)))
        self._shapes.append(f'<polygon points="{where}" fill="{colour}" opacity="0.18"/>')

    def text(self, x: float, y: float, words: str, *, dy: float = 0) -> None:
        """Words at a place."""
        self._shapes.append(
            f'<text x="{self.at_x(x):.1f}" y="{self.at_y(y) + dy:.1f}" text-anchor="middle">{escape(words)}</text>'
        )

    def svg(self) -> str:
        """The whole chart."""
        return svg(self._title, HEIGHT, [*self._grid(), *self._shapes, *self._labels()])

    def _grid(self) -> list[str]:
        right, bottom = WIDTH - _RIGHT, HEIGHT - _BOTTOM
        shapes = []
        for value, words in self.y.ticks():
            y = self.at_y(value)
            shapes.append(f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" class="grid"/>')
            shapes.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{words}</text>')
        for value, words in self.x.ticks():
            x = self.at_x(value)
            shapes.append(f'<line x1="{x:.1f}" y1="{bottom}" x2="{x:.1f}" y2="{bottom + 4}" class="axis"/>')
            shapes.append(f'<text x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">{words}</text>')
        shapes.append(f'<line x1="{_LEFT}" y1="{bottom}" x2="{right}" y2="{bottom}" class="axis"/>')
        return shapes

    def _labels(self) -> list[str]:
        middle = (_LEFT + WIDTH - _RIGHT) / 2
        half = (_TOP + HEIGHT - _BOTTOM) / 2
        bottom = HEIGHT - 6
        return [
            f'<text x="{middle:.1f}" y="{bottom}" text-anchor="middle" class="label">{escape(self.x.label)}</text>',
            f'<text transform="translate(13 {half:.1f}) rotate(-90)" text-anchor="middle" class="label">'
            f"{escape(self.y.label)}</text>",
        ]


def mark(x: float, y: float, series: int, size: float, opacity: float = 1.0, tip: str = "") -> str:
    """A mark at a place of the drawing."""
    colour = COLOURS[series % len(COLOURS)]
    fill = f'fill="{colour}" opacity="{opacity}"'
    inside = f"<title>{escape(tip)}</title>" if tip else ""
    shape = _MARKS[series % len(_MARKS)]
    if shape == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size:g}" {fill}>{inside}</circle>'
    corners = _CORNERS[shape]
    where = " ".join(f"{x + dx * size:.1f},{y + dy * size:.1f}" for dx, dy in corners)
    return f'<polygon points="{where}" {fill}>{inside}</polygon>'


@dataclass(frozen=True, slots=True)
class Bar:
    """A horizontal bar, perhaps of several parts, with an interval and words at its end."""

    name: str
    parts: Sequence[float]
    low: float | None = None
    high: float | None = None
    words: str = ""
    series: int = 0


_BAR_HEIGHT: Final = 42
_LINE_HEIGHT: Final = 15
_LINE_CHARACTERS: Final = 50  # at a phone's or the printer's larger letters


def bars(title: str, label: str, rows: Sequence[Bar]) -> str:
    """Horizontal bars, each below its name, so that long names have room."""
    highest = max((max(sum(row.parts), row.high or 0.0) for row in rows), default=1.0) or 1.0
    scale: Callable[[float], float] = lambda value: 8 + value / (highest * 1.28) * (WIDTH - 16)  # noqa: E731
    shapes, top = [], 6
    for row in rows:
        for line in textwrap.wrap(row.name, _LINE_CHARACTERS) or [""]:
            shapes.append(f'<text x="8" y="{top + 12}">{escape(line)}</text>')
            top += _LINE_HEIGHT
        shapes += _bar_parts(row, top + 3, scale)
        if row.low is not None and row.high is not None:
            shapes.append(_whisker(scale(row.low), scale(row.high), top + 11))
        end = scale(max(sum(row.parts), row.high or 0.0)) + 6
        shapes.append(f'<text x="{end:.1f}" y="{top + 15}" class="figure">{escape(row.words)}</text>')
        top += _BAR_HEIGHT - _LINE_HEIGHT
    height = top + 20
    shapes.append(f'<text x="8" y="{height - 6}" class="label">{escape(label)}</text>')
    return svg(title, height, shapes)


def _bar_parts(row: Bar, top: float, scale: Callable[[float], float]) -> list[str]:
    shapes, start = [], 0.0
    for index, part in enumerate(row.parts):
        colour = COLOURS[(row.series + index) % len(COLOURS)]
        width = max(scale(start + part) - scale(start), 0.5)
        shapes.append(
            f'<rect x="{scale(start):.1f}" y="{top}" width="{width:.1f}" height="16" fill="{colour}" opacity="0.8"/>'
        )
        start += part
    return shapes


def _whisker(low: float, high: float, y: float) -> str:
    ends = "".join(f'<line x1="{x:.1f}" y1="{y - 5}" x2="{x:.1f}" y2="{y + 5}" class="whisker"/>' for x in (low, high))
    return f'<line x1="{low:.1f}" y1="{y}" x2="{high:.1f}" y2="{y}" class="whisker"/>{ends}'


def svg(title: str, height: float, shapes: Sequence[str]) -> str:
    """A drawing that grows and shrinks with the page."""
    size = f'viewBox="0 0 {WIDTH} {height:g}"'
    return f'<svg {size} role="img" aria-label="{escape(title, quote=True)}">{"".join(shapes)}</svg>'

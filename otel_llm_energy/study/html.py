"""Pieces of a page in HTML, with every text from outside escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files


def page(title: str, content: Iterable[str]) -> str:
    """A whole page that fetches nothing: its policy forbids the browser to."""
    style = (files(__package__) / "report.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{escape(title)}</title>\n<style>\n{style}</style></head>\n<body>\n"
        + "\n".join(content)
        + "\n</body></html>\n"
    )


def escaped(words: str) -> str:
    """Text as HTML."""
    return escape(words)


def heading(words: str) -> str:
    return f"<h2>{escape(words)}</h2>"


def paragraph(words: str, kind: str = "") -> str:
    named = f' class="{kind}"' if kind else ""
    return f"<p{named}>{escape(words)}</p>"


def bullets(items: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Key figures, each in a box."""
    boxes = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in pairs)
    return f'<dl class="facts">{boxes}</dl>'


def figure(drawing: str, caption: str, legend: str = "") -> str:
    """A drawing (which is HTML already) and what it shows."""
    return f"<figure>{legend}{drawing}<figcaption>{escape(caption)}</figcaption></figure>"


def figures(*drawn: str) -> str:
    """Figures side by side where there is room."""
    return f'<div class="figures">{"".join(drawn)}</div>'


def legend(entries: Iterable[tuple[str, str]]) -> str:
    """Marks (drawings of 14 by 14) and their names."""
    parts = "".join(f'<span><svg viewBox="0 0 14 14">{mark}</svg>{escape(name)}</span>' for mark, name in entries)
    return f'<div class="legend">{parts}</div>'


def table(headers: Sequence[str], rows: Iterable[Sequence[str | tuple[str, str]]], words: Sequence[int] = ()) -> str:
    """A table that scrolls by itself where the page is narrow.

    Args:
        headers: of the columns.
        rows: cells: a text, or a text and a smaller one after it.
        words: numbers of the columns that hold words rather than figures, beside the first.
    """

    def kind(index: int) -> str:
        return ' class="words"' if index in words else ""

    head = "".join(f"<th{kind(index)}>{escape(header)}</th>" for index, header in enumerate(headers))
    body = "".join(
        "<tr>" + "".join(f"<td{kind(index)}>{_cell(cell)}</td>" for index, cell in enumerate(row)) + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(cell: str | tuple[str, str]) -> str:
    if isinstance(cell, str):
        return escape(cell)
    return f"{escape(cell[0])} <small>{escape(cell[1])}</small>"


def matrix(labels: Sequence[str], value: Sequence[Sequence[float]]) -> str:
    """Figures from -1 to 1 on colours: blue below, orange above, white at 0."""
    head = "<th></th>" + "".join(f"<th>{escape(label)}</th>" for label in labels)
    body = "".join(
        f"<tr><th>{escape(label)}</th>" + "".join(_shaded(each) for each in row) + "</tr>"
        for label, row in zip(labels, value, strict=True)
    )
    return f'<div class="wide"><table class="matrix"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _shaded(value: float) -> str:
    if value != value:
        return "<td>-</td>"
    part = min(abs(value), 1.0) * 0.75
    end = (213, 94, 0) if value > 0 else (0, 114, 178)
    red, green, blue = (round(255 + (channel - 255) * part) for channel in end)
    ink = "#fff" if part > 0.6 else "#1b1b1b"
    return f'<td style="background:rgb({red},{green},{blue});color:{ink}">{value:.2f}</td>'

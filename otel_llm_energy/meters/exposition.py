"""A line parser for Prometheus' text format that keeps only wanted names.

Scaphandre sends several hundred kilobytes, mostly of processes, in families that are not contiguous, with labels in
random order and blank lines inside raw values: full parsers take it for a thousand families, or refuse it.
Source: https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

MAX_LINE_BYTES = 1 << 20  # a process line carries a whole command line

_LINE = re.compile(rb"([A-Za-z_:][A-Za-z0-9_:]*)(?:\{(.*)\})?[ \t]+([^ \t{}\"]+)(?:[ \t]+-?\d+)?[ \t\r]*")
_LABEL = re.compile(rb'([A-Za-z_][A-Za-z0-9_]*)[ \t]*=[ \t]*"((?:[^"\\]|\\.)*)"', re.DOTALL)
_MAX_DIGITS = 20  # 2^64 has 20
_ESCAPES = {"n": "\n"}


class Sample(NamedTuple):
    """One line: ``name{labels} value``. Whole numbers stay integers, exactly."""

    name: str
    labels: Mapping[str, str]
    value: int | float


def parse(chunks: Iterable[bytes], wanted: Collection[str]) -> Iterator[Sample]:
    """Yield the wanted samples of a body that arrives in chunks; pass over what is no such line.

    A last line that does not end is dropped: its number may be cut short. Raises nothing of its own.
    """
    names = {name.encode() for name in wanted}
    for line in _lines(chunks):
        # Most lines are not wanted: find out before the regular expression runs.
        if line.split(b"{", 1)[0].split(b" ", 1)[0] in names:
            sample = _sample(line)
            if sample is not None:
                yield sample


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    overlong = False
    for chunk in chunks:
        first, *others = chunk.split(b"\n")
        rest += first
        if others:
            if not overlong:
                yield rest
            yield from others[:-1]
            rest, overlong = others[-1], False
        if len(rest) > MAX_LINE_BYTES:
            rest, overlong = b"", True


def _sample(line: bytes) -> Sample | None:
    match = _LINE.fullmatch(line)
    if match is None:
        return None
    value = _value(match[3])
    if value is None:
        return None
    labels = {_text(name): _unescape(_text(raw)) for name, raw in _LABEL.findall(match[2] or b"")}
    return Sample(_text(match[1]), labels, value)


def _value(raw: bytes) -> int | float | None:
    """The number; ``None`` for what is none, or not finite."""
    if raw.isdigit():  # Scaphandre echoes leading zeros
        digits = raw.lstrip(b"0")
        return int(digits or b"0") if len(digits) <= _MAX_DIGITS else None
    try:
        value = float(raw)
    except ValueError:
        return None
    return value if math.isfinite(value) and b"_" not in raw else None


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", errors="replace")


def _unescape(text: str) -> str:
    if "\\" not in text:
        return text
    return re.sub(r"\\(.)", lambda match: _ESCAPES.get(match[1], match[1]), text, flags=re.DOTALL)

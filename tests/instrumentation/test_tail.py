"""What is kept of a body says the same however the body was cut, and is bounded."""

from __future__ import annotations

import itertools
import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_llm_instrumentation.tail import Tail

_PAYLOADS = st.lists(st.dictionaries(st.sampled_from("abc"), st.text(max_size=9), min_size=1), max_size=9)


def _fed(text: bytes, cuts: list[int], lines: int | None) -> list[object]:
    tail = Tail(lines)
    edges = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    for start, end in itertools.pairwise(edges):
        tail.feed(text[start:end])
    return tail.payloads()


@pytest.mark.parametrize(("before", "after"), [(b"data: ", b"\n\n"), (b"data:", b"\r\n\r\n"), (b"", b"\n")])
@given(
    payloads=_PAYLOADS,
    cuts=st.lists(st.integers(min_value=0), max_size=9),
    lines=st.integers(1, 3),
    padding=st.sampled_from([0, 20_000]),
)
def test_last_payloads_are_kept_when_a_stream_is_cut_anywhere(
    before: bytes, after: bytes, payloads: list[dict[str, str]], cuts: list[int], lines: int, padding: int
) -> None:
    """Events and lines, with an end mark that is no payload."""
    payloads = [{**payload, "padding": "x" * padding} for payload in payloads]
    text = b"".join(before + json.dumps(payload).encode() + after for payload in payloads) + b"data: [DONE]\n\n"
    assert _fed(text, cuts, lines) == payloads[-lines:]


@given(payload=st.dictionaries(st.text(max_size=3), st.integers()), cuts=st.lists(st.integers(min_value=0), max_size=9))
def test_whole_body_is_kept_when_it_is_the_payload(payload: dict[str, int], cuts: list[int]) -> None:
    """Line ends within it mean nothing."""
    assert _fed(json.dumps(payload, indent=1).encode(), cuts, None) == [payload]


@pytest.mark.parametrize("lines", [2, None])
@pytest.mark.parametrize("line_end", [b"\n", b""], ids=["lines", "one long line"])
def test_memory_is_bounded_when_a_body_is_long(lines: int | None, line_end: bytes) -> None:
    """However long the body or a line of it is: what is kept is a few MB at most."""
    tail = Tail(lines)
    for _ in range(400):
        tail.feed(b'{"text": "' + b"x" * 50_000 + b'"}' + line_end)
    kept = sum(sys.getsizeof(piece) for piece in tail._pieces)
    assert kept < 10_000_000
    tail.feed(b'\n{"usage": 1}\n')
    assert tail.payloads()[-1:] == ([{"usage": 1}] if lines else [])


def test_long_line_says_nothing_when_its_end_looks_like_a_payload() -> None:
    """What is left of a line that was too long is not taken for a line."""
    tail = Tail(1)
    for _ in range(200):
        tail.feed(b"x" * 50_000)
    tail.feed(b'{"usage": 1}')
    assert tail.payloads() == []


@pytest.mark.parametrize("lines", [2, None])
def test_what_is_nested_too_deep_says_nothing_and_raises_nothing(lines: int | None) -> None:
    """It is read while the app reads, who may be content with the bytes."""
    tail = Tail(lines)
    tail.feed(b'{"usage": ' + b"[" * 200_000)
    assert tail.payloads() == []

"""When a call was at work: its span also holds the queue, and a slow reader."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_llm_energy.ledger.bill import Window
from otel_llm_energy.ledger.windows import CallTimes, work_windows

MS = 1_000_000


def windows(**times_ms: int) -> list[tuple[str, int, int]]:
    """Phase, start and end in ms, from times in ms."""
    times = CallTimes(**{f"{name}_ns": value * MS for name, value in times_ms.items()})
    return [(window.phase, window.start_ns // MS, window.end_ns // MS) for window in work_windows(times)]


def test_window_is_the_call_when_the_server_says_nothing() -> None:
    """Embeddings, vLLM."""
    assert windows(start=100, end=900) == [("work", 100, 900)]


def test_first_chunk_parts_prefill_from_decode_when_the_server_says_nothing() -> None:
    """A stream of a server without timings."""
    assert windows(start=100, first_chunk=300, end=900) == [("prefill", 100, 300), ("decode", 300, 900)]


@pytest.mark.parametrize("first_chunk", [100, 900, 50, 1000])
def test_first_chunk_parts_nothing_when_it_lies_at_or_outside_the_edges(first_chunk: int) -> None:
    """No empty and no negative phases."""
    assert windows(start=100, first_chunk=first_chunk, end=900) == [("work", 100, 900)]


def test_window_ends_with_the_call_when_the_server_reports_its_work() -> None:
    """The queue lies before it."""
    assert windows(start=0, end=1000, prefill=50, decode=250) == [("prefill", 700, 750), ("decode", 750, 1000)]


def test_window_starts_with_the_call_when_the_report_is_longer() -> None:
    """Clocks of server and client differ a little: the work is never longer than the call."""
    assert windows(start=0, end=1000, prefill=200, decode=900) == [("prefill", 0, 100), ("decode", 100, 1000)]
    assert windows(start=0, end=1000, prefill=200, decode=1200) == [("decode", 0, 1000)]


def test_one_phase_is_enough_when_the_server_reports_only_that() -> None:
    """An answer of one token has no decode time."""
    assert windows(start=0, end=1000, prefill=200, decode=0) == [("prefill", 800, 1000)]
    assert windows(start=0, end=1000, decode=200) == [("decode", 800, 1000)]


def test_window_ends_before_the_call_when_the_stream_is_read_slowly() -> None:
    """Written in 200 ms after the first chunk, read until 1000."""
    assert windows(start=0, first_chunk=300, end=1000, prefill=100, decode=200) == [
        ("prefill", 200, 300),
        ("decode", 300, 500),
    ]


def test_window_ends_with_the_server_when_its_clock_is_this_hosts() -> None:
    """Ollama's created_at, earlier than anything that the client saw."""
    assert windows(start=0, end=1000, prefill=100, decode=200, server_end=800) == [
        ("prefill", 500, 600),
        ("decode", 600, 800),
    ]


@pytest.mark.parametrize("server_end", [-50_000, 100, 2000])
def test_servers_end_is_not_believed_when_it_leaves_the_work_no_room(server_end: int) -> None:
    """Its wall clock was set, or is another host's; one after the call's end changes nothing either."""
    assert windows(start=0, end=1000, prefill=100, decode=200, server_end=server_end)[-1] == ("decode", 800, 1000)


def test_loading_lies_at_the_start_of_the_call_before_the_queue() -> None:
    """Ollama loads the model, then the call waits for its slot."""
    assert windows(start=0, end=5000, load=2000, prefill=100, decode=400) == [
        ("load", 0, 2000),
        ("prefill", 4500, 4600),
        ("decode", 4600, 5000),
    ]


def test_loading_is_no_window_when_the_model_was_there() -> None:
    """Ollama reports some milliseconds for a look at what is loaded."""
    assert windows(start=0, end=1000, load=40, decode=300) == [("decode", 700, 1000)]


def test_load_never_reaches_into_the_work_nor_beyond_the_call() -> None:
    """Reports that contradict one another give windows that do not overlap."""
    assert windows(start=0, end=1000, load=900, prefill=100, decode=200) == [("load", 0, 900), ("decode", 900, 1000)]
    assert windows(start=0, end=1000, load=3000, decode=200) == [("load", 0, 1000)]


def test_there_is_no_window_when_the_call_took_no_time() -> None:
    """Nor when it ended before it began."""
    assert windows(start=100, end=100) == windows(start=100, end=50, prefill=5, decode=5) == []


_NS = st.integers(-2_000, 2_000)
_LENGTH = st.none() | st.integers(0, 3_000)


@given(_NS, _NS, st.none() | _NS, _LENGTH, _LENGTH, _LENGTH | st.just(200 * MS), st.none() | _NS)
def test_windows_are_in_order_inside_the_call_and_do_not_overlap(
    start: int,
    end: int,
    chunk: int | None,
    prefill: int | None,
    decode: int | None,
    load: int | None,
    ended: int | None,
) -> None:
    """Whatever is reported."""
    found: tuple[Window, ...] = work_windows(CallTimes(start, end, chunk, prefill, decode, load, ended))
    edges = [edge for window in found for edge in (window.start_ns, window.end_ns)]
    assert edges == sorted(edges)
    assert all(window.end_ns > window.start_ns for window in found)
    assert all(start <= edge <= end for edge in edges)

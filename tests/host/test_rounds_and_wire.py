"""Up to when the holder has heard its members, and what they say to each other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_llm_energy.host.rounds import Rounds
from otel_llm_energy.host.wire import (
    Ask,
    Closed,
    Hello,
    Opened,
    Read,
    Until,
    WireError,
    bill_from_json,
    bill_to_json,
    channel_from_json,
    channel_to_json,
    decode,
    encode,
    sample_from_json,
    sample_to_json,
    windows_from_json,
)
from otel_llm_energy.ledger.bill import Bill, Quality, Window, unavailable
from otel_llm_energy.quantities import ActivitySample, Channel

PATIENCE = 100


def test_nothing_is_settled_past_what_the_slowest_member_has_said() -> None:
    """Once it has answered, as far as the next one; with nobody to ask, until now."""
    rounds = Rounds(PATIENCE)
    assert rounds.until_ns(10) == 10
    rounds.expect("a", 3, 10)
    rounds.expect("b", 5, 10)
    assert rounds.until_ns(10) == 3
    rounds.heard("a", 9)
    assert rounds.until_ns(12) == 5
    assert rounds.deadline_ns(12) == 10 + PATIENCE
    rounds.heard("b", 11)
    assert (rounds.until_ns(12), rounds.deadline_ns(12)) == (9, None)


def test_member_is_asked_again_only_when_it_has_answered() -> None:
    """One open question each."""
    rounds = Rounds(PATIENCE)
    for member in ("a", "b"):
        rounds.expect(member, 0, 0)
        rounds.heard(member, 1)
    assert sorted(rounds.ask(2)) == ["a", "b"]
    rounds.heard("a", 2)
    assert rounds.ask(3) == ["a"]


def test_member_counts_no_more_when_patience_with_it_has_ended_or_it_has_left() -> None:
    """When it answers after all, it counts again."""
    rounds = Rounds(PATIENCE)
    rounds.expect("stopped", 1, 0)
    assert rounds.until_ns(PATIENCE - 1) == 1
    assert rounds.until_ns(PATIENCE) == PATIENCE
    assert rounds.overdue(PATIENCE) == ["stopped"]
    rounds.heard("stopped", 50)
    assert rounds.until_ns(PATIENCE) == 50
    rounds.leave("stopped")
    assert rounds.until_ns(PATIENCE) == PATIENCE
    assert len(rounds) == 0


@pytest.mark.parametrize(
    "message",
    [
        Hello("1 0.1.0", "abc", "12-ef", 12, 99, [1, 2]),
        Opened(7, "[::1]:8080", "chat", None, 5),
        Closed(7, [[5, 9, "prefill", 0], [9, 12, "decode", 0]], True),
        Read("package-0", 12, 3, 4, "P0"),
        Until(9),
        Ask(),
    ],
)
def test_message_is_the_same_when_it_was_sent(message: Opened) -> None:
    """One line each."""
    line = encode(message)
    assert line.count(b"\n") == 1
    assert decode(line) == message


@given(st.binary(max_size=200))
def test_what_is_no_message_is_refused(line: bytes) -> None:
    """By one error, whatever it is."""
    try:
        decode(line)
    except WireError:
        return
    raise AssertionError(f"{line!r} passed for a message.")


def test_bill_is_the_same_when_it_was_sent() -> None:
    """To the nanojoule; and an unavailable one says why."""
    bill = Bill(
        energy_nj=10**15 + 1,
        quality=Quality.SHARED,
        above_idle_nj=7,
        phases_nj={"prefill": 3, "decode": 4},
        components_nj={"cpu": 7},
        meter="rapl",
        scope="process",
        concurrency=1.5,
    )
    for each in (bill, unavailable("no-reading")):
        back = bill_from_json(bill_to_json(each))
        assert back == each
        assert isinstance(back.quality, Quality)
    with pytest.raises(WireError):
        bill_from_json({"quality": "excellent"})


def test_channels_samples_and_windows_are_the_same_when_they_were_written_down() -> None:
    """By way of JSON."""
    import json

    channel = Channel("package-0", "cpu", "rapl", range_uj=5, limit_watts=2.5)
    assert channel_from_json(json.loads(json.dumps(channel_to_json(channel)))) == channel
    sample = ActivitySample("cpu", 5, 6, {"a:1": 3, "b:2": None}, 4, 1, 1, frozenset({"c:3"}))
    assert sample_from_json(json.loads(json.dumps(sample_to_json(sample)))) == sample
    windows = (Window(1, 2, "load"), Window(3, 4, "decode", 7))
    assert windows_from_json(json.loads(json.dumps(windows))) == windows

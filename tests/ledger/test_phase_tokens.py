"""Sharing a batch by the tokens of its phases, by examples that can be worked out by hand."""

from __future__ import annotations

from otel_llm_energy.ledger.bill import Bill, Window
from otel_llm_energy.ledger.ledger import Ledger
from otel_llm_energy.ledger.sweep import BatchSharing
from otel_llm_energy.ledger.windows import CallTimes, work_windows
from otel_llm_energy.quantities import NJ_PER_JOULE, NS_PER_SECOND, ActivitySample, Channel, Reading

IDLE_WATTS, WATTS = 20, 80


def bills(share: BatchSharing, *calls: tuple[Window, ...], reported: bool = True) -> list[Bill]:
    """Bills of calls in four seconds at a constant 80 W, 20 of them idle, read every second."""
    ledger = Ledger(0, share=share)
    ledger.add_channel(Channel("package-0", "cpu", "rapl", idle_watts=IDLE_WATTS, limit_watts=WATTS))
    ledger.add_server("llm")
    entries = [ledger.open("llm", windows[0].start_ns) for windows in calls]
    for second in range(5):
        at_ns = second * NS_PER_SECOND
        ledger.read(Reading("package-0", second * WATTS * 1_000_000, at_ns, at_ns))
        ledger.sample(ActivitySample("cpu", at_ns, at_ns, {"llm": at_ns}, 1, 0, 0))
        ledger.settle(at_ns)
    for entry, windows in zip(entries, calls, strict=True):
        ledger.close(entry, windows, reported=reported)
    ledger.settle(4 * NS_PER_SECOND + 1)
    for balance in ledger.balance().values():
        assert balance.metered_nj == balance.billed_nj + balance.pending_nj + sum(balance.unattributed_nj.values())
    return [entry.bill for entry in entries if entry.bill is not None]


def window(start: float, end: float, weight: int = 0) -> Window:
    return Window(int(start * NS_PER_SECOND), int(end * NS_PER_SECOND), "decode", weight)


def above_idle(bill: Bill) -> float:
    assert bill.above_idle_nj is not None
    return bill.above_idle_nj / NJ_PER_JOULE


def test_energy_above_idle_goes_by_tokens_when_all_are_known() -> None:
    """One call reads 300 tokens a second while the other writes 100: three parts to one, idle in halves."""
    first, second = bills("phase-tokens", (window(1, 3, 3000),), (window(1, 3, 1000),))
    assert (above_idle(first), above_idle(second)) == (90, 30)
    assert first.energy_nj == (90 + 20) * NJ_PER_JOULE
    assert first.method == "above-idle/phase-tokens"


def test_weight_is_that_of_the_phase_when_it_changes() -> None:
    """Three to one for a second, one to one for the next."""
    reading = (window(1, 2, 3000), window(2, 3, 1000))
    first, second = bills("phase-tokens", reading, (window(1, 3, 1000),))
    assert (above_idle(first), above_idle(second)) == (45 + 30, 15 + 30)


def test_time_is_shared_equally_when_the_tokens_of_one_call_are_unknown() -> None:
    """What that call does to the others cannot be said; the bill names the method that was used."""
    first, second = bills("phase-tokens", (window(1, 3, 3000),), (window(1, 3),))
    assert (above_idle(first), above_idle(second)) == (60, 60)
    assert first.method == "above-idle/equal-time"


def test_weights_are_ignored_when_time_is_shared_equally() -> None:
    """The default."""
    first, second = bills("equal-time", (window(1, 3, 3000),), (window(1, 3, 1000),))
    assert (above_idle(first), above_idle(second)) == (60, 60)
    assert first.method == "above-idle/equal-time"


def test_call_alone_gets_everything_when_its_tokens_are_unknown() -> None:
    """A weight matters only against others."""
    (alone,) = bills("phase-tokens", (window(1, 3),))
    assert above_idle(alone) == 120
    assert alone.method == "above-idle/phase-tokens"


def test_calls_are_waited_for_when_their_server_reports_no_timings() -> None:
    """What a call weighs is known at its end, also where its window is its span."""
    first, second = bills("phase-tokens", (window(1, 3, 3000),), (window(1, 3, 1000),), reported=False)
    assert (above_idle(first), above_idle(second)) == (90, 30)


def test_bounds_hold_any_course_of_power_when_calls_overlap_in_part() -> None:
    """Both calls' energy in the second that they share may lie anywhere in it; the bill lies between its bounds."""
    for bill in bills("phase-tokens", (window(0.5, 2.5, 3000),), (window(1.5, 3.5, 1000),)):
        assert bill.lower_nj is not None
        assert bill.upper_nj is not None
        assert bill.energy_nj is not None
        assert bill.lower_nj <= bill.energy_nj <= bill.upper_nj
        assert bill.upper_nj < 4 * WATTS * NJ_PER_JOULE


def test_weight_is_tokens_by_time_when_the_server_reports_its_phases() -> None:
    """Tenths of a token per second, of what the server had to work on."""
    second = NS_PER_SECOND
    times = CallTimes(0, 10 * second, prefill_ns=second, decode_ns=4 * second, prefill_tokens=500, decode_tokens=100)
    assert work_windows(times) == (
        Window(5 * second, 6 * second, "prefill", 5000),
        Window(6 * second, 10 * second, "decode", 250),
    )


def test_weight_is_unknown_when_tokens_are() -> None:
    """And when there were none, as for a prompt that was wholly cached."""
    windows = work_windows(CallTimes(0, 10, prefill_ns=2, decode_ns=5, prefill_tokens=0))
    assert [each.weight for each in windows] == [0, 0]


def test_weight_is_known_without_timings_when_a_first_chunk_parts_the_phases() -> None:
    """Of a streamed call the client sees when the prompt was read."""
    second = NS_PER_SECOND
    windows = work_windows(CallTimes(0, 3 * second, second, prefill_tokens=50, decode_tokens=100))
    assert [each.weight for each in windows] == [500, 500]

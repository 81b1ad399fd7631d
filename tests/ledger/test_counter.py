"""From readings to buckets: what a counter may do, and what is made of it."""

from __future__ import annotations

from otel_llm_energy.ledger.counter import Bucket, Counter
from otel_llm_energy.quantities import NS_PER_SECOND, Channel, Reading

RANGE_UJ = 10_000_000  # wraps after 100 s at 100 mW


def counter(*, range_uj: int | None = None, limit_watts: float | None = None) -> Counter:
    return Counter(Channel("package-0", "cpu", "rapl", range_uj=range_uj, limit_watts=limit_watts))


def at(seconds: float, energy_uj: int, *, error_ns: int = 0) -> Reading:
    middle_ns = round(seconds * NS_PER_SECOND)
    return Reading("package-0", energy_uj, middle_ns - error_ns, middle_ns + error_ns)


def buckets(counted: Counter, *readings: Reading) -> list[Bucket]:
    return [bucket for bucket in map(counted.read, readings) if bucket is not None]


def test_two_readings_close_a_bucket_of_their_difference() -> None:
    """In nanojoules, from the middle of one reading's interval to the middle of the next."""
    (bucket,) = buckets(counter(), at(1, 500, error_ns=7), at(2, 1_500, error_ns=9))
    assert bucket == Bucket(NS_PER_SECOND, 2 * NS_PER_SECOND, 1_000_000, 7, 9, None)


def test_energy_goes_on_when_the_counter_wraps_at_a_known_range() -> None:
    """The backward step is the wrap, and no energy is lost in it."""
    (bucket,) = buckets(counter(range_uj=RANGE_UJ, limit_watts=1), at(1, RANGE_UJ - 300), at(2, 200))
    assert (bucket.energy_nj, bucket.gap) == (500_000, None)


def test_backward_step_is_a_gap_when_the_range_is_unknown() -> None:
    """It may be a wrap or a restart of the exporter: nobody can tell."""
    counted = counter()
    first, second = buckets(counted, at(1, 5_000), at(2, 1_000), at(3, 1_500))
    assert (first.energy_nj, first.gap) == (0, "reset")
    assert (second.energy_nj, second.gap) == (500_000, None)


def test_backward_step_is_a_reset_when_a_wrap_would_need_too_many_watts() -> None:
    """After a reboot or a driver's reload the counter starts at 0; half a range in a second at 1 W is no wrap."""
    (bucket,) = buckets(counter(range_uj=RANGE_UJ, limit_watts=1), at(1, RANGE_UJ // 2), at(2, 0))
    assert (bucket.energy_nj, bucket.gap) == (0, "reset")


def test_reset_is_seen_when_the_counter_lies_outside_its_range() -> None:
    """A range that is smaller than what was counted is not the counter's: no negative energy."""
    (bucket,) = buckets(counter(range_uj=1_000, limit_watts=1e6), at(1, 90_000), at(1.001, 5))
    assert (bucket.energy_nj, bucket.gap) == (0, "reset")


def test_jump_is_a_gap_when_no_hardware_could_have_used_it() -> None:
    """More than twice the limit, or 2 kW where there is none."""
    (known,) = buckets(counter(limit_watts=100), at(1, 0), at(2, 300_000_000))
    (unknown,) = buckets(counter(), at(1, 0), at(2, 3_000_000_000))
    (possible,) = buckets(counter(), at(1, 0), at(2, 300_000_000))
    assert [known.gap, unknown.gap, possible.gap] == ["jump", "jump", None]
    assert known.energy_nj == unknown.energy_nj == 0


def test_short_bucket_may_hold_the_energy_of_a_refresh() -> None:
    """A counter that is refreshed every 100 ms gives a 5 ms bucket 100 ms of energy: no jump."""
    (bucket,) = buckets(counter(limit_watts=100), at(1, 0), at(1.005, 10_000_000))
    assert bucket.gap is None


def test_repeated_value_closes_no_bucket_until_the_counter_is_frozen() -> None:
    """A stale answer only lengthens the bucket; after 10 s without a step the time is a gap."""
    counted = counter()
    assert buckets(counted, at(1, 100), at(3, 100), at(5, 100)) == []
    (moved,) = buckets(counted, at(7, 900))
    assert (moved.start_ns, moved.energy_nj, moved.gap) == (NS_PER_SECOND, 800_000, None)
    (frozen,) = buckets(counted, at(12, 900), at(17.5, 900))
    assert (frozen.gap, frozen.end_ns) == ("frozen", round(17.5 * NS_PER_SECOND))


def test_overtaken_reading_is_ignored_when_two_threads_read_at_once() -> None:
    """The value that was read first comes in last: neither a wrap nor a reset."""
    counted = counter(range_uj=RANGE_UJ, limit_watts=1)
    assert buckets(counted, at(1, 1_000), at(2, 2_000))[0].energy_nj == 1_000_000
    late = Reading("package-0", 1_990, 2 * NS_PER_SECOND - 1_000, 2 * NS_PER_SECOND + 50_000)
    assert counted.read(late) is None
    (bucket,) = buckets(counted, at(3, 3_000))
    assert bucket.energy_nj == 1_000_000


def test_reading_that_is_not_later_is_ignored() -> None:
    """Time does not go back, whatever the counter says."""
    assert buckets(counter(), at(2, 100), at(2, 200), at(1, 300)) == []


def test_bucket_is_a_gap_when_it_may_hide_whole_wraps() -> None:
    """In 21 s at up to 2 x 0.25 W a counter of 10 J may have come round unseen: the difference means nothing."""
    counted = counter(range_uj=RANGE_UJ, limit_watts=0.25)
    short, long = buckets(counted, at(0, 0), at(10, 1_000), at(31, 2_000))
    assert (short.gap, long.gap) == (None, "wrapped-unseen")
    assert long.energy_nj == 0


def test_next_bucket_is_a_gap_when_time_was_interrupted() -> None:
    """After a suspend the last reading cannot be joined to the next; the one after that can."""
    counted = counter()
    counted.read(at(1, 100))
    counted.interrupt("suspend")
    gap, after = buckets(counted, at(2, 100), at(3, 400))
    assert (gap.gap, gap.energy_nj) == ("suspend", 0)
    assert (after.gap, after.energy_nj) == (None, 300_000)

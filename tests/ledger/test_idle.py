"""What is learned of a channel's idle power, and what is not guessed."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_llm_energy.ledger.idle import IdleModel
from otel_llm_energy.ledger.samples import quantile
from otel_llm_energy.quantities import NS_PER_SECOND, IdlePower

IDLE_WATTS = 20.0
WATTS_PER_CPU = 60.0


def free(model: IdleModel, watts: float, seconds: float = 0.5, busy_cpus: float | None = 0.0) -> None:
    """A stretch without calls."""
    length_ns = round(seconds * NS_PER_SECOND)
    busy_ns = None if busy_cpus is None else round(busy_cpus * length_ns)
    model.learn_free(round(watts * length_ns), length_ns, busy_ns)
    if busy_ns is not None:
        model.learn_cost_of_load(round(watts * length_ns), length_ns, busy_ns)


def working(model: IdleModel, watts: float, seconds: float = 0.5, busy_cpus: float | None = 1.0) -> None:
    """A stretch with calls at work all the time."""
    length_ns = round(seconds * NS_PER_SECOND)
    model.learn_working(round(watts * length_ns), length_ns)
    if busy_cpus is not None:
        model.learn_cost_of_load(round(watts * length_ns), length_ns, round(busy_cpus * length_ns))


def linear(busy_cpus: float) -> float:
    return IDLE_WATTS + WATTS_PER_CPU * busy_cpus


def test_quantile_interpolates_between_the_values() -> None:
    """As numpy's default does."""
    assert quantile([1.0], 0.1) == 1.0
    assert quantile([4.0, 1.0, 2.0, 3.0], 0.5) == 2.5
    assert quantile([0.0, 10.0], 0.1) == pytest.approx(1.0)
    assert quantile([0.0, 10.0], 1.0) == 10.0


def test_idle_is_the_lowest_tenth_of_the_free_time() -> None:
    """What runs now and then is not idle; the lowest moment alone would be chance."""
    model = IdleModel()
    for tenth in range(11):
        free(model, 20 + tenth, busy_cpus=None)
    baseline = model.baseline()
    assert baseline.watts == pytest.approx(21.0)
    assert baseline.lowest_watts == pytest.approx(20.2)


def test_a_stretch_teaches_nothing_when_its_length_is_in_doubt() -> None:
    """The first of Scaphandre's buckets begins at an answer that may be up to 2 s old."""
    model = IdleModel()
    model.learn_free(round(28 * 2.2 * NS_PER_SECOND), round(3.2 * NS_PER_SECOND), None, (NS_PER_SECOND, 5_000_000))
    for _ in range(6):
        model.learn_free(round(28 * 2.2 * NS_PER_SECOND), round(2.2 * NS_PER_SECOND), None, (5_000_000, 5_000_000))
    assert model.baseline().watts == pytest.approx(28.0)
    assert model.baseline().lowest_watts == pytest.approx(28.0)


def test_short_buckets_teach_when_only_their_inner_edges_are_in_doubt() -> None:
    """What one has too much the next has too little."""
    model = IdleModel()
    for _ in range(30):
        model.learn_free(28 * NS_PER_SECOND // 20, NS_PER_SECOND // 20, None, (10_000_000, 10_000_000))
    assert model.baseline().watts == pytest.approx(28.0)


@pytest.mark.parametrize("stretches", [[], [0.5], [0.2, 0.2, 0.2], [0.49]])
def test_idle_is_unknown_when_there_was_too_little_free_time(stretches: list[float]) -> None:
    """Less than two stretches of half a second: never guessed."""
    model = IdleModel()
    for seconds in stretches:
        free(model, 20, seconds)
    assert model.baseline().watts is None


def test_short_buckets_are_gathered_when_they_adjoin() -> None:
    """Fifty readings of 20 ms are as good as one of a second; work between two of them is not."""
    model, interrupted = IdleModel(), IdleModel()
    for step in range(50):
        free(model, 20 + (step % 2), 0.02)
        free(interrupted, 20, 0.02)
        interrupted.interrupt()
    assert model.baseline().watts == pytest.approx(20.5, abs=0.1)
    assert interrupted.baseline().watts is None


def test_true_idle_is_found_when_a_constant_background_load_never_pauses() -> None:
    """One CPU is always busy: the lowest power that is ever seen is 80 W, and the fit finds the 20 W below."""
    model, chance = IdleModel(), random.Random(1)
    for _ in range(20):
        free(model, linear(1.0), busy_cpus=1.0)
        busy_cpus = 1.0 + chance.uniform(0.5, 3.0)
        working(model, linear(busy_cpus), busy_cpus=busy_cpus)
    assert model.baseline().watts == pytest.approx(IDLE_WATTS, rel=1e-6)


def test_true_idle_is_found_when_the_background_load_is_noisy() -> None:
    """Ticks make busy time uncertain at each instant: what one stretch has too much, the next has too little."""
    model, chance, error = IdleModel(), random.Random(2), 0.0
    for _ in range(60):
        for stretch, busy_cpus in ((free, 1.0), (working, 1.0 + chance.uniform(0.5, 3.0))):
            before, error = error, chance.gauss(0, 0.02)  # CPU seconds
            stretch(model, linear(busy_cpus), busy_cpus=busy_cpus + (error - before) / 0.5)
    baseline = model.baseline()
    assert baseline.watts == pytest.approx(IDLE_WATTS, abs=1)
    assert baseline.lowest_watts <= IDLE_WATTS <= baseline.watts * (1 + baseline.drift)


def test_fit_is_left_out_when_the_load_hardly_varies() -> None:
    """A slope through one cloud of points means nothing."""
    model, chance = IdleModel(), random.Random(3)
    for _ in range(20):
        free(model, linear(1.0) + chance.uniform(0, 5), busy_cpus=1.0 + chance.uniform(0, 0.2))
    assert model.baseline().watts == pytest.approx(linear(1.0), abs=2)


def test_fit_is_left_out_when_the_load_of_the_free_time_is_not_known() -> None:
    """As after a change of samplers: what a busy CPU costs is known, but not how busy the CPUs were without calls."""
    model = IdleModel()
    for busy_cpus in (0.1, 1.0, 0.4, 0.7, 0.2, 0.9, 0.5, 0.3):
        working(model, linear(busy_cpus), busy_cpus=busy_cpus)
    for _ in range(3):
        free(model, 30, busy_cpus=None)
    assert model.baseline().watts == pytest.approx(30)


def test_fit_never_raises_the_idle_that_was_seen() -> None:
    """Where power falls with busy time (clocks that go down), what was measured in free time holds."""
    model = IdleModel()
    for busy_cpus in (0.0, 0.5, 1.0, 1.5):
        free(model, 40 - 10 * busy_cpus, busy_cpus=busy_cpus)
    watts = model.baseline().watts
    assert watts is not None
    assert watts <= 40 - 10 * 1.5 + 2


def test_known_idle_is_not_learned_anew() -> None:
    """What the user says holds."""
    model = IdleModel(known_watts=7.0)
    for _ in range(5):
        free(model, 20)
    assert (model.baseline().watts, model.baseline().lowest_watts) == (7.0, 7.0)


def test_highest_power_is_the_hardware_limit_or_a_margin_over_what_was_seen() -> None:
    """P_hi: 1.1 times the 99 % quantile of buckets that were all work, unless the limit is known."""
    limited, seen, nothing = IdleModel(limit_watts=125.0), IdleModel(), IdleModel()
    for model in (limited, seen):
        working(model, 90)
        working(model, 100)
    assert limited.baseline().highest_watts == 125.0
    assert limited.limit_is_hardware
    assert seen.baseline().highest_watts == pytest.approx(1.1 * 99.9)
    assert nothing.baseline().highest_watts is None


def test_old_samples_are_forgotten_when_the_machine_changes() -> None:
    """Memory is bounded, and a new idle is learned in time."""
    model = IdleModel()
    for watts in (50.0, 20.0):
        for _ in range(300):
            free(model, watts, busy_cpus=None)
    assert model.baseline().watts == pytest.approx(20.0)


# Idle power of an earlier run

EARLIER = IdlePower(watts=20.0, lowest_watts=19.0, seconds=60.0)


def test_idle_of_an_earlier_run_holds_until_this_one_knows_better() -> None:
    """From the first call on; then a live figure of five seconds is better."""
    model = IdleModel()
    model.remember(EARLIER)
    assert (model.baseline().watts, model.baseline().origin) == (20.0, "cached")
    for _ in range(9):
        free(model, 22)
    assert (model.baseline().watts, model.baseline().origin) == (20.0, "cached")
    free(model, 22)
    assert (model.baseline().watts, model.baseline().origin) == (22.0, "learned")


def test_idle_of_an_earlier_run_allows_for_drift_when_it_is_used() -> None:
    """It may be ten per cent more or less by now."""
    model = IdleModel()
    model.remember(EARLIER)
    baseline = model.baseline()
    assert baseline.lowest_watts == pytest.approx(0.9 * 19)
    assert baseline.drift == 0.1


def test_idle_of_an_earlier_run_is_dropped_when_less_power_is_seen() -> None:
    """Idle can be no more than what was drawn, be it with calls or without."""
    for stretch in (free, working):
        model = IdleModel()
        model.remember(EARLIER)
        stretch(model, 15)
        assert (model.baseline().watts, model.baseline().origin) == (None, "unknown")
        free(model, 15)
        free(model, 15)
        assert (model.baseline().watts, model.baseline().origin) == (15.0, "learned")


def test_idle_of_an_earlier_run_gives_way_a_little_when_a_little_less_power_is_seen() -> None:
    """Within the drift that is allowed for."""
    model = IdleModel()
    model.remember(EARLIER)
    free(model, 18.5)
    assert (model.baseline().watts, model.baseline().origin) == (18.5, "cached")


def test_idle_of_an_earlier_run_holds_when_this_one_sees_nothing_but_load() -> None:
    """A program that never pauses hides the idle power: what was learned on a quiet day is nearer to it."""
    model = IdleModel()
    model.remember(EARLIER)
    for _ in range(40):
        free(model, linear(2.0), busy_cpus=2.0)
    assert (model.baseline().watts, model.baseline().origin) == (20.0, "cached")
    assert model.learned() is None


def test_idle_is_in_doubt_when_this_run_sees_nothing_but_load() -> None:
    """Without an earlier run's: the figure says of itself that it may be anything below."""
    model = IdleModel()
    for _ in range(40):
        free(model, linear(2.0), busy_cpus=2.0)
    baseline = model.baseline()
    assert (baseline.watts, baseline.lowest_watts, baseline.origin) == (linear(2.0), 0.0, "under-load")
    assert model.learned() is None


def test_idle_is_no_longer_in_doubt_when_load_has_varied_enough() -> None:
    """The slope is known from then on, and with it what is left without load."""
    model, chance = IdleModel(), random.Random(4)
    for _ in range(3):
        free(model, linear(1.0), busy_cpus=1.0)
    assert model.baseline().origin == "under-load"
    for _ in range(10):
        busy_cpus = 1.0 + chance.uniform(0.5, 3.0)
        working(model, linear(busy_cpus), busy_cpus=busy_cpus)
    baseline = model.baseline()
    assert baseline.origin == "learned"
    assert baseline.watts == pytest.approx(IDLE_WATTS, rel=1e-6)


@pytest.mark.parametrize("busy_cpus", [0.0, 0.25, None])
def test_idle_is_not_in_doubt_when_the_machine_is_quiet_or_its_load_cannot_be_known(busy_cpus: float | None) -> None:
    """A little load is always there, and a meter elsewhere comes without any figure of load."""
    model = IdleModel()
    for _ in range(4):
        free(model, 20, busy_cpus=busy_cpus)
    assert model.baseline().origin == "learned"


def test_idle_is_worth_keeping_when_five_seconds_were_free() -> None:
    """Less may be chance; what the user gave is the user's to keep."""
    model, given = IdleModel(), IdleModel(known_watts=20)
    for _ in range(9):
        free(model, 20)
        free(given, 20)
    assert model.learned() is None
    free(model, 20)
    free(given, 20)
    assert model.learned() == IdlePower(20.0, 20.0, 5.0)
    assert given.learned() is None


def test_idle_is_learned_anew_when_it_is_forgotten() -> None:
    """Nothing of before counts, not even an earlier run's figure."""
    model = IdleModel()
    model.remember(EARLIER)
    for _ in range(20):
        free(model, 20)
    model.forget()
    assert model.baseline().watts is None
    free(model, 30)
    free(model, 30)
    assert model.baseline().watts == 30.0


@given(
    earlier=st.sampled_from([None, EARLIER]),
    stretches=st.lists(st.tuples(st.booleans(), st.floats(1, 200), st.floats(0, 4) | st.none()), max_size=12),
    before=st.integers(0, 12),
)
def test_another_model_goes_on_as_if_it_had_learned_all_itself(
    earlier: IdlePower | None, stretches: list[tuple[bool, float, float | None]], before: int
) -> None:
    """Whatever it was: figures of an earlier run, idle power in doubt, the highest power at work, the cost of load."""
    first, second = IdleModel(), IdleModel()
    first.cpus = second.cpus = 4
    if earlier is not None:
        first.remember(earlier)
    for is_free, watts, busy_cpus in stretches[:before]:
        (free if is_free else working)(first, watts, busy_cpus=busy_cpus)
    second.go_on(first.learning())
    assert second.baseline() == first.baseline()
    for is_free, watts, busy_cpus in stretches[before:]:
        for model in (first, second):
            (free if is_free else working)(model, watts, busy_cpus=busy_cpus)
    assert second.baseline() == first.baseline()
    assert second.learning() == first.learning()


@pytest.mark.parametrize(("busy_cpus", "part"), [(2.0, 0.1), (1.0, 0.55), (0.02, 1.0)])
def test_load_of_unknown_cost_is_taken_off_when_nothing_else_was_seen(busy_cpus: float, part: float) -> None:
    """The more of the CPUs it keeps busy, the less of the power is called idle; all of it may be, and it says so."""
    model = IdleModel()
    model.cpus = 2
    for _ in range(40):
        free(model, linear(busy_cpus), busy_cpus=busy_cpus)
    baseline = model.baseline()
    assert baseline.watts == pytest.approx(part * linear(busy_cpus))
    assert baseline.watts * (1 + baseline.drift) == pytest.approx(linear(busy_cpus))

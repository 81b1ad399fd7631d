"""What calls have been given by an instant: by the clocks, and by the bucket that holds it."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from otel_llm_energy.ledger.bill import Window
from otel_llm_energy.ledger.sweep import IDLE_SHARINGS, IdleSharing
from tests.ledger.scenarios import SERVERS, Machine, machines, new_ledger, reading, sample
from tests.ledger.test_ledger_properties import run

sharings = st.sampled_from(IDLE_SHARINGS)


@settings(max_examples=100)
@given(machines(), sharings, st.floats(0, 1))
def test_a_bucket_says_what_the_clocks_say(machine: Machine, idle: IdleSharing, where: float) -> None:
    """At its edges and inside, whether or not the same calls were at work throughout."""
    ledger = new_ledger(idle=idle)
    run(machine, ledger)
    sweep = ledger._accounts["package-0"].sweep
    for edge in machine.buckets:
        swept = sweep.bucket_at(edge.end_ns)
        if swept is None:
            continue
        inside_ns = edge.start_ns + int(where * (edge.end_ns - edge.start_ns))
        for server in SERVERS:
            clocks = sweep.clocks(server)
            bucket = swept.of(server, clocks)
            for at_ns in (edge.start_ns, inside_ns, edge.end_ns):
                assert bucket.given(at_ns, 0) == clocks.given(at_ns, 0)
            assert (bucket.at_start(0), bucket.at_end(0)) == (
                clocks.given(edge.start_ns, 0),
                clocks.given(edge.end_ns, 0),
            )


def test_a_call_is_given_nothing_for_the_time_before_the_first_bucket() -> None:
    """Not even by a nanosecond, for which a bucket is found all the same."""
    ledger = new_ledger()
    ledger.sample(sample(0, 0, dict.fromkeys(SERVERS, 0)))
    entry = ledger.open("alpha", 0)
    ledger.close(entry, (Window(0, 10**9),), reported=True)
    for at_ns, joules in ((1, 0), (10**9, 20), (2 * 10**9, 25)):
        ledger.read(reading(at_ns, joules * 1_000_000))
    ledger.sample(sample(2 * 10**9, 10**9, {**dict.fromkeys(SERVERS, 0), "alpha": 10**9}), final=True)
    ledger.settle(3 * 10**9)
    assert entry.bill is not None
    assert entry.bill.energy_nj == 20_000_000_000

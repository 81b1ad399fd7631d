"""What a call's tokens have to do with its windows: only with ``share="phase-tokens"`` do they weigh."""

from __future__ import annotations

import pytest

from otel_llm_energy.ledger.bill import Window
from otel_llm_energy.ledger.ledger import Ledger
from otel_llm_energy.ledger.sweep import BatchSharing
from otel_llm_energy.tracing.books import Books
from otel_llm_energy.tracing.claims import Claim
from otel_llm_instrumentation.calls import ServerTimings


def windows_of(share: BatchSharing, claim: Claim) -> tuple[Window, ...]:
    """The windows of a call of 10 s of which the server worked 1 s on the prompt and 4 s on the answer."""
    now_ns = 0
    books = Books(Ledger(0, share=share), clock_ns=lambda: now_ns)
    books.open(claim, "server", "chat")
    now_ns = 10_000_000_000
    books.close(claim, ServerTimings(1.0, 4.0))
    now_ns = 11_000_000_000
    books.settle()
    assert claim.entry is not None
    return claim.entry.windows


def tokens(**counts: int) -> Claim:
    claim = Claim()
    for name, count in counts.items():
        setattr(claim, name, count)
    return claim


@pytest.mark.parametrize(
    ("claim", "weights"),
    [
        (tokens(input_tokens=500, output_tokens=100), [5000, 250]),
        (tokens(input_tokens=500, cached_input_tokens=400, output_tokens=100), [1000, 250]),
        (tokens(input_tokens=500, cached_input_tokens=500, output_tokens=100), [0, 250]),
        (tokens(output_tokens=100), [0, 250]),
        (tokens(), [0, 0]),
    ],
)
def test_windows_weigh_uncached_prompt_and_answer_when_sharing_by_tokens(claim: Claim, weights: list[int]) -> None:
    """What the server's cache held was no work."""
    assert [window.weight for window in windows_of("phase-tokens", claim)] == weights


def test_windows_weigh_nothing_when_sharing_by_time() -> None:
    """The default pays nothing for what it does not use."""
    claim = tokens(input_tokens=500, output_tokens=100)
    assert [window.weight for window in windows_of("equal-time", claim)] == [0, 0]

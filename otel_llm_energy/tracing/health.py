"""What the gates did, for the metrics of their own health."""

from __future__ import annotations

from collections import Counter


class Health:
    """What one gate did, or several together.

    Attributes:
        held: spans held now.
        forwarded: spans handed on, with what is known of their energy, by the forwarding thread.
        passed: the same, by the thread that ended them: nothing is held (``max_hold`` 0), or the queue is full.
        dropped: spans that the next processor refused with an exception.
        degraded: spans handed on degraded or without energy, by reason.
    """

    def __init__(self) -> None:
        self.held = 0
        self.forwarded = 0
        self.passed = 0
        self.dropped = 0
        self.degraded: Counter[str] = Counter()

    def add(self, more: Health) -> None:
        """Count what another gate did as well."""
        self.held += more.held
        self.forwarded += more.forwarded
        self.passed += more.passed
        self.dropped += more.dropped
        self.degraded.update(more.degraded)

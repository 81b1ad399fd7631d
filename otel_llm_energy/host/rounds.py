"""Up to which time the holder knows all that its members have to say. Pure: it is told the time."""

from __future__ import annotations

from dataclasses import dataclass

from otel_llm_energy.quantities import NS_PER_SECOND

PATIENCE_NS = 2 * NS_PER_SECOND
"""A member that does not answer for so long (it is stopped, or swapped out) is not waited for any more; what it says
later comes late, and degrades its own bills."""


@dataclass(slots=True)
class _Member:
    """All that happened before ``until_ns`` is known of it; ``asked_ns`` is ``None`` once it has answered."""

    until_ns: int
    asked_ns: int | None = None


class Rounds:
    """Who was asked, who has answered, and up to when all are heard."""

    def __init__(self, patience_ns: int = PATIENCE_NS) -> None:
        self._patience_ns = patience_ns
        self._members: dict[str, _Member] = {}

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, member: str) -> bool:
        return member in self._members

    def expect(self, member: str, until_ns: int, now_ns: int) -> None:
        """Wait for this member, of which all before ``until_ns`` is known."""
        self._members[member] = _Member(until_ns, now_ns)

    def ask(self, now_ns: int) -> list[str]:
        """The members that are to be asked now: those without an open question."""
        asked = [member for member, state in self._members.items() if state.asked_ns is None]
        for member in asked:
            self._members[member].asked_ns = now_ns
        return asked

    def heard(self, member: str, until_ns: int) -> None:
        """The member has said all that happened before ``until_ns``."""
        state = self._members.get(member)
        if state is not None:
            state.until_ns = max(state.until_ns, until_ns)
            state.asked_ns = None

    def leave(self, member: str) -> None:
        """The member is gone and counts no more."""
        self._members.pop(member, None)

    def deadline_ns(self, now_ns: int) -> int | None:
        """When patience with the next member that is still waited for ends; ``None`` if none is."""
        asked = [state.asked_ns for state in self._members.values() if state.asked_ns is not None]
        return min((at + self._patience_ns for at in asked if self._counts(at, now_ns)), default=None)

    def overdue(self, now_ns: int) -> list[str]:
        """The members that are not waited for any more."""
        return [name for name, state in self._members.items() if not self._counts(state.asked_ns, now_ns)]

    def until_ns(self, now_ns: int) -> int:
        """All that happened before then is known, of those that are waited for."""
        heard = [state.until_ns for state in self._members.values() if self._counts(state.asked_ns, now_ns)]
        return min([now_ns, *heard])

    def _counts(self, asked_ns: int | None, now_ns: int) -> bool:
        return asked_ns is None or now_ns - asked_ns < self._patience_ns

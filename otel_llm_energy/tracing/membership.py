"""This process as a member of the board: another one reads the meters, and settles its calls."""

from __future__ import annotations

import os
from collections.abc import Callable

from otel_llm_energy.host.folder import Folder
from otel_llm_energy.host.link import Link
from otel_llm_energy.host.remote import RemoteLedger
from otel_llm_energy.host.turns import turn_name
from otel_llm_energy.host.wire import Billed, Hasten, Hello, Relieve, State, bill_from_json
from otel_llm_energy.quantities import NS_PER_SECOND
from otel_llm_energy.syscalls import monotonic_ns
from otel_llm_energy.tracing.sharing import Participant

_STAYS_AFTER_NS = 5 * NS_PER_SECOND  # a member that is younger may be a short job, and soon leave the board again


class Membership:
    """A link to the holder of one turn, until `close`; `serve` is for the seat's thread.

    Args:
        participant: this process.
        accepted: told that the holder takes this process as a member, before its calls are said.
        folder, number: where, and of which turn the holder is.

    Attributes:
        holder_pid: the holder's process; ``None`` until it takes this one as a member.
        pause_ns: between two readings, as the holder says: whoever holds the board next waits as long; else ``None``.

    Raises:
        LinkError: nobody listens there.
    """

    def __init__(self, participant: Participant, accepted: Callable[[], None], folder: Folder, number: int) -> None:
        self.holder_pid: int | None = None
        self.pause_ns: int | None = None
        self._participant = participant
        self._books = participant.books
        self._accepted = accepted
        self._folder = folder
        board = participant.rules.board
        self._next_turn = turn_name(board, number + 1)
        self._welcomed_ns = 0
        self._link = Link(folder, turn_name(board, number), self, self._is_over)

    def serve(self) -> None:
        """Be a member until `stop`.

        Raises:
            LinkError: the holder is gone, or (`StuckError`) does not answer.
            BoardError: the holder refuses this process.
        """
        ledger = self._books.ledger
        calls = list(ledger.calls) if isinstance(ledger, RemoteLedger) else []
        rules, now_ns = self._participant.rules, monotonic_ns()
        self._link.serve(
            Hello(
                rules.protocol, rules.settings, self._participant.name, os.getpid(), now_ns, calls, rules.calls_servers
            )
        )

    def stop(self) -> None:
        """Have `serve` return; for any thread."""
        self._link.stop()

    def close(self) -> None:
        """Hang up."""
        self._link.close()

    def close_in_child(self) -> None:
        """`close` in a forked child."""
        self._link.close_in_child()

    def hasten(self) -> None:
        """Ask the holder to read now what may be read now; for any thread."""
        self._link.send(Hasten())

    def _is_over(self) -> bool:
        return self._folder.has(f"{self._next_turn}.lock")

    # What the link tells

    def welcomed(self, pid: int) -> None:
        self._accepted()
        self.holder_pid = pid
        self._welcomed_ns = monotonic_ns()
        ledger = self._books.ledger
        if isinstance(ledger, RemoteLedger):
            ledger.connected(lambda messages: self._link.send(*messages))
        self._participant.settle()

    def informed(self, state: State) -> None:
        self.pause_ns = int(state.pause_seconds * NS_PER_SECOND)
        self._participant.metering.follow(state)
        stays = monotonic_ns() - self._welcomed_ns > _STAYS_AFTER_NS
        if stays and not state.is_recorded and self._participant.records():
            self._link.send(Relieve())

    def asked(self) -> None:
        ledger = self._books.ledger
        if isinstance(ledger, RemoteLedger):
            ledger.asked()
        self._participant.settle()

    def billed(self, message: Billed) -> None:
        ledger = self._books.ledger
        if isinstance(ledger, RemoteLedger):
            ledger.billed(message.call, bill_from_json(message.bill))
            self._participant.settle()

    def waits(self) -> bool:
        ledger = self._books.ledger
        return isinstance(ledger, RemoteLedger) and bool(ledger.calls)

"""Where claims are opened, closed and settled: the stations' books behind one door, and the thread that settles."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from otel_llm_energy.ledger.bill import unavailable
from otel_llm_energy.quantities import NJ_PER_JOULE, NS_PER_SECOND, Channel
from otel_llm_energy.tracing.books import Books
from otel_llm_energy.tracing.claims import Claim, ClaimListener, ServerReport
from otel_llm_energy.tracing.directory import Directory, Metered
from otel_llm_energy.tracing.pollers import Poller
from otel_llm_energy.tracing.right_of_way import RIGHT_OF_WAY
from otel_llm_energy.tracing.station import Station
from otel_llm_energy.troubles import Troubles

_LOOK_SECONDS = 1.0
_PROBLEM_PATIENCE_SECONDS = 2.0

_logger = logging.getLogger(__name__)


class BalanceListener(Protocol):
    """Told how much was metered and how much of it is nobody's (`otel_llm_energy.tracing.metrics.EnergyMetrics`)."""

    def catch_up(self) -> None:
        """It may record now what it could not record when it was told."""

    def metered(self, channel: Channel, joules: float) -> None: ...

    def unattributed(self, channel: Channel, reason: str, joules: float) -> None: ...


class SettlingDesk:
    """Opens and closes claims in the callers' threads, settles them in its own.

    Args:
        directory: knows which station meters a server.
        listeners: told of settled claims.
        balance_listener: told where the metered energy went.
        max_hold_seconds: a claim whose meter fails is given up after this time at the latest.
        clock_ns: the monotonic clock.

    Attributes:
        max_hold_seconds: see above.
    """

    def __init__(
        self,
        directory: Directory,
        listeners: Callable[[], Sequence[ClaimListener]],
        *,
        balance_listener: BalanceListener | None = None,
        max_hold_seconds: float = 30.0,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._directory = directory
        self._station_by_books: dict[Books | None, Station] = {station.books: station for station in directory.stations}
        self._listeners = listeners
        self._balance_listener = balance_listener
        self.max_hold_seconds = max_hold_seconds
        self._clock_ns = clock_ns
        self._reported_nj: Counter[tuple[int, str, str]] = Counter()
        self._report_lock = threading.Lock()
        self._settled = threading.Condition()
        self._poller = Poller("settling", self._settle)
        self._troubles = Troubles(_logger, clock_ns=clock_ns)

    @property
    def stations(self) -> Sequence[Station]:
        return self._directory.stations

    @property
    def period_seconds(self) -> float:
        """The longest time until there is a reading of this instant, of all meters."""
        return max(station.period_seconds for station in self.stations)

    def start(self) -> None:
        """Start reading and settling."""
        for station in self.stations:
            station.start()
        self._poller.start()

    def stop(self) -> None:
        """Stop reading and settling; what is unsettled stays so."""
        for station in self.stations:
            station.stop()
        self._poller.stop()

    def forget_in_child(self) -> None:
        """In a forked child, which has a desk of its own: what runs here is the parent's."""
        for station in self.stations:
            station.forget_in_child()
        self._poller.forget_in_child()

    def wake(self) -> None:
        """There are new readings."""
        self._poller.wake()

    # In the callers' threads

    def open(
        self,
        claim: Claim,
        host: str | None,
        port: int | None,
        provider: str,
        operation: str,
        *,
        since_ns: int | None = None,
    ) -> None:
        """A call begins, or began at ``since_ns`` (monotonic clock), where that was not known then."""
        found = self._directory.find(host, port, provider)
        if isinstance(found, Metered):
            # Ollama's answers carry its timings, so its windows are worth waiting for from the first call on.
            reports = True if provider == "ollama" else None
            found.station.open(claim, found.host, found.port, operation, reports=reports, since_ns=since_ns)
        else:
            claim.reason = found.reason

    def open_here(self, claim: Claim) -> None:
        """Work of this very process begins."""
        self._directory.local.open_here(claim)

    def first_chunk(self, claim: Claim) -> None:
        """The first part of the answer has arrived."""
        station = self._station_by_books.get(claim.books)
        if station is not None:
            claim.first_chunk_ns = self._clock_ns()
            station.read_edge()

    def close(self, claim: Claim, report: ServerReport | None = None, *, ended_ns: int | None = None) -> None:
        """A call has ended, or had at ``ended_ns`` (monotonic clock); its tokens are known."""
        claim.closed = True
        station = self._station_by_books.get(claim.books)
        if station is not None:
            station.books.close(claim, report, ended_ns=ended_ns)
            station.read_edge()
        elif claim.bill is None:
            # Books that are not ours are the parent's, from before a fork: their locks may be held for ever.
            why = claim.reason or ("server_unknown" if claim.books is None else "no-reading")
            claim.bill = unavailable(why)
            self._tell([claim])
        RIGHT_OF_WAY.give_way()

    # Settling

    def hasten(self, timeout_seconds: float) -> None:
        """Ask for readings now and wait until all claims that are closed by now are settled, or for the timeout.

        Calls that end meanwhile are not waited for: there may be no end of them.
        """
        closed = {station.books: station.books.closed for station in self.stations}
        for station in self.stations:
            station.hasten()
        with self._settled:
            self._settled.wait_for(lambda: all(each.settled >= closed[each] for each in closed), timeout_seconds)

    def settle_now(self, timeout_seconds: float, reason: str) -> None:
        """Settle all closed claims, waiting for readings at most for the timeout, and report the balance.

        For calls that were not sampled: no held span sees to it that they are counted.
        """
        self.wake()
        self.hasten(timeout_seconds)
        for station in self.stations:
            self.force(station.books.unsettled(self._clock_ns() + 1), reason)
        self.report_balance()

    def force(self, claims: Iterable[Claim], reason: str) -> None:
        """Settle these claims now from what is known, degraded or unavailable for ``reason``, and tell listeners.

        But those whose calls go on: every call counts, once it has ended.
        """
        wanted = list(claims)
        done: list[Claim] = []
        for station in self.stations:
            problem = station.problem
            done.extend(station.books.force(wanted, reason if problem is None else problem.reason))
        for claim in wanted:
            if claim.bill is None and claim.books not in self._station_by_books:
                claim.bill = unavailable(claim.reason or reason)
                done.append(claim)
        self._tell(done)

    def report_balance(self) -> None:
        """Tell what was metered since the last time, and what of it is nobody's."""
        listener = self._balance_listener
        if listener is None:
            return
        listener.catch_up()
        with self._report_lock:
            for index, station in enumerate(self.stations):
                for channel, balance in station.books.balance().values():
                    added = self._added(index, channel, "", balance.metered_nj)
                    if added:
                        listener.metered(channel, added / NJ_PER_JOULE)
                    for reason, energy_nj in balance.unattributed_nj.items():
                        added = self._added(index, channel, reason, energy_nj)
                        if added:
                            listener.unattributed(channel, reason, added / NJ_PER_JOULE)

    def _added(self, station: int, channel: Channel, reason: str, energy_nj: int) -> int:
        key = (station, channel.id, reason)
        added = energy_nj - self._reported_nj[key]
        self._reported_nj[key] = energy_nj
        return added

    def _settle(self) -> float:
        for station in self.stations:
            try:
                self._settle_at(station)
            except Exception:  # noqa: BLE001 - what is wrong with one machine's ledger costs the others nothing
                self._troubles.warn("settle", "LLM calls could not be settled; it is tried again.", exc_info=True)
        with self._settled:
            self._settled.notify_all()
        self.report_balance()
        return _LOOK_SECONDS

    def _settle_at(self, station: Station) -> None:
        done = station.books.settle()
        problem = station.problem
        if problem is not None:
            done += self._give_up(station, problem.reason)
        if done:
            self._tell(done)

    def _give_up(self, station: Station, reason: str) -> list[Claim]:
        """A meter that fails may come back; claims wait a little for it, as far as holding allows."""
        patience_seconds = min(station.period_seconds + _PROBLEM_PATIENCE_SECONDS, self.max_hold_seconds)
        overdue = station.books.unsettled(self._clock_ns() - int(patience_seconds * NS_PER_SECOND))
        return station.books.force(overdue, reason) if overdue else []

    def _tell(self, claims: Sequence[Claim]) -> None:
        for listener in self._listeners():
            try:
                listener.settled(claims)
            except Exception:  # noqa: BLE001 - the spans must leave, whatever is wrong with somebody's metrics
                self._troubles.warn("tell", "The bills of LLM calls did not reach everybody.", exc_info=True)

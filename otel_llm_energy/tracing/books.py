"""The ledger of one machine, open to many threads: what happens is noted at once and entered when it is settled."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

from otel_llm_energy.ledger.bill import unavailable
from otel_llm_energy.ledger.entry import Entry
from otel_llm_energy.ledger.idle import ENOUGH_SECONDS, Baseline
from otel_llm_energy.ledger.ledger import Balance
from otel_llm_energy.ledger.windows import CallTimes, work_windows
from otel_llm_energy.quantities import NS_PER_SECOND, ActivitySample, Channel, IdlePower, Reading
from otel_llm_energy.tracing.accounts import Accounts
from otel_llm_energy.tracing.claims import Claim, ServerReport
from otel_llm_energy.tracing.clocks import WallClock
from otel_llm_energy.tracing.right_of_way import BackgroundThread
from otel_llm_energy.troubles import Troubles

_KEEP_NS = 1_000_000  # see `_GivingWay`
_LONG_NS = 250_000_000  # by then there is something new to settle
_INTAKE_SECONDS = 0.02
_ASIDE_SECONDS = 0.001

_Told = Iterator[Any]
"""What was noted, from the arguments of an event on: its action takes as many as it needs, before it does anything."""

_logger = logging.getLogger(__name__)


class Books:
    """Takes events from any thread without making it wait, and settles claims in the thread that asks for it.

    An event's time is taken under the same lock as its place in the queue, so that once the queue is drained at
    time t, nothing that happened before t is missing. The ledger has a lock of its own: a caller never waits for
    a sweep. Both locks are reentrant, because the garbage collector may end a stream, and so a call, anywhere; that
    may even have the call settled, by a thread that holds the queue's lock (`_entered`).

    Args:
        ledger: of one machine; see `change_ledger`.
        clock_ns: the monotonic clock.
        unix_clock_ns: the wall clock, to place a server's own end time.
    """

    def __init__(
        self,
        ledger: Accounts,
        *,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        unix_clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._ledger: Accounts = ledger
        self._earlier: dict[str, tuple[Channel, Balance]] = {}  # metered here, in other ledgers than this one
        self._clock_ns = clock_ns
        self._wall_clock = WallClock(clock_ns=clock_ns, unix_clock_ns=unix_clock_ns)
        self._intake_lock = threading.RLock()
        # Actions, each followed by its arguments. No event has an object of its own: whatever waits to be entered, and
        # refers to other things, Python's garbage collection looks at time and again. An event is made before the list
        # is looked up: a collection while it is made may settle, and put another list there.
        self._intake: list[Any] = []
        self._ledger_lock = threading.RLock()
        self._is_at_work = False  # a collection amid the ledger's work may end a span, and so come to `force`
        self._claims: dict[Entry, Claim] = {}
        self._billed_open: list[Entry] = []  # the ledger had given them up before they ended
        self._troubles = Troubles(_logger, clock_ns=clock_ns)
        self._reason: str | None = "no-meter"
        self._opened = 0
        self._closed = 0
        self._settled = 0

    @property
    def busy(self) -> bool:
        """There are claims that are open or not settled."""
        return self._opened != self._settled or self._ledger.busy_elsewhere

    @property
    def opened(self) -> int:
        """How many claims were ever opened."""
        return self._opened

    @property
    def closed(self) -> int:
        """How many claims were ever closed."""
        return self._closed

    @property
    def settled(self) -> int:
        """How many of those have their bill."""
        return self._settled

    # From the callers' threads

    def open(
        self, claim: Claim, server: str, route: str, *, reports: bool | None = None, since_ns: int | None = None
    ) -> None:
        """A call to ``server`` begins, or began at ``since_ns``, where that was not known then."""
        claim.books = self
        with self._intake_lock:
            now_ns = self._clock_ns()
            claim.opened_ns = now_ns if since_ns is None else min(since_ns, now_ns)
            self._opened += 1
            event = (Books._open, claim, server, route, reports)
            self._intake.extend(event)

    def close(self, claim: Claim, report: ServerReport | None, *, ended_ns: int | None = None) -> None:
        """The call of an open claim has ended, or had at ``ended_ns``, where that was not known then."""
        prefill_seconds = decode_seconds = load_seconds = end_unix_ns = None
        if report is not None:
            prefill_seconds, decode_seconds = report.prefill_seconds, report.decode_seconds
            load_seconds, end_unix_ns = report.load_seconds, report.end_unix_ns
        with self._intake_lock:
            now_ns = self._clock_ns()
            ended_ns = now_ns if ended_ns is None else min(max(ended_ns, claim.opened_ns), now_ns)
            self._closed += 1
            event = (Books._close, claim, ended_ns, prefill_seconds, decode_seconds, load_seconds, end_unix_ns)
            self._intake.extend(event)

    # From the meters' threads

    def add_channels(
        self, channels: Sequence[Channel], remembered: Mapping[str, Sequence[IdlePower]] | None = None
    ) -> None:
        """From now on there are readings of these channels; of some, idle power is known from an earlier run."""
        self._reason = None
        known = remembered or {}
        for channel in channels:
            self._note(Books._add_channel, channel, known.get(channel.id, ()))

    @property
    def ledger(self) -> Accounts:
        """Where events are entered now."""
        return self._ledger

    @property
    def reason(self) -> str | None:
        """Why there is no channel; ``None`` if there is."""
        return self._reason

    def metered_elsewhere(self) -> None:
        """Another process reads the channels: its bills say themselves why they lack something."""
        self._reason = None

    def without_meter(self, reason: str) -> None:
        """There is no channel; claims are unavailable for ``reason``."""
        self._reason = reason

    def read(self, readings: Sequence[Reading]) -> None:
        """Take readings of channels that were added."""
        events = [part for reading in readings for part in (Books._read, reading)]
        with self._intake_lock:
            self._intake.extend(events)

    def sample(self, sample: ActivitySample, *, final: bool = False) -> None:
        """Take a sample of activity, its servers under the names that `open` uses."""
        self._note(Books._sample, sample, final)

    def interrupt(self, reason: str) -> None:
        """Time jumped: see `Ledger.interrupt`."""
        self._note(Books._interrupt, reason)

    def set_server(self, server: str, *, slots: int | None, caution: str | None) -> None:
        """More has become known of a server. ``caution`` is a reason that its bills are degraded, empty for none."""
        self._note(Books._add_server, server, slots, caution)

    def _note(self, action: Callable[[Books, _Told], None], *arguments: object) -> None:
        event = (action, *arguments)
        with self._intake_lock:
            self._intake.extend(event)

    # From the settling thread

    def settle(self) -> list[Claim]:
        """Enter what was noted and settle what is complete; the claims that have a bill now."""
        with self._entered() as now_ns:
            return [] if now_ns is None else self._billed(self._ledger.settle(now_ns, _GivingWay()))

    def force(self, claims: Iterable[Claim], reason: str) -> list[Claim]:
        """Settle those of these claims that are closed from what is swept; whatever that comes to, they have a bill.

        Open ones go on, and are settled after their end: whoever cannot wait for that has to do without their bills.
        """
        with self._entered() as now_ns:
            mine = [claim for claim in claims if claim.books is self and claim.bill is None]
            done = [] if now_ns is None else self._force(mine, reason)
            for claim in mine:
                if claim.bill is None and (claim.entry is None or claim.entry.closed):
                    claim.bill = unavailable(self._reason or reason)
                    done.append(claim)
            return done

    def _force(self, claims: Sequence[Claim], reason: str) -> list[Claim]:
        closed = [claim.entry for claim in claims if claim.entry is not None and claim.entry in self._claims]
        done = self._billed(self._ledger.force(closed, self._reason or reason))
        # A holder that did not answer at once was told that nobody takes these bills: they do not come later.
        self._settled += sum(self._claims.pop(entry, None) is not None for entry in closed)
        return done

    def unsettled(self, ended_before_ns: int) -> list[Claim]:
        """Closed claims whose work ended before then and that have no bill yet."""
        with self._alone():
            return [claim for entry, claim in self._claims.items() if entry.last_charged_ns < ended_before_ns]

    def change_ledger(self, change: Callable[[Accounts], Accounts]) -> None:
        """Enter what comes from now on elsewhere. What the new ledger has metered already was not metered here.

        Args:
            change: makes the new ledger from the one until now; the entries of both that stand for this process's
                calls must be the same objects. What it raises is raised, and nothing is changed.
        """
        with self._entered():
            metered_until_now = _metered_in(self._ledger)
            self._ledger = change(self._ledger)
            self._count_as_earlier(metered_until_now, 1)
            self._count_as_earlier(_metered_in(self._ledger), -1)

    def balance(self) -> Mapping[str, tuple[Channel, Balance]]:
        """Where the energy went that this process has metered on each channel, by channel id."""
        with self._alone():
            balances = dict(self._earlier)
            for name, (channel, balance) in _metered_in(self._ledger).items():
                earlier = balances.get(name)
                balances[name] = (channel, balance if earlier is None else _sum(earlier[1], balance))
            return balances

    def _count_as_earlier(self, metered: Mapping[str, tuple[Channel, Balance]], sign: int) -> None:
        for name, (channel, balance) in metered.items():
            _, earlier = self._earlier.get(name, (None, Balance(0, 0, 0, {})))
            self._earlier[name] = (channel, _sum(earlier, balance, sign))

    @property
    def caution(self) -> str | None:
        """Why all bills from now on are degraded."""
        return self._ledger.caution

    @caution.setter
    def caution(self, reason: str | None) -> None:
        self._ledger.caution = reason

    def baselines(self) -> Mapping[str, Baseline]:
        """What is known of the idle power of each channel."""
        with self._alone():
            return self._ledger.baselines()

    def learned_idle(self, least_seconds: float = ENOUGH_SECONDS) -> Mapping[str, Sequence[IdlePower]]:
        """Idle power that this run has learned, from so much time without calls."""
        with self._alone():
            return self._ledger.learned_idle(least_seconds)

    def forget_idle(self) -> None:
        """Learn idle power anew."""
        self._note(Books._forget_idle)

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        """Alone in the ledger; False if this thread was at work there already."""
        with self._ledger_lock:
            is_first, self._is_at_work = not self._is_at_work, True
            try:
                yield is_first
            finally:
                self._is_at_work = not is_first

    @contextmanager
    def _entered(self) -> Iterator[int | None]:
        """Alone in the ledger, where all is entered that was noted until the time that this gives.

        ``None`` if this thread was at work there already: nothing more may be done there then.
        """
        while True:
            with self._alone() as is_first:
                if not is_first:
                    yield None
                    return
                if self._intake_lock.acquire(timeout=_INTAKE_SECONDS):
                    yield self._enter()
                    return
            time.sleep(_ASIDE_SECONDS)  # its holder may be in a collection, and wait for the ledger

    def _enter(self) -> int:
        """Enter what was noted; the lock of the queue is held, and let go of."""
        try:
            now_ns = self._clock_ns()
            told, self._intake = iter(self._intake), []
        finally:
            self._intake_lock.release()
        self._wall_clock.look()
        for action in told:
            try:
                action(self, told)
            except Exception:  # noqa: BLE001 - those noted after it are entered all the same
                self._troubles.warn(action.__name__, "An event of LLM calls cannot be entered.", exc_info=True)
        return now_ns

    # Each event looks for the ledger only when it is entered: it may be another one by then.

    def _add_channel(self, told: _Told) -> None:
        self._ledger.add_channel(*islice(told, 2))

    def _interrupt(self, told: _Told) -> None:
        self._ledger.interrupt(next(told))

    def _forget_idle(self, told: _Told) -> None:
        self._ledger.forget_idle()

    def _read(self, told: _Told) -> None:
        self._ledger.read(next(told))

    def _sample(self, told: _Told) -> None:
        sample, final = islice(told, 2)
        self._ledger.sample(sample, final=final)

    def _add_server(self, told: _Told) -> None:
        server, slots, caution = islice(told, 3)
        self._ledger.add_server(server, slots=slots, caution=caution)

    def _open(self, told: _Told) -> None:
        claim, server, route, reports = islice(told, 4)
        self._ledger.add_server(server, reports=reports)
        claim.entry = self._ledger.open(server, claim.opened_ns, route)

    def _close(self, told: _Told) -> None:
        claim, ended_ns, prefill_seconds, decode_seconds, load_seconds, end_unix_ns = islice(told, 6)
        entry = claim.entry
        if entry is None:  # its beginning could not be entered
            self._settled += 1
            return
        forced = claim.bill is not None  # while it was open
        if forced:
            self._settled += 1
        else:
            self._claims[entry] = claim
            if entry.bill is not None:
                self._billed_open.append(entry)
                return
        try:
            times = CallTimes(
                claim.opened_ns,
                ended_ns,
                claim.first_chunk_ns,
                _ns(prefill_seconds),
                _ns(decode_seconds),
                _ns(load_seconds),
                None if end_unix_ns is None else self._wall_clock.place(end_unix_ns, claim.opened_ns),
                *(_phase_tokens(claim) if self._ledger.by_weight else ()),
            )
            windows = work_windows(times) if claim.reached_server else ()
        except Exception:
            self._ledger.close(entry, (), reported=False)  # it must not be at work for ever
            raise
        self._ledger.close(entry, windows, reported=times.reported)
        if forced:
            self._ledger.disown(entry)

    def _billed(self, entries: Iterable[Entry]) -> list[Claim]:
        billed_open, self._billed_open = self._billed_open, []
        done = []
        for entry in (*billed_open, *entries):
            claim = self._claims.pop(entry, None)
            if claim is None:
                continue
            self._settled += 1
            if claim.bill is None:
                claim.bill = entry.bill if self._reason is None else unavailable(self._reason)
                done.append(claim)
        return done


class _GivingWay:
    """Lets other threads have the interpreter every millisecond.

    Kept for the usual 5 ms, it would delay whatever else the app does. Given away after every little step, an app that
    computes all the time would keep it for 5 ms each time, and settling would fall behind: what takes long in spite of
    this gives way no more than any other thread.
    """

    def __init__(self) -> None:
        self._began_ns = self._since_ns = time.perf_counter_ns()

    def __call__(self) -> None:
        now_ns = time.perf_counter_ns()
        if now_ns - self._since_ns > _KEEP_NS and now_ns - self._began_ns < _LONG_NS:
            with BackgroundThread() as this, this.waiting(0):
                time.sleep(0)
            self._since_ns = time.perf_counter_ns()


def _phase_tokens(claim: Claim) -> tuple[int | None, int | None]:
    """Tokens that the server had to work on: of the prompt, those that its cache did not hold; and of the answer."""
    if claim.input_tokens is None:
        return None, claim.output_tokens
    return max(claim.input_tokens - (claim.cached_input_tokens or 0), 0), claim.output_tokens


def _metered_in(ledger: Accounts) -> dict[str, tuple[Channel, Balance]]:
    channels = {channel.id: channel for channel in ledger.channels}
    return {name: (channels[name], balance) for name, balance in ledger.balance().items()}


def _sum(one: Balance, other: Balance, sign: int = 1) -> Balance:
    reasons = {*one.unattributed_nj, *other.unattributed_nj}
    return Balance(
        one.metered_nj + sign * other.metered_nj,
        one.billed_nj + sign * other.billed_nj,
        one.pending_nj + sign * other.pending_nj,
        {r: one.unattributed_nj.get(r, 0) + sign * other.unattributed_nj.get(r, 0) for r in reasons},
    )


def _ns(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds * NS_PER_SECOND)

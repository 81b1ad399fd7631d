"""A ledger that is entered by what is written down: whose each call is, and what is so now, for the next holder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from otel_llm_energy.host.journal import Entered
from otel_llm_energy.host.wire import (
    Read,
    channel_from_json,
    channel_to_json,
    learning_from_json,
    learning_to_json,
    reading_from_wire,
    reading_to_wire,
    sample_from_json,
    sample_to_json,
    windows_from_json,
)
from otel_llm_energy.ledger.bill import Bill
from otel_llm_energy.ledger.entry import Entry
from otel_llm_energy.ledger.ledger import Ledger
from otel_llm_energy.quantities import IdlePower

Call = tuple[str, int]
"""A call's name on the board: its process's, and its number there."""


@dataclass(slots=True)
class Register:
    """Enters things into a ledger by their written form, and knows whose each call is.

    Attributes:
        make_ledger: a new ledger that starts at a time of the monotonic clock.
        ledger: in which all is entered.
        start_ns: of the ledger.
        holder: whose ledger it is.
        members: the other processes.
        calls: the entries without a bill, by call; `names` is the reverse.
        closed: how those of them that are closed were closed.
        servers: what is known of each server: slots, whether its answers carry timings, and caution.
        last_read_ns: when a counter had the newest value that was entered; 0 if there is none.
        until_ns: all before then is settled; 0 if nothing was yet.
    """

    make_ledger: Callable[[int], Ledger]
    ledger: Ledger
    start_ns: int
    holder: str = ""
    members: set[str] = field(default_factory=set)
    calls: dict[Call, Entry] = field(default_factory=dict)
    names: dict[Entry, Call] = field(default_factory=dict)
    closed: dict[Call, Entered] = field(default_factory=dict)
    servers: dict[str, list[Any]] = field(default_factory=dict)
    last_read_ns: int = 0
    until_ns: int = 0

    def enter(self, entered: Entered, breathe: Callable[[], None] = lambda: None) -> list[tuple[Call, Bill]]:
        """Enter one thing; the bills that come of it.

        Raises:
            KeyError, TypeError, ValueError, WireError: it is none of ours.
        """
        kind, *values = entered
        if kind == "settle":
            return self._settle(values[0], breathe)
        if kind == "force":
            return self._force(*values)
        _ENTER[kind](self, *values)
        return []

    def snapshot(self) -> Iterator[Entered]:
        """What is so now: what has to be entered into a new ledger so that it can go on from here."""
        yield ("start", self.until_ns or self.start_ns)
        yield ("holder", self.holder)
        for member in sorted(self.members):
            yield ("member", member)
        for channel in self.ledger.channels:
            yield ("channel", channel_to_json(channel), [])
        for channel_id, by_state in self.ledger.idle_learning().items():
            for state, learning in by_state.items():
                yield ("learned", channel_id, state, learning_to_json(learning))
        for reading in self.ledger.last_readings:
            yield ("read", *reading_to_wire(reading))
        for sample in self.ledger.last_samples:
            yield ("sample", sample_to_json(sample), True)
        for server, (slots, reports, caution) in self.servers.items():
            yield ("server", server, slots, reports, caution)
        for call, entry in self.calls.items():
            yield ("open", *call, entry.server, entry.opened_ns, entry.route)
            if call in self.closed:
                yield self.closed[call]

    def adopt(self, member: str) -> None:
        """Take over what is in the ledger already: servers, and calls of one process."""
        for server, (slots, caution) in self.ledger.servers.items():
            self.servers[server] = [slots, None, caution]
        for number, entry in enumerate(self.ledger.unsettled(), start=1):
            self.calls[member, number] = entry
            self.names[entry] = (member, number)
            if entry.closed:
                self.closed[member, number] = ("close", member, number, entry.windows, entry.reported)

    def of(self, member: str) -> list[Call]:
        """The calls of a member."""
        return [call for call in self.calls if call[0] == member]

    def _start(self, start_ns: int) -> None:
        self.start_ns = start_ns
        self.ledger = self.make_ledger(start_ns)

    def _holder(self, member: str) -> None:
        self.holder = member

    def _member(self, member: str) -> None:
        self.members.add(member)

    def _gone(self, member: str) -> None:
        """Nobody takes the bills of its calls any more."""
        self.members.discard(member)
        self._disown(member, [number for _, number in self.of(member)])

    def _channel(self, channel: Mapping[str, Any], remembered: Sequence[Mapping[str, Any]]) -> None:
        self.ledger.add_channel(channel_from_json(channel), [IdlePower(**idle) for idle in remembered])

    def _learned(self, channel_id: str, state: str, learning: Mapping[str, Any]) -> None:
        self.ledger.go_on_learning(channel_id, state, learning_from_json(learning))

    def _read(self, *values: Any) -> None:
        reading = reading_from_wire(Read(*values))
        self.ledger.read(reading)
        self.last_read_ns = max(self.last_read_ns, reading.latest_ns)

    def _sample(self, sample: Mapping[str, Any], final: bool) -> None:
        self.ledger.sample(sample_from_json(sample), final=final)

    def _server(self, server: str, slots: int | None, reports: bool | None, caution: str | None) -> None:
        self.ledger.add_server(server, slots=slots, reports=reports, caution=caution)
        known = self.servers.setdefault(server, [None, None, None])
        self.servers[server] = [
            old if new is None else new for old, new in zip(known, (slots, reports, caution), strict=True)
        ]

    def _open(self, member: str, number: int, server: str, at_ns: int, route: str) -> None:
        self.ledger.add_server(server)  # a holder before may have forgotten it later than this ledger did
        entry = self.calls[member, number] = self.ledger.open(server, at_ns, route)
        self.names[entry] = (member, number)

    def _close(self, member: str, number: int, windows: Sequence[Sequence[Any]], reported: bool) -> None:
        call = (member, number)
        self.ledger.close(self.calls[call], windows_from_json(windows), reported=reported)
        self.closed[call] = ("close", member, number, windows, reported)

    def _disown(self, member: str, numbers: Sequence[int]) -> None:
        """Nobody takes the bills of these calls: they are closed if they are open, and left to themselves."""
        for number in numbers:
            entry = self.calls.get((member, number))
            if entry is not None:
                if not entry.closed:
                    self.ledger.close(entry, (), reported=False)
                self.ledger.disown(entry)
                self._forget(entry)

    def _settle(self, until_ns: int, breathe: Callable[[], None]) -> list[tuple[Call, Bill]]:
        self.until_ns = max(self.until_ns, until_ns)
        entries = self.ledger.settle(until_ns, breathe)
        for forgotten in self.servers.keys() - self.ledger.servers.keys():
            del self.servers[forgotten]
        return self._billed(entries)

    def _force(self, member: str, numbers: Sequence[int], reason: str) -> list[tuple[Call, Bill]]:
        entries = [self.calls[member, number] for number in numbers if (member, number) in self.closed]
        return self._billed(self.ledger.force(entries, reason))

    def _billed(self, entries: Iterable[Entry]) -> list[tuple[Call, Bill]]:
        return [
            (self._forget(entry), entry.bill) for entry in entries if entry.bill is not None and entry in self.names
        ]

    def _forget(self, entry: Entry) -> Call:
        call = self.names.pop(entry)
        del self.calls[call]
        self.closed.pop(call, None)
        return call


_ENTER: Mapping[str, Callable[..., None]] = {
    "start": Register._start,
    "holder": Register._holder,
    "member": Register._member,
    "gone": Register._gone,
    "channel": Register._channel,
    "learned": Register._learned,
    "read": Register._read,
    "sample": Register._sample,
    "server": Register._server,
    "open": Register._open,
    "close": Register._close,
    "disown": Register._disown,
    "interrupt": lambda register, reason: register.ledger.interrupt(reason),
    "forget-idle": lambda register: register.ledger.forget_idle(),
    "new-sampler": lambda register: register.ledger.interrupt_activity(),
}

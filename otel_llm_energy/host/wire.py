"""What a holder and its members say to each other: one JSON array a line, its first element the kind.

The first line, `Hello`, and the refusal of it will be readable in every version: a later one adds its values at the
end, and with a default. Nothing else is said between different versions.
Times are of the monotonic clock, ns: one clock for all processes of a host.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple
from typing import Any, NamedTuple, TypedDict

from otel_llm_energy.ledger.bill import Bill, Quality, Window
from otel_llm_energy.ledger.idle import Learning, Origin
from otel_llm_energy.ledger.samples import Sample
from otel_llm_energy.quantities import ActivitySample, Channel, IdlePower, Reading

PROTOCOL = 4
"""Another number where processes say anything otherwise than before, how they name a server among it."""

LONGEST_LINE = 1 << 22


class WireError(Exception):
    """What came is not one of our messages."""


class Hello(NamedTuple):
    """A process wants to be a member.

    Attributes:
        version: of the protocol and the package; must be the holder's.
        settings: a hash of all options that decide how energy is shared; must be the holder's.
        member: names the process, unlike any other that ever was.
        pid: for people.
        now_ns: the clock, which must be the holder's.
        calls: those that are not settled; what became of them follows.
        calls_servers: False if it only looks (`otel-llm-energy doctor`): then it disturbs nobody if it is refused.
    """

    version: str
    settings: str
    member: str
    pid: int
    now_ns: int
    calls: Sequence[int]
    calls_servers: bool = True


class Welcome(NamedTuple):
    """The process is a member now; ``pid`` is the holder's."""

    pid: int


class Refused(NamedTuple):
    """The process cannot be a member; ``message`` says why and what to do."""

    message: str


class ChannelState(TypedDict):
    """One channel that the holder reads.

    Attributes:
        channel: as `channel_to_json` gives it.
        idle_watts: its idle power; ``None`` while it is being learned.
        idle_origin: where that comes from.
        age_seconds: of the newest reading; ``None`` before the first.
        problem: why its meter cannot be read just now.
    """

    channel: dict[str, Any]
    idle_watts: float | None
    idle_origin: Origin
    age_seconds: float | None
    problem: str | None


class State(NamedTuple):
    """What the holder reads.

    Attributes:
        channels: those that are read.
        left_out: the meters that are not read: name, reason, message, and whether the user gave an address.
        problem: reason and message, while a meter cannot be read.
        period_seconds: the longest time until there is a reading of this instant.
        pause_seconds: between two readings; the next holder waits as long after the last one.
        is_recorded: the holder has a meter provider, which records what is metered.
    """

    channels: Sequence[ChannelState]
    left_out: Sequence[tuple[str, str, str, bool]]
    problem: Sequence[str] | None
    period_seconds: float
    pause_seconds: float
    is_recorded: bool = True


class Ask(NamedTuple):
    """Say all that has happened until now."""


class Until(NamedTuple):
    """All that happened before ``at_ns`` has been said."""

    at_ns: int


class Opened(NamedTuple):
    """A call to ``server`` (host:port) begins."""

    call: int
    server: str
    route: str
    reports: bool | None
    at_ns: int


class Closed(NamedTuple):
    """A call has ended; ``windows`` are [start, end, phase, weight]."""

    call: int
    windows: Sequence[Sequence[Any]]
    reported: bool


class Read(NamedTuple):
    """A reading: one that a member took at a call's edge, or, in the journal, any (`Reading`)."""

    channel: str
    energy_uj: int
    earliest_ns: int
    latest_ns: int
    state: str = ""


class Interrupted(NamedTuple):
    """Time jumped: no reading before ``at_ns`` can be joined to one after it."""

    reason: str
    at_ns: int


class Force(NamedTuple):
    """These calls cannot wait any longer."""

    calls: Sequence[int]
    reason: str


class Disown(NamedTuple):
    """Nobody waits for the bills of these calls any more."""

    calls: Sequence[int]


class Hasten(NamedTuple):
    """Somebody cannot wait: read now what may be read now."""


class Relieve(NamedTuple):
    """What the holder meters is recorded nowhere; this process would record it: let somebody else hold the board."""


class Ping(NamedTuple):
    """Is anybody there?"""


class Pong(NamedTuple):
    """Yes."""


class Billed(NamedTuple):
    """A call's bill, as `bill_to_json` gives it."""

    call: int
    bill: Mapping[str, Any]


FromMember = Hello | Until | Opened | Closed | Read | Interrupted | Force | Disown | Hasten | Relieve | Ping
FromHolder = Welcome | Refused | State | Ask | Pong | Billed
Message = FromMember | FromHolder

_KINDS: Mapping[str, type[Any]] = {
    kind.__name__.lower(): kind
    for kind in (
        *(Hello, Welcome, Refused, State, Ask, Until, Opened, Closed),
        *(Read, Interrupted, Force, Disown, Hasten, Relieve, Ping, Pong, Billed),
    )
}

_OF_ANY_VERSION: frozenset[type[Any]] = frozenset({Hello, Refused})


def encode(message: Message) -> bytes:
    """A message as a line."""
    return json.dumps([type(message).__name__.lower(), *message], separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> Message:
    """A line as a message. Raises `WireError`."""
    try:
        kind, *values = json.loads(line)
        form = _KINDS[kind]
        message: Message = form(*(values[: len(form._fields)] if form in _OF_ANY_VERSION else values))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise WireError(f"{line[:200]!r} is no message of protocol {PROTOCOL}.") from error
    return message


def bill_to_json(bill: Bill) -> dict[str, Any]:
    return asdict(bill)


def bill_from_json(values: Mapping[str, Any]) -> Bill:
    """Raises `WireError`."""
    try:
        return Bill(**{**values, "quality": Quality(values["quality"])})
    except (TypeError, ValueError, KeyError) as error:
        raise WireError(f"{values!r} is no bill.") from error


def channel_to_json(channel: Channel) -> dict[str, Any]:
    return asdict(channel)


def channel_from_json(values: Mapping[str, Any]) -> Channel:
    """Raises `WireError`."""
    try:
        return Channel(**values)
    except TypeError as error:
        raise WireError(f"{values!r} is no channel.") from error


def learning_to_json(learning: Learning) -> dict[str, Any]:
    idle, all_, work = ([astuple(each) for each in some] for some in (learning.idle, learning.all, learning.work))
    remembered = None if learning.remembered is None else asdict(learning.remembered)
    return {"remembered": remembered, "idle": idle, "all": all_, "work": work}


def learning_from_json(values: Mapping[str, Any]) -> Learning:
    """Raises `WireError`."""
    try:
        remembered = None if values["remembered"] is None else IdlePower(**values["remembered"])
        idle, all_, work = ([Sample(*each) for each in values[kind]] for kind in ("idle", "all", "work"))
    except (TypeError, KeyError) as error:
        raise WireError(f"{values!r} tells of nothing learned.") from error
    return Learning(remembered, idle, all_, work)


def sample_to_json(sample: ActivitySample) -> dict[str, Any]:
    return {**asdict(sample), "by_server_ns": dict(sample.by_server_ns), "absent": sorted(sample.absent)}


def sample_from_json(values: Mapping[str, Any]) -> ActivitySample:
    """Raises `WireError`."""
    try:
        return ActivitySample(**{**values, "absent": frozenset(values["absent"])})
    except (TypeError, KeyError) as error:
        raise WireError(f"{values!r} is no sample.") from error


def windows_from_json(values: Sequence[Sequence[Any]]) -> tuple[Window, ...]:
    """Raises `WireError`."""
    try:
        return tuple(Window(*window) for window in values)
    except TypeError as error:
        raise WireError(f"{values!r} are no windows.") from error


def reading_to_wire(reading: Reading) -> Read:
    return Read(reading.channel_id, reading.energy_uj, reading.earliest_ns, reading.latest_ns, reading.state)


def reading_from_wire(message: Read) -> Reading:
    return Reading(*message)

"""What is being measured, as `Instrumentation.status` says it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from otel_llm_energy.host.wire import ChannelState, channel_from_json
from otel_llm_energy.ledger.idle import Baseline, Origin
from otel_llm_energy.ledger.ledger import Balance
from otel_llm_energy.meters.discovery import LeftOut
from otel_llm_energy.quantities import Channel
from otel_llm_energy.servers.own_process import is_process
from otel_llm_energy.servers.server import Server
from otel_llm_energy.tracing.reader import MeterReader
from otel_llm_energy.tracing.seat import SeatStatus
from otel_llm_energy.tracing.station import Station


@dataclass(frozen=True, slots=True)
class ChannelStatus:
    """One counter that is read.

    Attributes:
        channel: the counter.
        balance: where its energy went.
        idle_watts: idle power; ``None`` while it is being learned.
        idle_origin: where that comes from, e.g. ``"given"``, ``"learned"`` or ``"cached"``: learned by an earlier run.
        idle_age_seconds: age of the figure that is kept for the next run; ``None`` if none is.
        age_seconds: of the newest reading; ``None`` before the first.
        problem: why its meter cannot be read just now.
        where: the meter's address, where this process reads it of a host that the user named; else empty. Whose counter
            it is in any case says ``channel.host``.
        period_seconds: how old the newest reading may become while no call is open; ``None`` where another process
            reads the counter, whose balance and time are its own.
    """

    channel: Channel
    balance: Balance
    idle_watts: float | None
    idle_origin: Origin
    idle_age_seconds: float | None
    age_seconds: float | None
    problem: str | None
    where: str = ""
    period_seconds: float | None = None

    @property
    def age(self) -> str:
        """Of the newest reading, in words."""
        return "no reading yet" if self.age_seconds is None else f"read {self.age_seconds:.1f} s ago"

    @property
    def idle(self) -> str:
        """Idle power in words."""
        if self.idle_watts is None:
            return "idle being learned"
        words = f"idle {self.idle_watts:.3g} W"
        if self.idle_origin == "cached" and self.idle_age_seconds is not None:
            return f"{words} (cached {_ago(self.idle_age_seconds)})"
        return f"{words} (under load, in doubt)" if self.idle_origin == "under-load" else words


@dataclass(frozen=True, slots=True)
class Status:
    """What is being measured.

    Attributes:
        channels: the counters that are read.
        left_out: meters that are not read, and why.
        servers: who answers at which address.
        tracing: ``"joined"``, or why no tracer provider is joined.
        board: whether this process reads this machine's meters for others, is metered by another, or works alone and
            why; ``None`` if it shares nothing.
        discovered: the meters have been looked for; until then there may be more of them.
    """

    channels: tuple[ChannelStatus, ...]
    left_out: tuple[LeftOut, ...]
    servers: Mapping[str, Server]
    tracing: str
    board: SeatStatus | None = None
    discovered: bool = True

    def __str__(self) -> str:
        lines = [f"tracing: {self.tracing}"]
        if self.board is not None:
            lines.append(f"board: this process {self.board}")
        for each in self.channels:
            kind = "estimate" if each.channel.estimated else "meter"
            problem = f", {each.problem}" if each.problem else ""
            meter = each.where or " of ".join(filter(None, (each.channel.meter, each.channel.host)))
            lines.append(f"{kind} {meter}: {each.channel.id}, {each.idle}, {each.age}{problem}")
        for one in self.left_out:
            lines.append(f"left out {one.name}: {one.reason}. {one.message}")
            lines.extend([f"  mend it: {one.mend}"] if one.mend else [])
        lines.extend(_server_line(key, server) for key, server in self.servers.items())
        return "\n".join(lines)


def _server_line(key: str, server: Server) -> str:
    host, _, number = key.rpartition(":")
    if is_process(host):
        return f"process {number}: {server.message or server.name}"
    address = key.removesuffix(":0")  # a Unix socket has no port
    name = "" if server.name == address else server.name
    message = server.message.removeprefix(f"{address}: ")
    pid = "" if server.pid is None or f"pid {server.pid}" in message else f"(pid {server.pid})"
    return " ".join(filter(None, (f"server {address}:", name, pid, message)))


def channel_statuses(station: Station, *, named: bool = False) -> Sequence[ChannelStatus]:
    """The counters of a station; ``named`` says that the user named its meter for another host."""
    state = station.holder_state
    if state is not None:
        return [_channel_of_holder(each) for each in state.channels]
    baselines = station.books.baselines()
    readers = {channel.id: reader for reader in station.meters for channel in reader.open_meter.channels}
    return [
        _channel_status(station, channel, balance, baselines[name], readers.get(name), named=named)
        for name, (channel, balance) in station.books.balance().items()
        if name in baselines
    ]


def _channel_status(
    station: Station, channel: Channel, balance: Balance, idle: Baseline, reader: MeterReader | None, *, named: bool
) -> ChannelStatus:
    kept_seconds = station.idle_memory.age_seconds(channel.id)
    if reader is None:
        return ChannelStatus(channel, balance, idle.watts, idle.origin, kept_seconds, None, None)
    meter, problem = reader.open_meter.meter, reader.problem
    return ChannelStatus(
        channel,
        balance,
        idle_watts=idle.watts,
        idle_origin=idle.origin,
        idle_age_seconds=kept_seconds,
        age_seconds=reader.age_seconds(channel.id),
        problem=None if problem is None else str(problem),
        where=repr(meter) if named else "",
        period_seconds=meter.pace.longest_idle_seconds,
    )


def _channel_of_holder(each: ChannelState) -> ChannelStatus:
    """As the process says that reads it; where its energy goes is known there alone."""
    return ChannelStatus(
        channel_from_json(each["channel"]),
        Balance(0, 0, 0, {}),
        each["idle_watts"],
        each["idle_origin"],
        None,
        each["age_seconds"],
        each["problem"],
    )


def _ago(seconds: float) -> str:
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{seconds / unit:.0f} {name} ago"
    return f"{seconds:.0f} s ago"

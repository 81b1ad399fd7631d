"""From the options to the stations: this machine's, and one for each meter that the user names for servers."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeGuard

from otel_llm_energy.host.folder import default_folder
from otel_llm_energy.idle_memory import IdleMemory, default_path, machine_facts
from otel_llm_energy.ledger.ledger import Ledger
from otel_llm_energy.meters.base import Meter, ProcessMeter, says_what_it_reads
from otel_llm_energy.meters.discovery import AUTO, Discovery, OpenMeter, discover
from otel_llm_energy.meters.scaphandre import SCAPHANDRE_URL
from otel_llm_energy.meters.urls import meter_at
from otel_llm_energy.quantities import NS_PER_SECOND, Channel
from otel_llm_energy.servers.activity import CpuActivity
from otel_llm_energy.servers.figures import FigureActivity
from otel_llm_energy.servers.own_process import is_process, resolve_process
from otel_llm_energy.servers.resolve import resolve, resolve_named
from otel_llm_energy.servers.server import Server
from otel_llm_energy.settings import OPTIONS, Settings
from otel_llm_energy.syscalls import monotonic_ns
from otel_llm_energy.tracing.books import Books
from otel_llm_energy.tracing.directory import Address, Directory
from otel_llm_energy.tracing.gate import DEFAULT_MAX_HOLD_SECONDS
from otel_llm_energy.tracing.seat import Seat
from otel_llm_energy.tracing.sharing import Metering, Rules
from otel_llm_energy.tracing.station import MachineAccess, Station
from otel_llm_energy.version import __version__

# Whoever reads the meters hears of a process that starts within some 20 ms; on a busy machine it may take longer.
_NEWCOMERS_NS = NS_PER_SECOND // 2

_logger = logging.getLogger(__name__)


def directory_of(options: Settings, settle: Callable[[], None], records: Callable[[], bool]) -> Directory:
    """All stations by the addresses of their servers.

    Args:
        options: of `instrument()`.
        settle: have the books of all stations settled soon; for any thread.
        records: whether what is metered is recorded in this process.
    """
    stations = _Stations(options, settle, records)
    elsewhere = stations.meters_elsewhere()
    local = stations.local(taken=frozenset(elsewhere))
    return Directory(local, stations.named(local, elsewhere))


class _Stations:
    """Makes the stations of one set of options."""

    def __init__(self, options: Settings, settle: Callable[[], None], records: Callable[[], bool]) -> None:
        self._options = options
        self._settle = settle
        self._records = records

    def local(self, taken: Collection[Hashable]) -> Station:
        """This machine's; ``taken`` are sources that are read for another station."""
        options = self._options
        names = {Address.parse(address): spec for address, spec in options.servers.items() if _names_process(spec)}
        return self._station(
            "local",
            MachineAccess(
                discover=partial(_discover, options, taken=taken),
                activity=CpuActivity(),
                resolve=partial(_resolve, names),
                edge_meters=partial(_discover_edges, options, taken=taken),
            ),
        )

    def meters_elsewhere(self) -> dict[Hashable, dict[Address, Meter]]:
        """The meters that the user names for servers, by what they read and by the servers' addresses."""
        hosts: dict[Hashable, dict[Address, Meter]] = {}
        for text, spec in self._options.servers.items():
            if not _names_process(spec):
                meter = meter_at(spec) if isinstance(spec, str) else spec
                source = meter.source if isinstance(meter, ProcessMeter) else id(meter)
                hosts.setdefault(source, {})[Address.parse(text)] = meter
        return hosts

    def named(self, local: Station, elsewhere: Mapping[Hashable, Mapping[Address, Meter]]) -> dict[Address, Station]:
        """By address: this machine's for a process that the user names, else one for each meter elsewhere."""
        stations = {Address.parse(text): local for text in self._options.servers}  # the first that matches is taken
        for source, meters in elsewhere.items():
            # A meter that says nothing of what it reads is told from others by whose it is.
            named = [_stable_text(next(iter(meters.values()))), *sorted(map(str, meters))]
            board = _hashed(json.dumps(named) if isinstance(source, int) else repr(source))
            stations.update(dict.fromkeys(meters, self._elsewhere(board, meters)))
        return stations

    def _elsewhere(self, board: str, meters: Mapping[Address, Meter]) -> Station:
        """The station of a host whose servers have these addresses, and meters that read one and the same source.

        One meter is read for all of them: one that takes in the figures of processes, if any of them does.
        """
        processes = {address: _process_of(meter) for address, meter in meters.items()}
        meter = max(meters.values(), key=lambda each: _process_of(each) is not None)
        activity: FigureActivity | NoActivity = NoActivity()
        if isinstance(meter, ProcessMeter) and meter.process is not None:
            activity = FigureActivity(meter.host_powers, meter.cpus)
        first_address = next(iter(meters))
        host = getattr(meter, "host", "") or str(first_address)
        find = partial(_discover_at, host, meter, self._options.idle_watts)
        station = self._station(board, MachineAccess(find, activity, partial(_resolve_elsewhere, processes)))
        for address in meters:
            if address.host and address.port is not None:
                station.expect(address.host, address.port)
        return station

    def _station(self, board: str, access: MachineAccess) -> Station:
        options = self._options
        hold_seconds = DEFAULT_MAX_HOLD_SECONDS if options.max_hold is None else options.max_hold
        max_wait_ns = int(hold_seconds * NS_PER_SECOND)

        def ledger(start_ns: int) -> Ledger:
            return Ledger(
                start_ns,
                idle=options.idle,
                share=options.share,
                max_wait_ns=max_wait_ns,
                newcomers_ns=0 if options.board == "off" else _NEWCOMERS_NS,
            )

        def seat(station: Metering) -> Seat:
            return Seat(_rules(options, board), station, ledger, self._settle, self._records)

        return Station(
            Books(ledger(monotonic_ns())),
            access,
            self._settle,
            idle_memory=_idle_memory(options),
            seat=None if options.board == "off" else seat,
        )


class NoActivity:
    """Where the processes of a server cannot be seen from here: its part of the activity is unknown."""

    def watch(self, server: Server) -> None: ...

    def forget(self, server_id: str) -> None: ...

    def sample(self) -> None:
        return None

    def close(self) -> None: ...


def _idle_memory(options: Settings) -> IdleMemory:
    if options.idle_cache == "off":
        return IdleMemory(None, {})
    facts = machine_facts()
    return IdleMemory(default_path(facts) if options.idle_cache == "auto" else Path(options.idle_cache), facts)


def _rules(options: Settings, board: str) -> Rules:
    """What processes must agree on to share: all options that decide how energy is shared, and the network they see."""
    folder = default_folder() if options.board == "auto" else Path(options.board)
    heeded = _heeded(options, board)
    decisive = {option.name: _stable_text(getattr(heeded, option.name)) for option in OPTIONS if option.common}
    settings = _hashed(json.dumps([decisive, _network_namespace()]))
    return Rules(folder, board, __version__, settings, calls_servers=bool(options.clients))


def _heeded(options: Settings, board: str) -> Settings:
    """What the options come to for a board's meters: processes that differ in no more than words agree."""
    meters = options.meters if board == "local" else ()
    names = {one for one in meters if isinstance(one, str)}
    return replace(
        options,
        meters=meters,
        powercap_root=options.powercap_root if names & {AUTO, "rapl"} else None,
        scaphandre_url=(options.scaphandre_url or SCAPHANDRE_URL) if names & {AUTO, "scaphandre"} else None,
        max_hold=DEFAULT_MAX_HOLD_SECONDS if options.max_hold is None else options.max_hold,
        idle_watts=dict(sorted(options.idle_watts.items())),
    )


def _stable_text(value: object) -> str:
    """An option's value as a text that is the same in each process."""
    if isinstance(value, Mapping):
        return str({key: _stable_text(each) for key, each in value.items()})
    if isinstance(value, (list, tuple)):
        return str([_stable_text(each) for each in value])
    return repr(value) if says_what_it_reads(value) else type(value).__qualname__


def _hashed(text: str) -> str:
    """Sixteen hexadecimal digits: an address may hold a password."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _network_namespace() -> int:
    """Names the network in which ``localhost`` is looked up; 0 if the kernel does not say."""
    try:
        return Path("/proc/self/ns/net").stat().st_ino
    except OSError:
        return 0


def _discover_edges(options: Settings, taken: Collection[Hashable]) -> Discovery:
    """Open only those of the wanted meters that are read at calls' edges: of no other may there be two readers."""
    at_edges = [
        "rapl" if isinstance(one, str) else one
        for one in options.meters
        if one in ("auto", "rapl") or (not isinstance(one, str) and one.pace.at_edges)
    ]
    return _discover(replace(options, meters=at_edges), taken) if at_edges else Discovery((), ())


def _discover(options: Settings, taken: Collection[Hashable]) -> Discovery:
    found = discover(
        options.meters,
        scaphandre_url=options.scaphandre_url,
        powercap_root=options.powercap_root,
        taken=taken,
    )
    meters = tuple(OpenMeter(each.meter, _with_idle(each.channels, options.idle_watts)) for each in found.meters)
    channels = {channel.id for each in meters for channel in each.channels}
    strange = options.idle_watts.keys() - channels - {""}
    # A name that is none of this machine's may be one of another that is read too.
    if meters and strange and all(_names_process(spec) for spec in options.servers.values()):
        names, read = ", ".join(sorted(strange)), ", ".join(sorted(channels))
        _logger.warning("idle_watts: no counter of the name %s is read. There are %s.", names, read)
    _warn_of_places_without_meter(options, found)
    return replace(found, meters=meters)


def _warn_of_places_without_meter(options: Settings, found: Discovery) -> None:
    """Another meter, perhaps an estimate, stands in for the one whose place the user named."""
    places = {
        "rapl": ("powercap_root", options.powercap_root),
        "scaphandre": ("scaphandre_url", options.scaphandre_url),
    }
    for one in found.left_out if found.meters else ():
        option, place = places.get(one.name, ("", None))
        if place is not None:
            standing_in = " and ".join(each.meter.name for each in found.meters)
            _logger.warning("%s: %s Calls are metered by %s meanwhile.", option, one.message, standing_in)


def _discover_at(host: str, meter: Meter, idle_watts: Mapping[str, float]) -> Discovery:
    """Open the meter of another host, so that its counters are told from those of the same names elsewhere."""
    found = discover(meter)
    meters = tuple(
        OpenMeter(each.meter, tuple(replace(one, host=host) for one in _with_idle(each.channels, idle_watts)))
        for each in found.meters
    )
    left_out = (replace(one, name=f"{one.name} of {host}") for one in found.left_out)
    return replace(found, meters=meters, left_out=tuple(left_out))


def _with_idle(channels: Sequence[Channel], idle_watts: Mapping[str, float]) -> tuple[Channel, ...]:
    """Put in the idle power that the user knows: of one channel, or of each CPU package (or the host)."""

    def known(channel: Channel) -> float | None:
        if channel.id in idle_watts:
            return idle_watts[channel.id]
        whole = idle_watts.get("") if channel.component in ("cpu", "host") else None
        return channel.idle_watts if whole is None else whole

    return tuple(replace(channel, idle_watts=known(channel)) for channel in channels)


def _process_of(meter: Meter) -> str | None:
    """Which process of its host the server is that it is named for; ``None`` where it does not say."""
    return getattr(meter, "process", None) or None


def _names_process(spec: str | Meter) -> TypeGuard[str]:
    """``"pid:4711"`` or ``"name:ollama"``, not a meter and not the address of one."""
    return isinstance(spec, str) and spec.startswith(("pid:", "name:"))


def _resolve(names: Mapping[Address, str], host: str, port: int) -> Server:
    if is_process(host):
        return resolve_process(host, port)
    for address, spec in names.items():
        if address.matches(host, port):
            return replace(resolve_named(spec), is_named=True)
    return resolve(host, port)


def _resolve_elsewhere(processes: Mapping[Address, str | None], host: str, port: int) -> Server:
    address = f"{host}:{port}"
    process = next((name for known, name in processes.items() if known.matches(host, port)), None)
    if process is None:
        message = (
            f"{address}: all that its host draws above idle is billed to its calls. If anything else runs there, name"
            " the server's process, as ScaphandreMeter(url=..., process='ollama') or at the end of the URL: '#ollama'."
        )
        return Server(f"remote:{address}", address, "remote", reason="remote", message=message)
    return Server(f"process:{process}", f"{process} on {host}", "remote", process=process)

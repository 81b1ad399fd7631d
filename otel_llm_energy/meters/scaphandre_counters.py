"""Of the counters that Scaphandre shows, which overlap, those that count every joule once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from otel_llm_energy.meters.exposition import Sample
from otel_llm_energy.quantities import Component

HOST_ENERGY = "scaph_host_energy_microjoules"
HOST_POWER = "scaph_host_power_microwatts"
SOCKET_ENERGY = "scaph_socket_energy_microjoules"
DOMAIN_ENERGY = "scaph_domain_energy_microjoules"
COUNTER_FAMILIES = frozenset({HOST_ENERGY, HOST_POWER, SOCKET_ENERGY, DOMAIN_ENERGY})

HOST, PSYS = "host", "psys"
"""Channels of a whole host: the sum of its sockets and their memory, or the platform's counter, which holds more."""

_PSYS_NEAR_UJ = 100_000_000  # the same counter, read 0.2 s apart at 500 W


@dataclass(frozen=True, slots=True)
class Counters:
    """What one page says: the counters that do not overlap, by channel, and the host's own energy and power."""

    by_channel_uj: Mapping[str, int]
    host_uj: int | None
    host_uw: float | None


def counters(samples: Iterable[Sample]) -> Counters:
    """Of the page's overlapping counters those that do not overlap: sockets and their DRAM, or else the host.

    ``core`` and ``uncore`` are inside their socket, psys holds the sockets, the ``mmio`` families (not wanted at all)
    repeat them. Where Scaphandre found no domains it exports psys as one more socket; it is known by its counter.
    """
    sockets: dict[str, int] = {}
    drams: dict[str, int] = {}
    host_uj, host_uw, host_is_psys = None, None, False
    for name, labels, value in samples:
        if value < 0:
            continue
        if name == SOCKET_ENERGY and "socket_id" in labels:
            sockets[f"package-{labels['socket_id']}"] = int(value)
        elif name == DOMAIN_ENERGY and labels.get("domain_name", "").strip() == "dram" and "socket_id" in labels:
            drams[f"package-{labels['socket_id']}/dram"] = int(value)
        elif name == HOST_ENERGY:
            host_uj, host_is_psys = int(value), "psys" in labels.get("value_source", "")
        elif name == HOST_POWER:
            host_uw = float(value)
    if host_is_psys and host_uj is not None:
        sockets = _without_psys(sockets, host_uj)
    if sockets:
        return Counters({**sockets, **drams}, host_uj, host_uw)
    name = PSYS if host_is_psys else HOST
    return Counters({} if host_uj is None else {name: host_uj}, host_uj, host_uw)


def component(channel_id: str) -> Component:
    """What a channel of `counters` covers."""
    if channel_id in (HOST, PSYS):
        return "host"
    return "memory" if channel_id.endswith("/dram") else "cpu"


def _without_psys(sockets: Mapping[str, int], psys_uj: int) -> dict[str, int]:
    return {name: value for name, value in sockets.items() if abs(value - psys_uj) > _PSYS_NEAR_UJ}

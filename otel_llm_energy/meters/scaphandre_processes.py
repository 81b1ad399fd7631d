"""Scaphandre's figures of single processes (checked against 1.0.0 and 1.0.2).

Builds with sysinfo 0.29 or newer list every thread as a process of its own, beside the process, whose figure holds
them all already. The page does not say which is which, but threads of one process have its program and its memory, to
the byte. Their command line may be empty.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from otel_llm_energy.meters.exposition import Sample
from otel_llm_energy.quantities import ProcessPower

POWER = "scaph_process_power_consumption_microwatts"
MEMORY = "scaph_process_memory_bytes"
VIRTUAL_MEMORY = "scaph_process_memory_virtual_bytes"
PROCESS_FAMILIES = frozenset({POWER, MEMORY, VIRTUAL_MEMORY})


@dataclass(slots=True)
class _Line:
    """What a page says of one process or thread; ``None`` where it says nothing."""

    labels: Mapping[str, str]
    microwatts: float | None = None
    memory_bytes: float | None = None
    virtual_bytes: float | None = None


def processes(samples: Iterable[Sample]) -> tuple[ProcessPower, ...]:
    """Each process of a page once, without its threads."""
    lines: dict[int, _Line] = {}
    for name, labels, value in samples:
        if name not in PROCESS_FAMILIES or not labels.get("pid", "").isdecimal() or value < 0:
            continue
        line = lines.setdefault(int(labels["pid"]), _Line(labels))
        if name == POWER:
            line.microwatts = float(value)
        elif name == MEMORY:
            line.memory_bytes = value
        else:
            line.virtual_bytes = value
    groups: dict[tuple[object, ...], list[tuple[int, _Line]]] = {}
    for pid, line in lines.items():
        if line.microwatts is not None:
            groups.setdefault(_process_key(pid, line), []).append((pid, line))
    return tuple(_process(group) for group in groups.values())


def _process_key(pid: int, line: _Line) -> tuple[object, ...]:
    exe = line.labels.get("exe", "")
    if not exe and not line.memory_bytes:  # a thread of the kernel, which is its own process
        return (pid,)
    if line.memory_bytes or line.virtual_bytes:
        return exe, line.virtual_bytes, line.memory_bytes
    return exe, line.labels.get("cmdline", "")


def _process(group: list[tuple[int, _Line]]) -> ProcessPower:
    """The process that these lines are of: its first thread's, which has the whole power and the lowest number.

    Two processes that are alike to the byte would be taken for one. Threads make up no more than their process, so
    at least half of the sum is real.
    """
    pid, first = min(group, key=lambda pid_and_line: (not pid_and_line[1].labels.get("cmdline"), pid_and_line[0]))
    powers = [line.microwatts or 0.0 for _, line in group]
    return ProcessPower(
        pid=pid,
        exe=first.labels.get("exe", ""),
        cmdline=first.labels.get("cmdline", ""),
        labels=first.labels,
        microwatts=max(*powers, sum(powers) / 2),
    )

"""A server's part of the activity of a host that is not ours to look into, by its meter's figures of processes."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from otel_llm_energy.machine import TICK_NS
from otel_llm_energy.quantities import ActivitySample, HostPower, ProcessPower
from otel_llm_energy.servers.server import Server
from otel_llm_energy.servers.unseen import UnseenBusyness

SelectorKind = Literal["exe", "cmdline", "container", "label"]
_KINDS: tuple[SelectorKind, ...] = ("exe", "cmdline", "container", "label")
_CONTAINER_LABELS = ("container_names", "container_label_com_docker_compose_service", "kubernetes_pod_name")
_LEAST_ID_DIGITS = 12  # of a container's id, as docker ps shows it

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Selector:
    """Which processes of a host are the server: ``"ollama"``, ``"cmdline:vllm"``, ``"container:llm"``.

    Attributes:
        kind: what is compared.
        value: with what, in lower case. ``exe``: the program's name without its folder. ``cmdline``: a part of the
            command line, spaces left out. ``container``: its name, its id (12 digits or more), its Compose service or
            its Kubernetes pod. ``label``: ``key=value``, any label of the meter's figures.
    """

    kind: SelectorKind
    value: str

    @classmethod
    def parse(cls, text: str) -> Selector:
        """Read ``kind:value``, or a program's name alone. Raises `ValueError`."""
        name, colon, value = text.partition(":")
        kind = next((each for each in _KINDS if each == name), None) if colon else "exe"
        value = (value if colon else text).strip().lower()
        if kind is None or not value or (kind == "label" and "=" not in value):
            raise ValueError(
                f"process {text!r}: write a program's name such as 'ollama', 'cmdline:' and a part of its command line,"
                " 'container:' and a name, or 'label:' and key=value."
            )
        return cls(kind, value.replace(" ", "") if kind == "cmdline" else value)

    def matches(self, process: ProcessPower) -> bool:
        """Whether the process is (a part of) the server."""
        if self.kind == "exe":
            return PurePosixPath(process.exe.removesuffix(" (deleted)")).name.lower() == self.value
        if self.kind == "cmdline":
            return self.value in process.cmdline.replace(" ", "").lower()
        if self.kind == "label":
            key, _, value = self.value.partition("=")
            return any(name.lower() == key and text.lower() == value for name, text in process.labels.items())
        return self._names_container(process)

    def _names_container(self, process: ProcessPower) -> bool:
        names = {
            name.strip().lstrip("/").lower()
            for label in _CONTAINER_LABELS
            for name in process.labels.get(label, "").split(",")
        }
        container_id = process.labels.get("container_id", "").lower()
        is_id = len(self.value) >= _LEAST_ID_DIGITS and container_id.startswith(self.value)
        return self.value in names or is_id


class FigureActivity:
    """Turns a meter's power of processes into busy time. Thread-safe.

    A process's figure is the host's power times its part of all CPU time, so figure / host's power is the part of the
    machine that it kept busy. Busy time counts in CPUs where their number is known, else in whole machines; a server's
    part of the activity is the same either way.

    A program that has come since the last figures is listed, but without power of its own, and one that has gone is
    not listed any more: what either used in between is what the host drew more than all others explain.

    Args:
        powers: the meter's newest figures, oldest first; may repeat what it gave before.
        cpus: how many CPUs the host has.
    """

    def __init__(self, powers: Callable[[], Sequence[HostPower]], cpus: int | None = None) -> None:
        self._powers = powers
        self._capacity = cpus or 1
        self._lock = threading.Lock()
        self._selectors: dict[str, Selector | None] = {}
        self._busy_ns: dict[str, int] = {}
        self._total_ns = 0
        self._last_ns: int | None = None
        self._missed: set[str] = set()
        self._pids: frozenset[int] = frozenset()
        self._active_pids: frozenset[int] = frozenset()
        self._unseen = UnseenBusyness()

    def watch(self, server: Server) -> None:
        """From now on sample this server too; one whose process is not named counts as unknown."""
        with self._lock:
            self._selectors[server.id] = None if server.process is None else Selector.parse(server.process)
            self._busy_ns.setdefault(server.id, 0)

    def forget(self, server_id: str) -> None:
        """Sample this server no more."""
        with self._lock:
            self._selectors.pop(server_id, None)
            self._busy_ns.pop(server_id, None)

    def sample(self) -> ActivitySample | None:
        """Take in the figures that are new; ``None`` if none is."""
        with self._lock:
            sample = None
            for power in self._powers():
                if self._last_ns is None:
                    self._last_ns = power.at_ns
                    self._note_who_is_there(power)
                    sample = self._sample(power.at_ns, dict.fromkeys(self._selectors, 0), 0)
                elif power.at_ns > self._last_ns and power.microwatts:
                    # Where figures were missing, these stand for the time since the last ones.
                    sample = self._add(power, power.microwatts, power.at_ns - self._last_ns)
                    self._last_ns = power.at_ns
            return sample

    def close(self) -> None:
        """Forget all servers."""
        with self._lock:
            self._selectors.clear()
            self._busy_ns.clear()

    def _add(self, power: HostPower, host_microwatts: float, length_ns: int) -> ActivitySample:
        busy_ns_per_microwatt = self._capacity * length_ns / host_microwatts
        by_server_ns: dict[str, int | None] = {}
        for server_id, selector in self._selectors.items():
            found = [] if selector is None else [each for each in power.processes if selector.matches(each)]
            self._busy_ns[server_id] += round(sum(each.microwatts for each in found) * busy_ns_per_microwatt)
            by_server_ns[server_id] = self._busy_ns[server_id] if found else None
            self._note(server_id, selector, bool(found), power)
        active = [each.microwatts for each in power.processes if each.microwatts > 0]
        unseen_ns = round(self._come_or_gone(power, sum(active) / host_microwatts) * self._capacity * length_ns)
        self._total_ns += round(sum(active) * busy_ns_per_microwatt) + unseen_ns
        # The least that any process shows is one tick of one CPU.
        tick_ns = min(TICK_NS, round(min(active, default=0.0) * busy_ns_per_microwatt))
        return self._sample(power.at_ns, by_server_ns, tick_ns, len(active), unseen_ns)

    def _come_or_gone(self, power: HostPower, busy: float) -> float:
        """The part of the machine that programs without figures kept busy, where there may have been such."""
        come = any(not each.microwatts and each.pid not in self._pids for each in power.processes)
        gone = self._active_pids - {each.pid for each in power.processes}
        self._note_who_is_there(power)
        microwatts = power.microwatts or 0.0
        if come or gone:
            return self._unseen.unseen(busy, microwatts)
        self._unseen.learn(busy, microwatts)
        return 0.0

    def _note_who_is_there(self, power: HostPower) -> None:
        self._pids = frozenset(each.pid for each in power.processes)
        self._active_pids = frozenset(each.pid for each in power.processes if each.microwatts > 0)

    def _sample(
        self,
        at_ns: int,
        by_server_ns: dict[str, int | None],
        tick_ns: int,
        active: int = 0,
        unseen_ns: int = 0,
    ) -> ActivitySample:
        return ActivitySample(
            resource="cpu",
            at_ns=at_ns,
            total_ns=self._total_ns,
            by_server_ns=by_server_ns,
            capacity=self._capacity,
            resolution_ns=tick_ns,
            # Each process's tick errs by itself; what is only concluded from the power may be all wrong.
            total_resolution_ns=round(tick_ns * active**0.5) + unseen_ns,
        )

    def _note(self, server_id: str, selector: Selector | None, found: bool, power: HostPower) -> None:
        """Say once that a process is not there, and once that it is there again."""
        if found == (server_id not in self._missed) or selector is None:
            return
        if found:
            self._missed.discard(server_id)
            _logger.info("%s:%s is among the meter's processes now.", selector.kind, selector.value)
            return
        self._missed.add(server_id)
        programs = sorted({PurePosixPath(each.exe).name for each in power.processes if each.exe})
        _logger.warning(
            "No process matches %s:%s, so the server's part of the host's power is not known. There are: %s.",
            selector.kind,
            selector.value,
            ", ".join(programs[:20]) or "no processes at all (the figures name none)",
        )

"""Which part of a GPU's work is whose: samples by the contexts that processes hold on it and by what they use of it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from otel_llm_energy.nvml import GPU_RESOURCE, Gpu, Nvml, NvmlError
from otel_llm_energy.quantities import NS_PER_SECOND, ActivitySample
from otel_llm_energy.servers.procfs import Procfs
from otel_llm_energy.servers.server import Server

# A GPU that was not seen to work may have worked since the driver's last sample of it.
_LEAST_PERCENT = 1
# The driver samples what processes use about once a second at the slowest.
_LONGEST_WAIT_NS = NS_PER_SECOND
# The error of one difference where several processes share: some of the driver's sample periods, assumed.
_RESOLUTION_NS = NS_PER_SECOND // 10

_logger = logging.getLogger(__name__)


class GpuActivity:
    """Samples the work of watched servers on NVIDIA GPUs. Thread-safe; made for one sample every 250 ms.

    A server whose processes hold no context on a GPU draws nothing from it. If only one server's do, all work is its
    own. Else its part is what the driver says that its processes used; where that is not told, the part is unknown.

    Args:
        open_nvml: opens the library.
        clock_ns: the monotonic clock.
    """

    def __init__(
        self,
        *,
        open_nvml: Callable[[], Nvml] = Nvml,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._procfs = Procfs()
        self._open_nvml = open_nvml
        self._clock_ns = clock_ns
        self._lock = threading.Lock()
        self._servers: dict[str, Server] = {}
        self._nvml: Nvml | None = None
        self._cards: dict[str, _Card] = {}
        self._said = False

    def watch(self, server: Server) -> None:
        """From now on sample this server too; one without a process tree counts as unknown."""
        with self._lock:
            self._servers[server.id] = server

    def forget(self, server_id: str) -> None:
        """Sample this server no more."""
        with self._lock:
            self._servers.pop(server_id, None)

    def samples(self, resources: Collection[str]) -> list[ActivitySample]:
        """Sample those of the resources that are GPUs; none of those of which there is no news yet."""
        wanted = [name for name in resources if name.startswith(GPU_RESOURCE)]
        with self._lock:
            if not all(name in self._cards for name in wanted):
                self._look_for_cards()
            cards = [self._cards[name] for name in wanted if name in self._cards]
            samples = [card.sample(self._servers, self._clock_ns()) for card in cards]
        return [sample for sample in samples if sample is not None]

    def close(self) -> None:
        """Give the library back and forget all servers."""
        with self._lock:
            self._servers.clear()
            self._cards.clear()
            nvml, self._nvml = self._nvml, None
            if nvml is not None:
                nvml.close()

    def _look_for_cards(self) -> None:
        try:
            nvml = self._nvml = self._nvml or self._open_nvml()
            for gpu in nvml.gpus():
                self._cards.setdefault(gpu.resource, _Card(nvml, gpu, self._procfs, self._clock_ns()))
        except NvmlError as error:
            if not self._said:
                self._said = True
                _logger.warning("No server's part of a GPU's work can be known: %s", error)


class _Work(NamedTuple):
    """How busy a GPU was, percent: by server, by everyone else, and of whom neither is known."""

    by_server: Mapping[str, int]
    others: int
    unknown: frozenset[str] = frozenset()


class _Card:
    """The cumulative work on one GPU. Not thread-safe."""

    def __init__(self, nvml: Nvml, gpu: Gpu, procfs: Procfs, now_ns: int) -> None:
        self._nvml = nvml
        self._gpu = gpu
        self._procfs = procfs
        self._last_ns = now_ns
        self._used_until_us = 0
        self._total_ns = 0
        self._by_server_ns: dict[str, int] = {}
        self._seen_pids: set[int] | None = None

    def sample(self, servers: Mapping[str, Server], now_ns: int) -> ActivitySample | None:
        """Its work up to now; ``None`` while the driver has no news."""
        traceable = frozenset(name for name, server in servers.items() if server.pid is not None)
        tenants = self._tenants(servers)
        work = self._work(tenants, traceable, now_ns - self._last_ns)
        if work is None:
            return None
        self._add(work, now_ns)
        unknown = work.unknown | (servers.keys() - traceable)
        return ActivitySample(
            resource=self._gpu.resource,
            at_ns=now_ns,
            total_ns=self._total_ns,
            by_server_ns={name: None if name in unknown else self._by_server_ns.get(name, 0) for name in servers},
            capacity=1,
            resolution_ns=_RESOLUTION_NS if len(tenants or ()) > 1 else 0,
            total_resolution_ns=0,
            absent=frozenset() if tenants is None else traceable - tenants.keys(),
        )

    def _add(self, work: _Work, now_ns: int) -> None:
        length_ns, self._last_ns = now_ns - self._last_ns, now_ns
        self._total_ns += length_ns * work.others // 100
        for server, percent in work.by_server.items():
            self._total_ns += length_ns * percent // 100
            self._by_server_ns[server] = self._by_server_ns.get(server, 0) + length_ns * percent // 100

    def _tenants(self, servers: Mapping[str, Server]) -> dict[str, set[int]] | None:
        """Who holds contexts: processes by server, others' under ``""``; ``None`` if that cannot be seen from here."""
        roots = {server.pid: name for name, server in servers.items() if server.pid is not None}
        tenants: dict[str, set[int]] = {}
        pids = self._pids()
        if pids is None:
            return None
        for pid in pids:
            line = [pid, *self._procfs.ancestors(pid)]
            owner = next((roots[each] for each in line if each in roots), "")
            tenants.setdefault(owner, set()).add(pid)
        return tenants

    def _pids(self) -> set[int] | None:
        """Who holds contexts; ``None`` if that cannot be seen from here. Nobody comes to a GPU that is lost."""
        try:
            pids = self._nvml.processes(self._gpu)
            if not pids and self._nvml.busy_percent(self._gpu):
                return None  # a container that does not see the host's processes: the list is empty
        except NvmlError as error:
            if error.reason != "gpu-lost" or self._seen_pids is None:
                return None
            return {pid for pid in self._seen_pids if self._procfs.stat(pid) is not None}
        if any(self._procfs.stat(pid) is None for pid in pids):
            return None
        self._seen_pids = pids
        return pids

    def _work(self, tenants: dict[str, set[int]] | None, traceable: frozenset[str], length_ns: int) -> _Work | None:
        """How busy each tenant kept it since the last sample; ``None`` if the driver has no news yet."""
        if tenants is None:
            return _Work({}, 100, traceable)
        if len(tenants) < 2:
            percent = self._busy_percent()
            by_server = {name: percent for name in tenants if name}
            return _Work(by_server, 0 if by_server else percent)
        try:
            used = self._nvml.utilisation(self._gpu, self._used_until_us)
        except NvmlError:
            return _Work({}, 100, traceable & tenants.keys())
        if not used and length_ns < _LONGEST_WAIT_NS:
            return None
        self._used_until_us = max((one.at_us for one in used), default=self._used_until_us)
        samples = len({one.at_us for one in used}) or 1
        percents = {
            name: sum(one.percent for one in used if one.pid in pids) // samples for name, pids in tenants.items()
        }
        return _Work({name: percent for name, percent in percents.items() if name}, percents.get("", 0))

    def _busy_percent(self) -> int:
        try:
            return max(self._nvml.busy_percent(self._gpu), _LEAST_PERCENT)
        except NvmlError:
            return _LEAST_PERCENT

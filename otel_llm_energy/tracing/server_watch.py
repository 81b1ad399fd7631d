"""Which servers a machine has, and their parts of its activity."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from otel_llm_energy.quantities import NS_PER_SECOND, ActivitySample
from otel_llm_energy.servers.gpu_activity import GpuActivity
from otel_llm_energy.servers.own_process import is_process
from otel_llm_energy.servers.programs import is_llama_cpp
from otel_llm_energy.servers.props import LoadingError, slots_told
from otel_llm_energy.servers.server import Server
from otel_llm_energy.servers.unix_sockets import is_unix_socket
from otel_llm_energy.tracing.books import Books

ACTIVITY_GAP_NS = NS_PER_SECOND // 4
_NAMES_OF_THIS_MACHINE = ("localhost", "127.0.0.1", "::1", "0.0.0.0")
# Who uses no more of a CPU than this part, for so long while calls are open, may not be who answers them.
_IDLE_PART = 0.02
_IDLE_NS = NS_PER_SECOND // 2
_LOOK_AGAIN_NS = 2 * NS_PER_SECOND
_LOOK_AGAIN_IDLE_NS = 10 * NS_PER_SECOND
_CALLED_LATELY_NS = 60 * NS_PER_SECOND  # nobody asks who answers by now where it is called no more
_ASK_AGAIN_NS = 5 * NS_PER_SECOND  # a server that loads its model, which takes seconds to minutes
_MOST_DOUBLINGS = 3
_AT_ONCE_SECONDS = 0.05
# Reasons for which it is in doubt whether this machine's energy is the server's at all.
_CAUTIONS = frozenset({"relay", "not-listening"})

_Address = tuple[str, int]

_logger = logging.getLogger(__name__)


class Activity(Protocol):
    """Samples the busy time of servers (`otel_llm_energy.servers.CpuActivity`)."""

    def watch(self, server: Server) -> None: ...

    def forget(self, server_id: str) -> None: ...

    def sample(self) -> ActivitySample | None: ...

    def close(self) -> None: ...


@runtime_checkable
class LooksBack(Protocol):
    """Can say of a server that was found just now what it had done a moment before."""

    def snapshot(self) -> Callable[[], ActivitySample | None]:
        """Note what every process has done by now; the result gives a sample of this instant, of those watched then."""


@dataclass(slots=True)
class _Found:
    """A server that is watched under one of the ledger's names.

    Attributes:
        server: who answers there now.
        carried_ns: added to its busy time, so that the sum goes on from that of whoever had the port before.
        idle_ns: for how long it has done nothing while calls were open.
    """

    server: Server
    carried_ns: int = 0
    idle_ns: int = 0


@dataclass(slots=True)
class _Untold:
    """A server that may tell its slots, and has not yet.

    Attributes:
        in_vain: how often it was asked while it loaded its model.
        due_ns: when it is to be asked.
    """

    host: str
    port: int
    in_vain: int = 0
    due_ns: int = 0

    def postpone(self, now_ns: int) -> None:
        """Later each time, as one may say for ever that it loads."""
        self.due_ns = now_ns + _ASK_AGAIN_NS * 2 ** min(self.in_vain, _MOST_DOUBLINGS)
        self.in_vain += 1


class ServerWatch:
    """Which server answers at which address, and its part of the activity, under one name for all its addresses.

    Attributes:
        final: somebody cannot wait: the next sample is taken, and closes a cell, however soon it comes after the last.
        resources: of the channels that are read, as in `Channel.resource`; of these GPUs are sampled.
    """

    def __init__(
        self,
        books: Books,
        activity: Activity,
        resolve: Callable[[str, int], Server],
        clock_ns: Callable[[], int],
        ask_slots: Callable[[str, int], int | None] = slots_told,
    ) -> None:
        self.final = False
        self.resources: frozenset[str] = frozenset()
        self._gpus = GpuActivity()
        self._books = books
        self._activity = activity
        self._resolve = resolve
        self._clock_ns = clock_ns
        self._ask_slots = ask_slots
        self._keys: dict[tuple[str, int], str] = {}
        self._found: dict[str, _Found] = {}  # by key
        self._looked_ns: dict[str, int] = {}  # by key: when it was looked up, or was put on the list to be so again
        self._called_ns: dict[str, int] = {}  # by key
        self._last_sample: ActivitySample | None = None
        self._waiting: list[tuple[str, int]] = []
        self._looked_out_for: list[tuple[str, int]] = []
        self._to_name: list[tuple[str, str, int, Server]] = []
        self._to_ask: dict[str, _Untold] = {}  # by key
        self._next_sample_ns = 0
        # Reentrant, as a garbage collection anywhere may end a stream, and so have this process's work go on.
        self._lock = threading.RLock()
        self._sampling = False

    @property
    def unresolved(self) -> bool:
        """There are addresses that nobody has looked up yet."""
        return bool(self._waiting)

    @property
    def ask_again_seconds(self) -> float | None:
        """Until the next of those is to be asked that were loading their model; ``None`` if there are none."""
        due_ns = min((each.due_ns for each in self._to_ask.values()), default=None)
        return None if due_ns is None else max(due_ns - self._clock_ns(), 0) / NS_PER_SECOND

    def key(self, host: str, port: int) -> str:
        """The ledger's name for the server at an address; the first time it is put on the list to be looked up."""
        key = self._keys.get((host, port))
        if key is None:
            key = self._keys[host, port] = _own_key(host, port)
            self._waiting.append((host, port))
        self._called_ns[key] = self._clock_ns()
        return key

    def look_out_for(self, host: str, port: int) -> None:
        """See `Station.look_out_for`."""
        self._looked_out_for.append((host, port))

    def find_those_looked_out_for(self) -> None:
        """Put those that are there on the list.

        Of one that is not, which may be started later, nothing can be said; nor of one behind a relay, which is
        connected to it only while there are calls.
        """
        while self._looked_out_for:
            address = self._looked_out_for.pop()
            if address not in self._keys and self._resolve(*address).reason is None:
                self.key(*address)

    def found(self) -> Mapping[str, Server]:
        """The servers that were found, by key; for any thread."""
        return {key: found.server for key, found in self._found.copy().items()}

    def close(self) -> None:
        self._activity.close()
        self._gpus.close()

    def sample(self) -> bool:
        """Look up new addresses and sample the activity of all servers; False if that was done just now."""
        with self._lock:
            if self._sampling:
                return False
            due = bool(self._waiting) or self.final or self._clock_ns() >= self._next_sample_ns
            if due:
                self._sample()
            return due

    def find_at_once(self, host: str, port: int) -> None:
        """Look up one new address, and sample, in a thread of the app's.

        It waits for no other look-up, which may take seconds where the network does not answer.
        """
        if (host, port) in self._waiting and self._lock.acquire(timeout=_AT_ONCE_SECONDS):
            try:
                if not self._sampling:
                    self.final = True  # however short the time since the last sample, which knew nothing of it
                    self._sample(only=(host, port))
            finally:
                self._lock.release()

    def learn_names(self) -> None:
        """See which other names of this machine lead to the servers that were found; takes some 10 ms for each.

        A call by a name that is not known yet stands for a server of its own, of which nothing is known.
        """
        with self._lock:  # a look-up in another thread may be under way
            found, self._to_name = self._to_name, []
        for key, host, port, server in found:
            for name in _NAMES_OF_THIS_MACHINE:
                if (name, port) not in self._keys and self._resolve(name, port).id == server.id:
                    self._keys[name, port] = key
            # Where neither the command line nor the environment says how many calls it works on at once, it may itself.
            if server.slots is None and is_llama_cpp(server.name):
                self._to_ask[key] = _Untold(host, port)
        self._learn_slots()

    def _learn_slots(self) -> None:
        """Who is still loading its model is asked again."""
        now_ns = self._clock_ns()
        for key, untold in list(self._to_ask.items()):
            if untold.due_ns > now_ns:
                continue
            try:
                slots = self._ask_slots(untold.host, untold.port)
            except LoadingError:
                untold.postpone(self._clock_ns())
            else:
                del self._to_ask[key]
                self._books.set_server(key, slots=slots, caution=None)

    def _look_up_waiting(self, only: _Address | None) -> None:
        """Look up new addresses. Their servers are at work already, and are to be known from now on, not from then."""
        sample_of_now = self._activity.snapshot() if isinstance(self._activity, LooksBack) else lambda: None
        former = self.found()
        while wanted := self._waiting if only is None else [each for each in self._waiting if each == only]:
            address = wanted[0]
            self._waiting.remove(address)
            self._look_up(*address)
        sample = sample_of_now()
        if sample is not None:
            self._carry_on(former, sample.by_server_ns)
            self._books.sample(_with_keys(sample, self._keys_by_id(), self._carried_ns()), final=True)

    def _carry_on(self, former: Mapping[str, Server], busy_ns: Mapping[str, int | None]) -> None:
        """Whoever took over a port did not do just now what it has done since it was started."""
        for key, server in former.items():
            found = self._found[key]
            then_ns, now_ns = busy_ns.get(server.id), busy_ns.get(found.server.id)
            if then_ns is not None and now_ns is not None:
                found.carried_ns += then_ns - now_ns

    def _keys_by_id(self) -> Mapping[str, str]:
        return {found.server.id: key for key, found in self._found.items()}

    def _carried_ns(self) -> Mapping[str, int]:
        return {key: found.carried_ns for key, found in self._found.items()}

    def _sample(self, only: _Address | None = None) -> None:
        self._sampling = True
        try:
            self._look_up_and_sample(only)
        finally:
            self._sampling = False

    def _look_up_and_sample(self, only: _Address | None) -> None:
        if self._waiting:
            self._look_up_waiting(only)
        self._next_sample_ns = self._clock_ns() + ACTIVITY_GAP_NS
        final, self.final = self.final, False  # before the sample is taken: who asks meanwhile asks for the next one
        keys = self._keys_by_id()
        sample = self._activity.sample()
        if sample is None:
            self.final |= final
        else:
            sample = _with_keys(sample, keys, self._carried_ns())
            self._note_idle(sample)
            self._look_again(sample.by_server_ns)
            self._books.sample(sample, final=final)
        for sample in self._gpus.samples(self.resources):
            self._books.sample(_with_keys(sample, keys, {}), final=final)

    def _look_up(self, host: str, port: int) -> None:
        """Find who answers at an address, have it watched under one name, and tell the books what is known of it."""
        key = _own_key(host, port)
        server = self._resolve(host, port)
        self._looked_ns[key] = self._clock_ns()
        caution = server.reason if server.reason in _CAUTIONS else ""
        found = self._found.get(key)
        if found is not None and found.server == server:
            self._keys[host, port] = key  # it may have led to another one meanwhile
            self._activity.watch(server)
            return
        other_key = next((name for name, other in self._found.items() if other.server.id == server.id), key)
        if other_key != key:  # another name of a server that is watched
            for address in [(host, port), *self._addresses_of(key)]:
                self._keys[address] = other_key
            if caution:
                self._books.set_server(other_key, slots=None, caution=caution)
            return
        self._keys[host, port] = key
        self._watch(key, server)
        self._books.set_server(key, slots=server.slots, caution=caution)
        if server.pid is not None and not is_process(host) and not is_unix_socket(host):
            self._to_name.append((key, host, port, server))
        _say_what_is_wrong(key, server)

    def _watch(self, key: str, server: Server) -> None:
        """Have its activity sampled, under this name, and no more that of whoever answered there before."""
        found = self._found.get(key)
        if found is None:
            self._found[key] = _Found(server)
        else:
            former, found.server = found.server, server
            if former.id != server.id:
                self._activity.forget(former.id)
                self._gpus.forget(former.id)
        self._activity.watch(server)
        self._gpus.watch(server)

    def _note_idle(self, sample: ActivitySample) -> None:
        """Count for how long each server has done nothing though calls are open."""
        last, self._last_sample = self._last_sample, sample
        if last is None or not self._books.busy:
            return
        length_ns = sample.at_ns - last.at_ns
        for key, busy_ns in sample.by_server_ns.items():
            then_ns = last.by_server_ns.get(key)
            works = busy_ns is None or then_ns is None or busy_ns - then_ns > _IDLE_PART * length_ns
            self._found[key].idle_ns = 0 if works else self._found[key].idle_ns + length_ns

    def _look_again(self, by_key: Mapping[str, int | None]) -> None:
        """Look again who answers where the server has ended, or does nothing: it may have left its port to another."""
        now_ns = self._clock_ns()
        for key in dict.fromkeys(self._keys.copy().values()):  # calls by new names come in other threads
            found = self._found.get(key)
            gone, idle = by_key.get(key) is None, found is not None and found.idle_ns >= _IDLE_NS
            if by_key.get(key, 0) is None and found is not None and found.server.pid is not None and is_process(key):
                self._forget(key, found.server)  # an app's process: no other one takes its place
                continue
            called = now_ns - self._called_ns.get(key, 0) < _CALLED_LATELY_NS
            pause_ns = _LOOK_AGAIN_NS if gone else _LOOK_AGAIN_IDLE_NS
            if (gone or idle) and called and self._books.busy and now_ns - self._looked_ns.get(key, 0) > pause_ns:
                self._looked_ns[key] = now_ns
                # Its own address first, so that the others, which may lead elsewhere by now, find it under its name.
                # What `learn_names` found goes where that one does.
                looked_up = [each for each in self._addresses_of(key) if _own_key(*each) in self._looked_ns]
                self._waiting += sorted(looked_up, key=lambda address: _own_key(*address) != key)

    def _forget(self, key: str, server: Server) -> None:
        for address in self._addresses_of(key):
            del self._keys[address]
        self._activity.forget(server.id)
        self._gpus.forget(server.id)
        for by_key in (self._found, self._looked_ns, self._called_ns, self._to_ask):
            by_key.pop(key, None)

    def _addresses_of(self, key: str) -> list[tuple[str, int]]:
        return [address for address, each in self._keys.copy().items() if each == key]


def _own_key(host: str, port: int) -> str:
    """The ledger's name for the server at an address that is no other name of one that is watched."""
    return f"{host}:{port}"


def _say_what_is_wrong(key: str, server: Server) -> None:
    if server.reason is not None and server.is_named:  # it may be misspelt
        _logger.warning("The server named for %s: %s", key, server.message)
    elif server.reason is not None:
        _logger.info("%s", server.message)


def _with_keys(sample: ActivitySample, keys: Mapping[str, str], carried_ns: Mapping[str, int]) -> ActivitySample:
    """The sample with the ledger's names of its servers, their sums going on from what was before."""
    by_key = {keys[name]: busy_ns for name, busy_ns in sample.by_server_ns.items() if name in keys}
    return replace(
        sample,
        by_server_ns={
            key: None if busy_ns is None else busy_ns + carried_ns.get(key, 0) for key, busy_ns in by_key.items()
        },
        absent=frozenset(keys[name] for name in sample.absent if name in keys),
    )

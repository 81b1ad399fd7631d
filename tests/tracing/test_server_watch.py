"""What becomes known of the server at an address while its calls go on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from opentelemetry.trace import INVALID_SPAN_CONTEXT

from otel_llm_energy.ledger.ledger import Ledger
from otel_llm_energy.quantities import NS_PER_SECOND, ActivitySample
from otel_llm_energy.servers import Server
from otel_llm_energy.servers.own_process import this_process
from otel_llm_energy.servers.props import LoadingError
from otel_llm_energy.tracing.books import Books
from otel_llm_energy.tracing.claims import Claim
from otel_llm_energy.tracing.server_watch import ServerWatch

OLLAMA = Server("pid:7:1", "ollama", "local", pid=7, start_ticks=1)
BEHIND_NGINX = Server("pid:7:1", "ollama", "local", pid=7, start_ticks=1, reason="relay", message="nginx")
LLAMA = Server("pid:9:1", "llama-server", "local", pid=9, start_ticks=1)
NGINX = Server("local:localhost:80", "localhost:80", "local", reason="relay", message="nginx")
NOBODY = Server("unknown:localhost:80", "localhost:80", "unknown", reason="not-listening", message="Nothing listens.")


class Idle:
    """No server does anything, unless told to; those that are watched."""

    def __init__(self, clock_ns: Callable[[], int] = lambda: 1) -> None:
        self.watched: dict[str, Server] = {}
        self.busy_ns = 0
        self._clock_ns = clock_ns

    def watch(self, server: Server) -> None:
        self.watched[server.id] = server

    def forget(self, server_id: str) -> None:
        del self.watched[server_id]

    def sample(self) -> ActivitySample:
        by_server_ns = {name: None if server.pid is None else self.busy_ns for name, server in self.watched.items()}
        return ActivitySample("cpu", self._clock_ns(), self.busy_ns, by_server_ns, 1, 0, 0)

    def close(self) -> None:
        self.watched.clear()


class Watched:
    """A watch over addresses that are answered as the test says."""

    def __init__(self, answers: dict[int, Server]) -> None:
        self.answers = answers
        self.ledger = Ledger(0)
        self.books = Books(self.ledger)
        self.now_ns = NS_PER_SECOND
        self.activity = Idle(lambda: self.now_ns)
        self.watch = ServerWatch(self.books, self.activity, lambda _, port: self.answers[port], lambda: self.now_ns)

    def caution(self, port: int) -> str | None:
        """Why bills of calls to this port are degraded, after it was looked up."""
        name = self.watch.key("localhost", port)
        self.watch.sample()
        name = self.watch.key("localhost", port)
        self.books.settle()
        return self.ledger.servers[name][1]


def test_bills_say_so_when_nothing_listens_where_calls_are_answered() -> None:
    """The work may be another machine's."""
    assert Watched({80: NOBODY}).caution(80) == "not-listening"


@pytest.mark.parametrize(
    ("server", "said"),
    [
        (replace(NOBODY, is_named=True), ("WARNING", "The server named for localhost:80: Nothing listens.")),
        (NOBODY, ("INFO", "Nothing listens.")),
    ],
)
def test_log_warns_of_a_server_that_the_user_named_and_that_is_not_there(
    caplog: pytest.LogCaptureFixture, server: Server, said: tuple[str, str]
) -> None:
    """Once, when it is called; what nobody named is told to who looks for it."""
    caplog.set_level("INFO", "otel_llm_energy")
    watched = Watched({80: server})
    watched.caution(80)
    watched.caution(80)
    assert [(each.levelname, each.getMessage()) for each in caplog.records] == [said]


def test_nothing_is_said_of_a_server_that_is_a_process_of_this_machine() -> None:
    """Nor of one that is only hidden: it is here."""
    hidden = Server("local:localhost:81", "localhost:81", "local", reason="hidden")
    watched = Watched({80: OLLAMA, 81: hidden})
    assert not watched.caution(80)
    assert not watched.caution(81)


def test_sample_does_not_wait_for_itself_when_a_collection_within_it_asks_for_one() -> None:
    """It may end a stream of a model in this process: what is measured around that goes on, and looks servers up."""
    inner: list[bool] = []

    def resolve(host: str, port: int) -> Server:
        if not inner:
            watch.key(*this_process())
            inner.append(watch.sample())
        return OLLAMA

    watch = ServerWatch(Books(Ledger(0)), Idle(), resolve, lambda: NS_PER_SECOND)
    watch.key("localhost", 80)
    thread = threading.Thread(target=watch.sample, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    assert inner == [False]
    assert not watch.unresolved


def test_server_that_is_looked_out_for_is_known_before_its_first_call() -> None:
    """Its idleness before the call tells what the call adds."""
    watched = Watched({80: OLLAMA})
    watched.watch.look_out_for("localhost", 80)
    watched.watch.find_those_looked_out_for()
    watched.watch.sample()
    assert watched.watch.found() == {"localhost:80": OLLAMA}


@pytest.mark.parametrize(
    ("name", "slots", "known", "asked"),
    [
        ("llama-server", None, 4, [("localhost", 80)]),
        ("llama-server", 2, 2, []),  # its command line says so
        ("my-app", None, None, []),  # asks for nothing that it did not expect
    ],
)
def test_llama_cpp_is_asked_for_its_slots_when_nothing_else_tells_them(
    name: str, slots: int | None, known: int | None, asked: list[tuple[str, int]]
) -> None:
    """Off the path of readings: calls at work at once would count as a queue until they were seen to overlap."""
    requests: list[tuple[str, int]] = []

    def four(host: str, port: int) -> int:
        requests.append((host, port))
        return 4

    server = Server("pid:7:1", name, "local", pid=7, start_ticks=1, slots=slots)
    ledger = Ledger(0)
    books = Books(ledger)
    watch = ServerWatch(books, Idle(), lambda *_: server, lambda: NS_PER_SECOND, four)
    key = watch.key("localhost", 80)
    watch.sample()
    assert not requests
    watch.learn_names()
    watch.learn_names()
    books.settle()
    assert (ledger.servers[key][0], requests) == (known, asked)


class LoadingServers:
    """Servers of llama.cpp, by port, that load their models for as long as each has an answer of ``None`` left."""

    def __init__(self, answers: dict[int, list[int | None]]) -> None:
        self.answers = answers
        self.ledger = Ledger(0)
        self.books = Books(self.ledger)
        self.now_ns = NS_PER_SECOND
        self.asked: list[tuple[float, int]] = []  # after how many seconds, and at which port
        self.watch = ServerWatch(
            self.books, Idle(), lambda _, port: replace(LLAMA, id=f"pid:{port}:1"), lambda: self.now_ns, self._slots
        )

    def _slots(self, host: str, port: int) -> int:
        self.asked.append((self.now_ns / NS_PER_SECOND - 1, port))
        slots = self.answers[port].pop(0)
        if slots is None:
            raise LoadingError
        return slots

    def find(self, port: int) -> str:
        """It is called for the first time; its name."""
        name = self.watch.key("localhost", port)
        self.watch.sample()
        self.watch.learn_names()
        return name

    def wait(self, seconds: float) -> None:
        self.now_ns += int(seconds * NS_PER_SECOND)
        self.watch.learn_names()


def test_llama_cpp_is_asked_for_its_slots_until_it_has_loaded_its_model() -> None:
    """An app that is started beside its server finds it while it loads; the longer that takes, the less often."""
    loading = LoadingServers({80: [*[None] * 5, 4]})
    name = loading.find(80)
    waits_seconds = []
    while (seconds := loading.watch.ask_again_seconds) is not None:
        waits_seconds.append(seconds)
        loading.wait(seconds)
    loading.books.settle()
    assert waits_seconds == [5.0, 10.0, 20.0, 40.0, 40.0]
    assert (loading.ledger.servers[name][0], loading.answers) == (4, {80: []})


def test_server_that_begins_to_load_is_not_asked_later_when_another_has_loaded_for_long() -> None:
    """Its slots would be unknown for 40 s, though it has long loaded; nor is the other asked more often for it."""
    loading = LoadingServers({80: [None] * 9, 81: [None, None, 2]})
    loading.find(80)
    for seconds in (5, 10, 20):
        loading.wait(seconds)
    loading.asked.clear()
    loading.find(81)
    assert loading.watch.ask_again_seconds == 5.0
    for seconds in (5, 10, 25):
        loading.wait(seconds)
    assert loading.asked == [(35.0, 81), (40.0, 81), (50.0, 81), (75.0, 80)]


@pytest.mark.parametrize("now", [NOBODY, NGINX, BEHIND_NGINX])
def test_nothing_is_said_of_a_server_that_is_looked_out_for_and_not_certain(now: Server) -> None:
    """It is found at its first call, as any other: it may be started until then, or be another behind the relay."""
    watched = Watched({80: now})
    watched.watch.look_out_for("localhost", 80)
    watched.watch.find_those_looked_out_for()
    watched.watch.sample()
    assert watched.watch.found() == {}
    watched.answers[80] = OLLAMA
    assert not watched.caution(80)
    assert watched.watch.found() == {"localhost:80": OLLAMA}


def test_bills_say_relay_when_the_server_was_only_seen_behind_one() -> None:
    """Also where it was known by an address of its own before: calls of both share its work."""
    watched = Watched({11434: OLLAMA, 80: BEHIND_NGINX})
    assert not watched.caution(11434)
    assert watched.caution(80) == "relay"
    assert watched.watch.key("localhost", 80) == watched.watch.key("localhost", 11434)


class Restarted(Watched):
    """A server at port 11434, which came to be behind port 80, too, after that was called, and is started anew."""

    def __init__(self) -> None:
        super().__init__({80: NOBODY, 11434: OLLAMA})
        self.caution(80)
        self.caution(11434)
        self.books.open(Claim(INVALID_SPAN_CONTEXT), "localhost:80", "", reports=False)
        self.answers[80] = BEHIND_NGINX
        self.pass_time(10)
        assert self.name(80) == self.name(11434)
        self.server = self.answers[11434] = replace(OLLAMA, id="pid:8:1", pid=8)

    def pass_time(self, seconds: int) -> None:
        for _ in range(seconds):
            self.now_ns += NS_PER_SECOND
            self.watch.sample()

    def name(self, port: int) -> str:
        return self.watch.key("localhost", port)


def test_server_is_found_by_both_its_addresses_when_it_was_started_anew() -> None:
    """Also where the one that was called first had become another name of the second."""
    watched = Restarted()
    watched.answers[80] = replace(BEHIND_NGINX, id="pid:8:1", pid=8)
    watched.pass_time(20)
    assert watched.name(80) == watched.name(11434)
    assert watched.watch.found()[watched.name(80)] == watched.server


def test_address_is_one_of_its_own_again_when_it_leads_to_the_other_server_no_more() -> None:
    """Its calls are not that server's."""
    watched = Restarted()
    watched.answers[80] = LLAMA
    watched.pass_time(20)
    assert watched.watch.found()[watched.name(80)] == LLAMA
    assert watched.watch.found()[watched.name(11434)] == watched.server


def test_learned_names_follow_an_address_that_becomes_another_name_of_a_server() -> None:
    """Nobody looks them up by themselves."""
    watched = Watched({80: OLLAMA, 81: LLAMA})
    names = {80: watched.watch.key("127.0.0.1", 80), 81: watched.watch.key("127.0.0.1", 81)}
    watched.watch.sample()
    watched.watch.learn_names()
    watched.answers[81] = OLLAMA
    watched.books.open(Claim(INVALID_SPAN_CONTEXT), names[81], "", reports=False)
    for _ in range(20):
        watched.now_ns += NS_PER_SECOND
        watched.watch.sample()
    assert watched.watch.key("127.0.0.1", 81) == watched.watch.key("localhost", 81) == names[80]


def test_caution_is_taken_back_when_the_server_is_there_at_last() -> None:
    """It was looked up while it was being started."""
    watched = Watched({80: NOBODY})
    assert watched.caution(80) == "not-listening"
    watched.answers[80] = OLLAMA
    watched.now_ns += 10 * NS_PER_SECOND
    watched.books.open(Claim(INVALID_SPAN_CONTEXT), "localhost:80", "", reports=False)
    watched.watch.sample()  # only while calls are open is one that is gone looked up again
    assert not watched.caution(80)


def test_who_took_over_the_port_is_found_when_the_server_lives_on_without_it() -> None:
    """It does nothing while calls are answered."""
    watched = Watched({80: OLLAMA})
    assert not watched.caution(80)
    other = Server("pid:8:1", "vllm", "local", pid=8, start_ticks=1)
    watched.answers[80] = other
    watched.books.open(Claim(INVALID_SPAN_CONTEXT), "localhost:80", "", reports=False)
    for _ in range(12):
        watched.now_ns += NS_PER_SECOND
        watched.watch.sample()
    assert watched.watch.found() == {"localhost:80": other}


def test_processes_of_apps_are_watched_no_more_when_they_have_ended() -> None:
    """Workers come and go for weeks: each was looked for every two seconds ever after, while there was any call."""
    apps = {pid: Server(f"pid:{pid}:1", "app", "local", pid=pid, start_ticks=1) for pid in (7, 8)}
    watched = Watched(apps.copy())
    host, _ = this_process()
    keys = {pid: watched.watch.key(host, pid) for pid in apps}
    watched.watch.sample()
    assert watched.watch.found() == {keys[7]: apps[7], keys[8]: apps[8]}
    watched.activity.watched[apps[7].id] = replace(apps[7], pid=None)  # its tree has ended
    watched.now_ns += NS_PER_SECOND
    watched.watch.sample()
    assert watched.watch.found() == {keys[8]: apps[8]}
    assert list(watched.activity.watched) == [apps[8].id]
    watched.answers[7] = replace(apps[7], id="pid:7:2", start_ticks=2)  # the number is another one's now
    assert watched.watch.key(host, 7) == keys[7]
    watched.watch.sample()
    assert watched.watch.found() == {keys[8]: apps[8], keys[7]: watched.answers[7]}


def test_server_is_watched_again_when_it_seemed_to_have_ended_and_is_there() -> None:
    """Its process could not be looked into for a moment, as no descriptor was left."""
    watched = Watched({80: OLLAMA})
    assert not watched.caution(80)
    watched.books.open(Claim(INVALID_SPAN_CONTEXT), "localhost:80", "", reports=False)
    watched.activity.watched[OLLAMA.id] = replace(OLLAMA, pid=None)
    for _ in range(5):
        watched.now_ns += NS_PER_SECOND
        watched.watch.sample()
    assert watched.activity.watched == {OLLAMA.id: OLLAMA}


def test_server_that_has_ended_is_not_looked_for_when_it_is_called_no_more() -> None:
    """Each look takes some 10 ms of CPU time, and an app may start a server on a port of its own for each job."""
    looked_for: list[int] = []

    class Answers(dict[int, Server]):
        def __getitem__(self, port: int) -> Server:
            looked_for.append(port)
            return super().__getitem__(port)

    watched = Watched(Answers({80: OLLAMA, 81: LLAMA}))
    for port in (80, 81):
        watched.watch.key("localhost", port)
    watched.watch.sample()
    watched.books.open(Claim(INVALID_SPAN_CONTEXT), "localhost:80", "", reports=False)
    watched.activity.watched[LLAMA.id] = replace(LLAMA, pid=None)
    watched.answers[81] = NOBODY

    def looks_for_the_ended_one(seconds: int) -> int:
        looked_for.clear()
        for _ in range(seconds):
            watched.now_ns += NS_PER_SECOND
            watched.activity.busy_ns += NS_PER_SECOND
            watched.watch.key("localhost", 80)
            watched.watch.sample()
        return looked_for.count(81)

    assert looks_for_the_ended_one(10) > 1
    looks_for_the_ended_one(60)
    assert looks_for_the_ended_one(60) == 0
    watched.watch.key("localhost", 81)
    assert looks_for_the_ended_one(10) > 1


def test_server_is_not_looked_up_again_while_it_works() -> None:
    """That takes some 10 ms of CPU time."""
    watched = Watched({80: OLLAMA})
    assert not watched.caution(80)
    watched.answers[80] = NOBODY
    watched.books.open(Claim(INVALID_SPAN_CONTEXT), "localhost:80", "", reports=False)
    for _ in range(12):
        watched.now_ns += NS_PER_SECOND
        watched.activity.busy_ns += NS_PER_SECOND // 4
        watched.watch.sample()
    assert watched.watch.found() == {"localhost:80": OLLAMA}


class Sampled:
    """A ledger; the samples that it is given."""

    def __init__(self) -> None:
        self.samples: list[tuple[ActivitySample, bool]] = []
        self._ledger = Ledger(0)

    def sample(self, sample: ActivitySample, *, final: bool = False) -> None:
        self.samples.append((sample, final))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)


class Sums(Idle):
    """What each server has used since it was started, and had a moment before it was found."""

    by_server_ns: Mapping[str, int]

    def sample(self) -> ActivitySample:
        sample = super().sample()
        return replace(sample, by_server_ns={name: self.by_server_ns[name] for name in self.watched})

    def snapshot(self) -> Callable[[], ActivitySample]:
        watched = self.sample().by_server_ns
        return lambda: replace(self.sample(), by_server_ns={**watched, **self.sample().by_server_ns})


def test_who_took_over_the_port_has_not_done_just_now_what_it_did_since_it_was_started() -> None:
    """The sum under the server's name goes on where the former process's ended."""
    now_ns, ledger, other = NS_PER_SECOND, Sampled(), Server("pid:8:1", "vllm", "local", pid=8, start_ticks=1)
    answers, books, activity = [OLLAMA], Books(ledger), Sums(lambda: now_ns)
    activity.by_server_ns = {OLLAMA.id: 7, other.id: 500 * NS_PER_SECOND}
    watch = ServerWatch(books, activity, lambda *_: answers[-1], lambda: now_ns)
    watch.key("localhost", 80)
    books.open(Claim(INVALID_SPAN_CONTEXT), "localhost:80", "", reports=False)
    for _ in range(15):
        now_ns += NS_PER_SECOND
        watch.sample()
        answers.append(other)
    activity.by_server_ns = {other.id: 500 * NS_PER_SECOND + 3}
    now_ns += NS_PER_SECOND
    watch.sample()
    books.settle()
    assert watch.found() == {"localhost:80": other}
    sums_ns = [sample.by_server_ns["localhost:80"] for sample, _ in ledger.samples]
    assert (set(sums_ns[:-1]), sums_ns[-1]) == ({7}, 10)


def test_next_sample_is_taken_at_once_for_who_asked_while_the_last_one_was_taken() -> None:
    """That one may be of an instant before: a flush would wait for the regular one."""
    sampled_ns, now_ns = list[int](), NS_PER_SECOND

    class Asking(Idle):
        def sample(self) -> ActivitySample:
            sampled_ns.append(now_ns)
            watch.final = len(sampled_ns) == 1
            return super().sample()

    watch = ServerWatch(Books(Ledger(0)), Asking(), lambda *_: OLLAMA, lambda: now_ns)
    for _ in range(3):
        watch.sample()
        now_ns += 1
    assert sampled_ns == [NS_PER_SECOND, NS_PER_SECOND + 1]


def test_sample_that_somebody_asked_for_is_tried_again_when_it_could_not_be_taken() -> None:
    """The kernel's figures could not be read just then."""
    taken = list[ActivitySample | None]()

    class FailingOnce(Idle):
        def sample(self) -> ActivitySample | None:
            taken.append(super().sample() if taken else None)
            return taken[-1]

    watch = ServerWatch(Books(Ledger(0)), FailingOnce(), lambda *_: OLLAMA, lambda: NS_PER_SECOND)
    watch.final = True
    for _ in range(3):
        watch.sample()
    assert [each is not None for each in taken] == [False, True]


class Snapshots(Idle):
    """Knows what each server had done a moment before it was found."""

    def snapshot(self) -> Callable[[], ActivitySample]:
        return lambda: replace(self.sample(), at_ns=0)


def test_servers_part_is_known_from_the_start_of_the_look_up_when_that_takes_long() -> None:
    """And that instant ends a cell, however short: the first call to the server is under way."""
    ledger = Sampled()
    books = Books(ledger)
    watch = ServerWatch(books, Snapshots(), lambda *_: OLLAMA, lambda: NS_PER_SECOND)
    watch.key("localhost", 11434)
    watch.sample()
    books.settle()
    assert [(sample.at_ns, final) for sample, final in ledger.samples] == [(0, True), (1, False)]
    assert [sample.by_server_ns for sample, _ in ledger.samples] == [{"localhost:11434": 0}] * 2

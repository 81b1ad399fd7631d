"""Where a process sits at the board: when taking its place fails, and when another one is there or was."""

from __future__ import annotations

import itertools
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from otel_llm_energy import troubles
from otel_llm_energy.host import link, turns
from otel_llm_energy.host.folder import Folder
from otel_llm_energy.host.journal import Journal
from otel_llm_energy.host.remote import RemoteLedger
from otel_llm_energy.host.shared import SharedLedger
from otel_llm_energy.host.turns import succeed
from otel_llm_energy.host.wire import State
from otel_llm_energy.ledger.ledger import Ledger
from otel_llm_energy.quantities import NS_PER_SECOND
from otel_llm_energy.syscalls import monotonic_ns
from otel_llm_energy.tracing import handover, holdership, membership
from otel_llm_energy.tracing import seat as seats
from otel_llm_energy.tracing.accounts import Accounts
from otel_llm_energy.tracing.books import Books
from otel_llm_energy.tracing.seat import Seat
from otel_llm_energy.tracing.sharing import Rules
from tests.support.waiting import until
from tests.tracing.children import run_child

PATIENCE_SECONDS = 3.0  # less than a holder that does not answer is waited for


class BooksThatFailOnce(Books):
    """Their first change of ledger raises, as where a journal cannot be read."""

    failed = False

    def change_ledger(self, change: Callable[[Accounts], Accounts]) -> None:
        if not self.failed:
            self.failed = True
            raise OSError("Input/output error")
        super().change_ledger(change)


class Meters:
    """Metering that only says who reads, from when on, and that a second is between two readings."""

    def __init__(self, books: Books) -> None:
        self.books = books
        self.leads = self.follows = False
        self.hastened = 0
        self.not_before_ns: int | None = None

    def lead(self, not_before_ns: int = 0) -> None:
        self.leads = True
        self.not_before_ns = not_before_ns

    def rest(self) -> None:
        self.leads = False

    def follow(self, state: State) -> None:
        self.follows = True

    def state(self) -> State:
        return State((), (), None, 1.0, 1.0)

    def server_key(self, address: str) -> str:
        return address

    def hasten(self) -> None:
        self.hastened += 1

    def wake(self) -> None: ...


def rules_in(folder: Path) -> Rules:
    """Of a board below this folder."""
    return Rules(folder / "board", "local", "0.1.0", "same")


def test_board_is_held_at_the_next_try_when_the_first_change_of_ledger_fails(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The first try lets go of its turn and its socket: else the process would wait for itself to answer."""
    meters = Meters(BooksThatFailOnce(Ledger(0)))
    rules = rules_in(tmp_path)
    seat = Seat(rules, meters, Ledger, settle=lambda: None, records=lambda: True)
    seat.start()
    try:
        deadline_seconds = time.monotonic() + PATIENCE_SECONDS
        while not meters.leads and time.monotonic() < deadline_seconds:
            time.sleep(0.01)
        assert meters.leads
        assert seat.status.role == "holder"
    finally:
        seat.stop()
    assert "Sharing the metering failed and is tried again." in caplog.text


def test_calls_are_billed_by_another_process_that_holds_the_board_when_the_first_try_to_hold_it_fails(
    tmp_path: Path,
) -> None:
    """It takes the board before the next try: this process is its member, and has its calls in no ledger of its own."""
    rules, other_meters, meters = rules_in(tmp_path), Meters(Books(Ledger(0))), Meters(BooksThatFailOnce(Ledger(0)))
    other = Seat(rules, other_meters, Ledger, settle=lambda: None, records=lambda: True)
    seat = Seat(rules, meters, Ledger, settle=lambda: None, records=lambda: True)

    class Other(logging.Handler):
        """Is there as soon as the first try has failed."""

        def emit(self, record: logging.LogRecord) -> None:
            other.start()

    logger, handler = logging.getLogger(Seat.__module__), Other()
    logger.addHandler(handler)
    try:
        seat.start()
        deadline_seconds = time.monotonic() + PATIENCE_SECONDS
        while seat.status.holder_pid is None and time.monotonic() < deadline_seconds:
            time.sleep(0.01)
        assert (seat.status.role, seat.status.holder_pid) == ("member", os.getpid())
        assert isinstance(meters.books.ledger, RemoteLedger)
    finally:
        logger.removeHandler(handler)
        seat.stop()
        other.stop()


class RulesOfProtocol1(Rules):
    """In which work of a process itself was named without its PID namespace; the package's version was the same."""

    @property
    def protocol(self) -> str:
        return f"1 {self.version}"


def test_process_that_names_its_own_work_otherwise_works_alone(tmp_path: Path) -> None:
    """Who reads the meters would look in vain for the other's process, and bill its work whatever nobody else did."""
    rules = rules_in(tmp_path)
    before = RulesOfProtocol1(rules.folder, rules.board, rules.version, rules.settings)
    seats = [Seat(each, Meters(Books(Ledger(0))), Ledger, lambda: None, lambda: True) for each in (rules, before)]
    try:
        for seat in seats:
            seat.start()
        deadline_seconds = time.monotonic() + PATIENCE_SECONDS
        while seats[1].status.role != "alone" and time.monotonic() < deadline_seconds:
            time.sleep(0.01)
        assert [seat.status.role for seat in seats] == ["holder", "alone"]
        assert "version" in seats[1].status.message
    finally:
        for seat in reversed(seats):
            seat.stop()


@contextmanager
def seated(rules: Rules, meters: Meters, *, records: bool = True) -> Iterator[Seat]:
    """A seat, as one process has it; here several may be of one process."""
    seat = Seat(rules, meters, Ledger, settle=lambda: None, records=lambda: records)
    seat.start()
    try:
        yield seat
    finally:
        seat.stop()


def test_next_holder_waits_as_long_as_the_meter_needs_between_two_readings(tmp_path: Path) -> None:
    """An exporter that is asked too soon again answers with the reading before; the pause is told to each member."""
    rules, meters = rules_in(tmp_path), Meters(Books(Ledger(0)))
    first = Seat(rules, Meters(Books(Ledger(0))), Ledger, settle=lambda: None, records=lambda: True)
    first.start()
    with seated(rules, meters) as second:
        until(lambda: meters.follows)
        assert second.status.role == "member"
        assert meters.books.reason is None  # its calls are metered, though not by itself
        first.stop()
        until(lambda: meters.leads)
        assert meters.not_before_ns == NS_PER_SECOND


def test_seat_that_is_stopped_just_as_it_becomes_a_member_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever stops it may look for a membership before there is one, and would wait in vain for its end."""
    served: list[Seat] = []

    class JustBefore(membership.Membership):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            connecting.set()
            assert second._stopping.wait(20)

        def serve(self) -> None:
            served.append(second)

    connecting = threading.Event()
    rules = rules_in(tmp_path)
    with seated(rules, Meters(Books(Ledger(0)))):
        monkeypatch.setattr(seats, "Membership", JustBefore)
        second = Seat(rules, Meters(Books(Ledger(0))), Ledger, settle=lambda: None, records=lambda: True)
        second.start()
        assert connecting.wait(20)
        second.stop()
        second._thread.join(20)
    assert not served


class MetersThatFailOnce(Meters):
    """The first time no thread can be started that reads them."""

    failed = False

    def lead(self, not_before_ns: int = 0) -> None:
        if not self.failed:
            self.failed = True
            raise RuntimeError("can't start new thread")
        super().lead(not_before_ns)


@pytest.mark.parametrize("role", ["holder", "alone"])
def test_meters_are_read_at_the_next_try_when_no_thread_can_be_started_as_the_place_changes(
    role: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit on processes was reached just then; else nobody would read them for all, or for the one that is alone."""
    monkeypatch.setattr(seats, "PATIENCE_SECONDS", 0.05)
    rules, meters = rules_in(tmp_path), MetersThatFailOnce(Books(Ledger(0)))
    first = Seat(rules, Meters(Books(Ledger(0))), Ledger, settle=lambda: None, records=lambda: True)
    first.start()
    with seated(rules if role == "holder" else replace(rules, settings="other"), meters) as second:
        if role == "holder":
            until(lambda: meters.follows)
            first.stop()
        until(lambda: meters.leads)
        assert (second.status.role, second.leads) == (role, True)
    first.stop()


@pytest.mark.parametrize("listens", [True, False])
def test_board_is_taken_when_its_holder_has_not_answered_for_long(
    listens: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is stopped, or was before it could listen; one that is just starting has some seconds to do so."""
    patience_seconds = 0.2
    for module in (seats, link):
        monkeypatch.setattr(module, "PATIENCE_SECONDS", patience_seconds)
    monkeypatch.setattr(link, "_PING_SECONDS", 0.01)
    rules, meters = rules_in(tmp_path), Meters(Books(Ledger(0)))
    folder = Folder(rules.folder)
    turn = succeed(folder, rules.board)
    assert turn is not None
    listener = socket.socket(socket.AF_UNIX)
    if listens:
        listener.bind(folder.socket_path(f"{turn.name}.sock"))
        listener.listen()
    since_seconds = time.monotonic()
    with seated(rules, meters) as seat:
        assert seat.status.role == "member"
        until(lambda: seat.status.role == "holder")
        assert time.monotonic() - since_seconds > patience_seconds
        assert meters.leads
    assert turn.is_over
    assert "does not answer (is it stopped?): this one reads them now." in caplog.text
    turn.end()
    listener.close()
    folder.close()


@pytest.mark.parametrize("member_records", [True, False])
def test_holder_without_metrics_is_relieved_by_a_member_that_has_them(
    member_records: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is metered is recorded then. It stays where it is otherwise, and goes on where it was as a member."""
    monkeypatch.setattr(membership, "_STAYS_AFTER_NS", 0)
    rules, parents, workers = rules_in(tmp_path), Meters(Books(Ledger(0))), Meters(Books(Ledger(0)))
    with seated(rules, parents, records=False) as parent, seated(rules, workers, records=member_records) as worker:
        until(lambda: workers.follows)
        if member_records:
            until(lambda: workers.leads and parents.follows)
        assert (parent.status.role, worker.status.role) == (
            ("member", "holder") if member_records else ("holder", "member")
        )
        assert (parents.leads, workers.leads) == (not member_records, member_records)


def test_member_holds_the_board_when_the_holder_resigns(tmp_path: Path) -> None:
    """By then it has given back the board, and it goes on as a member."""
    rules, holders, members = rules_in(tmp_path), Meters(Books(Ledger(0))), Meters(Books(Ledger(0)))
    with seated(rules, holders) as holder, seated(rules, members):
        until(lambda: members.follows)
        holders.books.settle()  # which notes that it has come
        holder.resign()
        assert holder.status.role == "member"
        assert not holders.leads
        until(lambda: members.leads and holders.follows)


def test_holder_goes_on_when_it_resigns_and_is_alone(tmp_path: Path) -> None:
    """Its own calls of the last moment are measured."""
    meters = Meters(Books(Ledger(0)))
    with seated(rules_in(tmp_path), meters) as holder:
        holder.resign()
        assert holder.status.role == "holder"
        assert meters.leads


def test_board_is_left_to_others_when_a_member_has_resigned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it would meter is in no metric any more."""
    rules = rules_in(tmp_path)
    holders, members, others = (Meters(Books(Ledger(0))) for _ in range(3))
    tries: list[int] = []

    def newest(folder: Folder, board: str) -> int:
        tries.append(turns.newest(folder, board))
        return tries[-1]

    with seated(rules, holders) as holder, seated(rules, members) as member:
        until(lambda: members.follows)
        member.resign()
        holder.stop()
        monkeypatch.setattr(seats, "newest", newest)
        until(lambda: len(tries) > 2)
        assert not members.leads
        with seated(rules, others):
            until(lambda: member.status.holder_pid is not None)
            assert others.leads


def test_holder_reads_now_when_a_member_cannot_wait(tmp_path: Path) -> None:
    """And the member's books are settled, to have said by then what is to be settled."""
    rules, holders, members = rules_in(tmp_path), Meters(Books(Ledger(0))), Meters(Books(Ledger(0)))
    settled: list[str] = []
    with seated(rules, holders):
        member = Seat(rules, members, Ledger, settle=lambda: settled.append("settled"), records=lambda: True)
        member.start()
        until(lambda: members.follows)
        settled.clear()
        member.hasten()
        assert settled[:1] == ["settled"]
        until(lambda: holders.hastened == 1)
        member.stop()
    assert members.hastened == 0


@pytest.mark.parametrize("calls_servers", [True, False])
def test_stranger_degrades_the_bills_only_while_it_is_there_and_calls(tmp_path: Path, calls_servers: bool) -> None:
    """The doctor of another version only looks: it sees why it is refused, and the app goes on as if it were not."""
    rules = rules_in(tmp_path)
    meters, other = Meters(Books(Ledger(0))), Meters(Books(Ledger(0)))
    with seated(rules, meters) as holder:
        with seated(replace(rules, settings="other", calls_servers=calls_servers), other) as stranger:
            until(lambda: stranger.status.role == "alone")
            assert other.leads
            assert other.books.caution == "board-mismatch"
            assert "has other options of metering" in stranger.status.message
            until(lambda: meters.books.caution == ("board-mismatch" if calls_servers else None))
            assert bool(holder.status.message) is calls_servers
        until(lambda: meters.books.caution is None)
        assert holder.status.message == ""


@pytest.fixture
def numbered_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time that a process says its number it is another one, as in a pool; and it tries again at once."""
    numbers = SimpleNamespace(getpid=partial(next, itertools.count(1000)))
    for module in (holdership, membership):
        monkeypatch.setattr(module, "os", numbers)
    monkeypatch.setattr(seats, "_ALONE_SECONDS", 0.01)
    monkeypatch.setattr(troubles, "_PERIOD_NS", 0)


def until_refused_often(stranger: Seat) -> None:
    """By holders, and as processes, of several numbers."""
    messages: set[str] = set()

    def often() -> bool:
        messages.add(stranger.status.message)
        return len(messages) > 5

    until(often)


@pytest.mark.usefixtures("numbered_anew")
def test_log_of_the_holder_names_each_other_setting_once_when_processes_come_and_go(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each worker of a pool would be news, and each one that takes its place; one of the doctor's concerns nobody."""
    rules = rules_in(tmp_path)
    others = [replace(rules, settings="other"), replace(rules, settings="third")]
    with seated(rules, Meters(Books(Ledger(0)))):
        for each in [replace(rules, settings="doctor's", calls_servers=False), *others, others[0]]:
            with seated(each, Meters(Books(Ledger(0)))) as stranger:
                until_refused_often(stranger)
    assert sum("neither sees the other's calls" in message for message in caplog.messages) == len(others)


@pytest.mark.usefixtures("numbered_anew")
def test_log_of_who_works_alone_says_why_once_when_other_processes_come_to_read_the_meters(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whichever of a pool that is, what is to be done is the same; the status names the one of now."""
    rules = rules_in(tmp_path)
    with (
        seated(rules, Meters(Books(Ledger(0)))),
        seated(replace(rules, settings="other"), Meters(Books(Ledger(0)))) as stranger,
    ):
        until_refused_often(stranger)
    assert sum("Give all processes of this host the same" in message for message in caplog.messages) == 1


@pytest.mark.usefixtures("numbered_anew")
def test_no_descriptor_is_left_open_when_sharing_is_tried_again_and_again(tmp_path: Path) -> None:
    """A process that is refused tries twice a minute for as long as it lives."""

    def open_ones() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    rules = rules_in(tmp_path)
    with seated(rules, Meters(Books(Ledger(0)))):
        before = open_ones()
        with seated(replace(rules, settings="other"), Meters(Books(Ledger(0)))) as stranger:
            for _ in range(5):
                until_refused_often(stranger)
        until(lambda: open_ones() <= before)


def test_bills_are_whole_again_when_the_board_can_be_used_after_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that worked alone reads the meters for all from then on, and has nothing more to warn of."""
    monkeypatch.setattr(seats, "_ALONE_SECONDS", 0.01)
    rules, meters = rules_in(tmp_path), Meters(Books(Ledger(0)))
    rules.folder.mkdir(mode=0o755)
    with seated(rules, meters) as seat:
        assert (seat.status.role, meters.books.caution) == ("alone", "board-unusable")
        rules.folder.chmod(0o700)
        until(lambda: seat.status.role == "holder")
        assert meters.leads
        assert meters.books.caution is None
        assert seat.status.message == ""


def test_process_that_worked_alone_becomes_a_member_when_the_board_can_be_used_after_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads the meters no more, which another process reads, and its bills say nothing of that time."""
    monkeypatch.setattr(seats, "_ALONE_SECONDS", 0.01)
    rules, holders, meters = rules_in(tmp_path), Meters(Books(Ledger(0))), Meters(Books(Ledger(0)))
    with seated(rules, holders):
        rules.folder.chmod(0o755)
        with seated(rules, meters) as seat:
            assert (seat.status.role, meters.leads, meters.books.caution) == ("alone", True, "board-unusable")
            rules.folder.chmod(0o700)
            until(lambda: meters.follows)
            assert (seat.status.role, seat.status.holder_pid) == ("member", os.getpid())
            assert (meters.leads, meters.books.caution) == (False, None)
    assert holders.leads


def test_board_is_held_when_the_journal_of_the_holder_before_is_broken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever is wrong with it: a line without the values that its kind needs, too. The ledger begins anew."""
    rules = rules_in(tmp_path)
    folder = Folder(rules.folder)
    Journal(folder, "local.1", str(rules), lambda: [("settle",)]).close()
    folder.close()
    meters = Meters(Books(Ledger(0)))
    with seated(rules, meters) as seat:
        assert seat.status.role == "holder"
        assert meters.leads
    assert "The journal of the shared metering makes no sense." in caplog.text


def test_nothing_of_earlier_holders_is_left_when_the_board_is_held(tmp_path: Path) -> None:
    """Else each start of an app would leave its files in a folder that lives for as long as the machine runs."""
    rules = rules_in(tmp_path)
    for _ in range(2):
        with seated(rules, Meters(Books(Ledger(0)))):
            left = sorted(path.name for path in rules.folder.iterdir())
    assert left == ["local.2.lock", "local.2.sock"]


@pytest.mark.parametrize(("age_seconds", "continued"), [(1, True), (3600, False), (-3600, False)])
def test_journal_is_continued_only_when_it_is_of_just_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, age_seconds: int, continued: bool
) -> None:
    """What an app left an hour ago has the idle power and the calls of then; a time to come is another clock's.

    It is not even entered: of two megabytes that held the app up for a second, as it called `instrument`.
    """
    entered: list[int] = []
    enter_all = handover._enter_all
    monkeypatch.setattr(handover, "_enter_all", lambda all_of_it, into: entered.append(1) or enter_all(all_of_it, into))
    rules = rules_in(tmp_path)
    settled_ns = monotonic_ns() - age_seconds * NS_PER_SECOND
    folder = Folder(rules.folder)
    journal = Journal(folder, "local.1", str(rules), lambda: [("start", 0), ("holder", "gone"), ("member", "other")])
    journal.note(("settle", settled_ns))
    journal.write()
    journal.close()
    folder.close()
    meters = Meters(Books(Ledger(0)))
    with seated(rules, meters):
        assert isinstance(meters.books.ledger, SharedLedger) is continued
    assert bool(entered) is continued


def test_board_is_held_when_a_line_of_the_journal_is_nested_deeper_than_can_be_read(tmp_path: Path) -> None:
    """JSON's RecursionError is a RuntimeError, as is what Python raises where a thread cannot be started."""
    rules = rules_in(tmp_path)
    folder = Folder(rules.folder)
    Journal(folder, "local.1", str(rules), list).close()
    folder.close()
    with (rules.folder / "local.1.journal").open("a") as file:
        file.write("[" * 100_000 + "\n")
    meters = Meters(Books(Ledger(0)))
    with seated(rules, meters) as seat:
        assert seat.status.role == "holder"
        assert meters.leads


def test_nothing_is_said_when_what_the_thread_waits_at_is_closed_in_a_forked_child(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where gevent plays threads it lives on there, and what the parent's holds is closed under it."""
    seat = Seat(rules_in(tmp_path), Meters(Books(Ledger(0))), Ledger, settle=lambda: None, records=lambda: True)

    def closed_under_it() -> None:
        seat.forget_in_child()
        raise TypeError("the selector is closed")

    monkeypatch.setattr(seat, "_serve_in_place", closed_under_it)
    monkeypatch.setattr("otel_llm_energy.tracing.seat.rest_for_ever", lambda: sys.exit("rests"))
    with pytest.raises(SystemExit, match="rests"):
        seat._run()
    assert caplog.text == ""


def test_files_of_a_daemon_are_left_alone_when_they_have_the_numbers_of_descriptors_that_it_closed() -> None:
    """Our lines went out on its sockets, and they were closed; and nobody knew of its calls any more."""
    assert run_child("daemons_files_have_the_numbers_of_a_board") == ["True", "b'to the app'"]


@pytest.mark.parametrize("looked_for", ["succeed", "newest"])
def test_board_is_held_when_a_daemon_closes_the_folder_just_as_it_is_looked_at(
    looked_for: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is opened anew at once, and not shared for half a minute because it is no directory."""
    rules, real = rules_in(tmp_path), getattr(seats, looked_for)
    apps_file = tmp_path / "app.log"
    closed: list[int] = []

    def closed_just_then(folder: Folder, board: str) -> Any:
        if not closed:
            closed.append(folder.descriptor)
            with apps_file.open("w") as file:
                os.dup2(file.fileno(), folder.descriptor)
        return real(folder, board)

    meters = Meters(Books(Ledger(0)))
    seat = Seat(rules, meters, Ledger, settle=lambda: None, records=lambda: True)
    first = Seat(rules, Meters(Books(Ledger(0))), Ledger, settle=lambda: None, records=lambda: True)
    first.start()
    if looked_for == "newest":  # to find a holder; the other to take its place
        monkeypatch.setattr(seats, looked_for, closed_just_then)
    seat.start()
    until(lambda: seat.status.holder_pid is not None)
    monkeypatch.setattr(seats, looked_for, closed_just_then)
    first.stop()
    try:
        until(lambda: seat.status.role == "holder")
        assert os.path.samestat(os.fstat(closed[0]), apps_file.stat())
    finally:
        seat.stop()
        os.close(closed[0])
    assert caplog.text == ""

"""One ledger for the calls of several processes, and what the next holder makes of its journal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from otel_llm_energy.host.folder import Folder
from otel_llm_energy.host.journal import Entered, Journal, entered_in, read_journal
from otel_llm_energy.host.register import Call, Register
from otel_llm_energy.host.remote import RemoteLedger
from otel_llm_energy.host.rounds import Rounds
from otel_llm_energy.host.shared import SharedLedger
from otel_llm_energy.host.wire import Billed, Closed, Message, Opened, Until, bill_from_json, channel_to_json
from otel_llm_energy.ledger.bill import Bill, Window
from otel_llm_energy.ledger.ledger import Ledger
from otel_llm_energy.quantities import NS_PER_SECOND, ActivitySample, Channel, IdlePower, Reading

MS = NS_PER_SECOND // 1000
SERVER = "127.0.0.1:8080"
RULES = "1 0.1.0 same"
PACKAGE = Channel("package-0", "cpu", "rapl", idle_watts=20.0)
SAMPLE = {
    "resource": "cpu",
    "total_ns": 800 * MS,
    "capacity": 2,
    "resolution_ns": 0,
    "total_resolution_ns": 0,
    "absent": [],
}


class Board:
    """A holder without calls of its own, and what it tells its members."""

    def __init__(self, members: str) -> None:
        self.now_ns = 0
        self.bills: list[tuple[str, Billed]] = []
        register = Register(Ledger, Ledger(0), 0)
        self.ledger = SharedLedger(register, "holder", Rounds(), self._send, lambda: self.now_ns)
        self.ledger.add_channel(PACKAGE)
        for member in members:
            self.ledger.joined(member, ())

    def _send(self, member: str, message: Message) -> None:
        if isinstance(message, Billed):
            self.bills.append((member, message))

    @property
    def told(self) -> dict[tuple[str, int], str | None]:
        """The reason on the last bill of each call."""
        return {(member, billed.call): billed.bill["reason"] for member, billed in self.bills}

    def says(self, member: str, until_ms: int, *messages: Message) -> None:
        """One member's answer."""
        self.now_ns = until_ms * MS
        for message in (*messages, Until(until_ms * MS)):
            self.ledger.said(member, message)

    def read(self, now_ms: int) -> None:
        """There is a reading of this instant, of a package that draws 100 W."""
        self.now_ns = now_ms * MS
        self.ledger.read(Reading("package-0", now_ms * 100_000, self.now_ns, self.now_ns))

    def settle(self, now_ms: int) -> None:
        """The same, and it is settled."""
        self.read(now_ms)
        self.ledger.settle(self.now_ns)


def opened(call: int, at_ms: int) -> Opened:
    """A call to a server that reports timings."""
    return Opened(call, SERVER, "chat", True, at_ms * MS)


def closed(call: int, start_ms: int, end_ms: int) -> Closed:
    """It was at work for all this time."""
    return Closed(call, [Window(start_ms * MS, end_ms * MS, "decode")], True)


def test_calls_are_waited_for_when_a_later_one_of_another_process_was_entered_first() -> None:
    """Whoever answers first: nothing is settled past the oldest open call of all, and no bill is late."""
    board = Board("ab")
    for now_ms in (0, 150):
        board.settle(now_ms)
    for member, at_ms in (("b", 190), ("a", 100)):
        board.says(member, 200, opened(1, at_ms))
    board.settle(200)
    board.says("a", 400, closed(1, 150, 290))
    board.says("b", 400, closed(1, 290, 400))
    for now_ms in (290, 400):
        board.settle(now_ms)
    assert board.told == {("a", 1): None, ("b", 1): None}


def test_new_members_are_waited_for_as_their_calls_began_before_they_were_heard_of() -> None:
    board = Board("")
    for now_ms in (0, 100):
        board.settle(now_ms)
    board.read(250)
    board.now_ns = 300 * MS
    board.ledger.joined("a", [1])
    board.settle(400)  # before it has said anything
    board.says("a", 500, opened(1, 200), closed(1, 200, 500))
    board.settle(500)
    assert board.told == {("a", 1): None}


def test_first_bill_stands_when_a_call_is_said_again_just_as_it_is_billed() -> None:
    """A new holder knows calls from the journal and may bill one before its member, that has come back, says it again.

    What is said again then comes late, for nothing that is not billed already.
    """
    member = RemoteLedger(clock_ns=lambda: 0)
    call = member.open(SERVER, 100 * MS, "chat")
    member.close(call, [Window(100 * MS, 200 * MS, "decode")], reported=True)
    board = Board("a")
    board.settle(0)
    board.says("a", 400, *member.messages_of(1))
    for now_ms in (200, 400):
        board.settle(now_ms)
    billed_nj = board.ledger.balance()[PACKAGE.id].billed_nj
    board.says("a", 600, *member.messages_of(1))
    board.settle(600)
    first, second = (billed for _, billed in board.bills)
    assert second.bill["reason"] == "late"
    assert board.ledger.balance()[PACKAGE.id].billed_nj == billed_nj
    for each in (first, second):
        member.billed(each.call, bill_from_json(each.bill))
    assert member.settle(600 * MS) == [call]
    assert call.bill == bill_from_json(first.bill)
    assert call.bill.energy_nj == billed_nj > 0


class Turns:
    """One holder after the other, each of which is killed as soon as it has entered something."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._count = 0

    def next_one_enters(self, *entered: Entered) -> dict[Call, Bill]:
        """The bills that come of it."""
        self._count += 1
        name, earlier = f"local.{self._count}", f"local.{self._count - 1}"
        register = Register(Ledger, Ledger(0), 0)
        written = read_journal(self._folder, earlier) if self._count > 1 else None
        for each in [] if written is None else entered_in(written, RULES):
            register.enter(each)
        journal = Journal(self._folder, name, RULES, register.snapshot, earlier=written)
        bills: dict[Call, Bill] = {}
        for each in entered:
            bills.update(register.enter(each))
            journal.note(each)
        journal.write()
        journal.close()
        return bills


def read(at_ms: int) -> Entered:
    """A reading of a package that draws 100 W."""
    return ("read", PACKAGE.id, at_ms * 100_000, at_ms * MS, at_ms * MS)


def test_call_is_billed_in_full_when_several_holders_die_one_after_the_other(tmp_path: Path) -> None:
    """Readings and windows from before the last two turns are not forgotten while a call is not settled."""
    turns = Turns(Folder(tmp_path / "board"))
    turns.next_one_enters(("start", 0), ("channel", channel_to_json(PACKAGE), []), ("server", SERVER, None, True, None))
    turns.next_one_enters(read(0), ("open", "a", 1, SERVER, 0, "chat"), ("open", "b", 1, SERVER, 0, "chat"))
    turns.next_one_enters(read(100), ("close", "a", 1, [[0, 100 * MS, "decode"]], True), ("settle", 100 * MS))
    for at_ms in (200, 300, 400):
        assert turns.next_one_enters(read(at_ms), ("settle", at_ms * MS)) == {}
    closed_b = ("close", "b", 1, [[100 * MS, 500 * MS, "decode"]], True)
    bills = turns.next_one_enters(read(500), closed_b, ("settle", 500 * MS))
    assert {call: (bill.reason, bill.coverage) for call, bill in bills.items()} == {
        ("a", 1): (None, 1.0),
        ("b", 1): (None, 1.0),
    }
    assert [bill.energy_nj for bill in bills.values()] == [10_000_000_000, 40_000_000_000]


def test_next_holder_knows_the_same_when_the_first_member_came_amid_a_bucket() -> None:
    """The ledger was one process's own until then: its journal begins with the last reading and the last sample."""
    ledger = Ledger(0)
    ledger.add_channel(PACKAGE)
    ledger.add_server(SERVER, reports=True)
    ledger.sample(ActivitySample("cpu", 0, 0, {SERVER: 0}, 2, 0, 0))
    ledger.read(Reading(PACKAGE.id, 0, 0, 0))
    first = Register(Ledger, ledger, 100 * MS)
    first.adopt("first")
    second = Register(Ledger, Ledger(0), 0)
    for each in list(first.snapshot()):
        second.enter(each)
    for register in (first, second):
        register.enter(("open", "a", 1, SERVER, 200 * MS, "chat"))
        register.enter(("close", "a", 1, [[200 * MS, 1000 * MS, "decode"]], True))
        register.enter(("sample", {**SAMPLE, "at_ns": 1000 * MS, "by_server_ns": {SERVER: 600 * MS}}, False))
        register.enter(read(1000))
    bills = [register.enter(("settle", 1000 * MS)) for register in (first, second)]
    assert bills[0] == bills[1]
    assert first.ledger.balance() == second.ledger.balance()
    ((_, bill),) = bills[1]
    assert bill.energy_nj is not None


LEARNS = Channel("package-1", "cpu", "rapl")
MEMORY = Channel("package-0/dram", "memory", "rapl", idle_watts=2.0)
LATER_NS = 10 * NS_PER_SECOND


def entering(*entered: Entered) -> Register:
    """What the next holder makes of a journal: a ledger of now, into which all is entered."""
    register = Register(Ledger, Ledger(LATER_NS), LATER_NS)
    for each in entered:
        register.enter(each)
    return register


def amid_calls() -> Register:
    """A holder's and a member's call are open, another member's is closed, and none is settled."""
    return entering(
        ("start", 50 * MS),
        ("holder", "first"),
        *[("member", member) for member in ("first", "a", "b")],
        *[("channel", channel_to_json(channel), []) for channel in (PACKAGE, MEMORY)],
        ("read", PACKAGE.id, 0, 100 * MS, 100 * MS),
        ("read", MEMORY.id, 0, 99 * MS, 99 * MS),
        ("server", SERVER, 2, None, "relay"),
        ("server", SERVER, None, True, None),
        ("open", "first", 4, SERVER, 110 * MS, "chat"),
        ("open", "a", 1, SERVER, 110 * MS, "chat"),
        ("open", "b", 7, SERVER, 110 * MS, "chat"),
        ("close", "b", 7, [[110 * MS, 200 * MS, "decode"]], True),
    )


def draws(watts: int, at_ms: int) -> list[Entered]:
    """The package's and the memory's readings; since 100 ms they draw so much together, a tenth of it the memory."""
    since_ms = at_ms - 100
    return [
        ("read", PACKAGE.id, 1000 * watts * since_ms * 9 // 10, at_ms * MS, at_ms * MS),
        ("read", MEMORY.id, 1000 * watts * since_ms // 10, at_ms * MS, at_ms * MS),
    ]


def test_next_holder_knows_all_that_the_one_before_knew_when_that_dies_before_anything_is_settled() -> None:
    """Whose ledger it was, who its members are, what is known of the servers, and each call and how it was closed."""
    first = amid_calls()
    second = entering(*first.snapshot())
    assert (second.start_ns, second.holder, second.members) == (50 * MS, "first", {"first", "a", "b"})
    assert second.servers == {SERVER: [2, True, "relay"]}
    assert set(second.calls) == {("first", 4), ("a", 1), ("b", 7)}
    assert second.closed == {("b", 7): ("close", "b", 7, [[110 * MS, 200 * MS, "decode"]], True)}
    assert first.last_read_ns == second.last_read_ns == 100 * MS
    assert list(second.snapshot()) == list(first.snapshot())


@pytest.mark.parametrize("remembered", [[], [IdlePower(19.0, 18.5, 60.0)]])
def test_next_holder_knows_what_the_one_before_knew_of_idle_power_when_that_had_learned_little(
    remembered: list[IdlePower],
) -> None:
    """Nobody may learn it soon: calls may be at work from now on, and other programs may be busy all the time."""
    first = Register(Ledger, Ledger(0), 0)
    first.ledger.add_channel(LEARNS, remembered)
    for at_ms in range(0, 2001, 500):
        first.enter(("read", LEARNS.id, at_ms * 50_000, at_ms * MS, at_ms * MS))
        sample = {**SAMPLE, "at_ns": at_ms * MS, "total_ns": at_ms * MS // 2, "by_server_ns": {}}
        first.enter(("sample", sample, True))
    first.enter(("settle", 2000 * MS))
    second = entering(*json.loads(json.dumps(list(first.snapshot()))))
    known = first.ledger.baselines()[LEARNS.id]
    assert known.origin == ("cached" if remembered else "under-load")
    for register in (first, second):
        register.enter(("read", LEARNS.id, 2500 * 50_000, 2500 * MS, 2500 * MS))
        register.enter(("sample", {**SAMPLE, "at_ns": 2500 * MS, "total_ns": 1250 * MS, "by_server_ns": {}}, True))
        register.enter(("settle", 2500 * MS))
    assert second.ledger.baselines() == first.ledger.baselines()


def test_next_holder_begins_where_the_one_before_has_settled() -> None:
    """What was settled already is settled once; a settling of an earlier time takes nothing back."""
    first = amid_calls()
    for until_ms in (105, 102):
        first.enter(("settle", until_ms * MS))
    assert next(first.snapshot()) == ("start", 105 * MS)
    assert entering(*first.snapshot()).start_ns == 105 * MS


def test_calls_of_the_holder_that_has_died_hold_up_nobody_when_the_next_one_follows() -> None:
    """Nobody will say how they ended. Those of its members stay, who may come back."""
    register = entering(*amid_calls().snapshot())
    shared = SharedLedger(register, "a", Rounds(), lambda member, message: None, lambda: 200 * MS)
    shared.follow_on(200 * MS)
    assert (register.holder, register.members) == ("a", {"a", "b"})
    assert [register.of(member) for member in ("first", "a", "b")] == [[], [("a", 1)], [("b", 7)]]


def test_call_is_billed_in_full_when_the_others_beside_it_are_of_processes_that_have_gone() -> None:
    """An open call would keep it from being settled, and share its joules."""
    register = amid_calls()
    for at_ms in (110, 200, 300):
        for each in draws(100, at_ms):
            register.enter(each)
    assert register.enter(("settle", 300 * MS)) == []
    for each in (("gone", "first"), ("gone", "a")):
        register.enter(each)
    ((call, bill),) = register.enter(("settle", 300 * MS))
    assert (call, bill.energy_nj, bill.reason) == (("b", 7), 9_000_000_000, "relay")
    assert (register.members, register.calls, register.names) == ({"b"}, {}, {})


def test_joules_of_a_call_are_nobodys_when_its_process_has_gone() -> None:
    """Nobody takes its bill: it is to be in no sum of what was billed."""
    register = amid_calls()
    for member in ("b", "a", "first"):
        register.enter(("gone", member))
    for at_ms in (110, 200, 300):
        for each in draws(100, at_ms):
            register.enter(each)
    assert register.enter(("settle", 300 * MS)) == []
    for balance in register.ledger.balance().values():
        assert balance.billed_nj == 0
        assert sum(balance.unattributed_nj.values()) == balance.metered_nj > 0


def test_closed_calls_alone_are_billed_when_a_member_cannot_wait() -> None:
    """For the reason that it gives; one that is open, or billed already, is left out."""
    register = amid_calls()
    register.enter(("open", "b", 8, SERVER, 120 * MS, "chat"))
    ((call, bill),) = register.enter(("force", "b", [7, 8, 9], "max-hold"))
    assert (call, bill.reason) == (("b", 7), "max-hold")
    assert register.of("b") == [("b", 8)]
    assert register.enter(("force", "b", [7], "max-hold")) == []


def test_holders_own_calls_are_the_boards_when_the_first_member_comes() -> None:
    """Open or closed, each has a name from then on, under which it is closed and billed, and written down."""
    ledger = Ledger(0)
    ledger.add_channel(PACKAGE)
    ledger.add_server(SERVER, slots=2, caution="relay")
    for _ in range(2):
        entry = ledger.open(SERVER, 0, "chat")
    ledger.close(entry, [Window(0, 100 * MS, "decode")], reported=False)
    register = Register(Ledger, ledger, 0)
    register.adopt("first")
    assert register.servers == {SERVER: [2, None, "relay"]}
    assert register.of("first") == [("first", 1), ("first", 2)]
    register.enter(read(0))
    second = entering(*register.snapshot())
    for one in (register, second):
        for each in (read(100), ("close", "first", 1, [[0, 100 * MS, "decode"]], False)):
            one.enter(each)
        bills = {call: bill.energy_nj for call, bill in one.enter(("settle", 100 * MS))}
        assert bills == {("first", 1): 5_000_000_000, ("first", 2): 5_000_000_000}


def goes_on(register: Register, from_ms: int, until_ms: int, **busy_ms: int) -> None:
    """The package draws 50 W, and these servers are sampled, which have been busy for so long."""
    sampled = {name: busy * MS for name, busy in busy_ms.items()}
    for at_ms in range(from_ms, until_ms, 500):
        sample = {**SAMPLE, "at_ns": at_ms * MS, "total_ns": at_ms * MS, "by_server_ns": sampled}
        register.enter(("sample", sample, False))
        register.enter(("read", PACKAGE.id, at_ms * 50_000, at_ms * MS, at_ms * MS))
        register.enter(("settle", at_ms * MS))


def test_process_that_has_ended_is_forgotten_and_known_again_when_it_comes_back() -> None:
    """The next holder is told of no server that has no call, though there were thousands."""
    register = entering(("start", 0), ("holder", "first"), ("channel", channel_to_json(PACKAGE), []))
    register.enter(("server", "process", None, None, None))
    register.enter(("open", "first", 1, "process", 500 * MS, ""))
    goes_on(register, 500, 1500, process=100)
    register.enter(("close", "first", 1, [[500 * MS, 1000 * MS, "work"]], False))
    goes_on(register, 1500, 2500, process=100)
    assert set(register.servers) == {"process"}
    goes_on(register, 2500, 8000)
    assert not register.servers
    assert "server" not in [kind for kind, *_ in register.snapshot()]
    register.enter(("open", "first", 2, "process", 8000 * MS, ""))
    goes_on(register, 8000, 9000)
    register.enter(("close", "first", 2, [[8000 * MS, 8500 * MS, "work"]], False))
    goes_on(register, 9000, 12000)
    assert not register.calls

"""The folder in which processes meet, whose turn it is, and what the holder writes down."""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest.mock import MagicMock, Mock

import pytest

from otel_llm_energy.host.folder import BoardError, Folder, default_folder
from otel_llm_energy.host.hub import Hub
from otel_llm_energy.host.journal import Journal, entered_in, newest_journal, read_journal
from otel_llm_energy.host.turns import newest, overtake, succeed
from otel_llm_energy.meters.base import MeterError, Pace
from otel_llm_energy.quantities import Channel, Reading
from otel_llm_energy.settings import settings
from otel_llm_energy.stations import _rules

RULES = "1 0.1.0 same"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    """The user's own."""
    opened = Folder(tmp_path / "board")
    yield opened
    opened.close()


def test_folder_is_the_users_alone_when_it_is_made(tmp_path: Path) -> None:
    """Whatever the umask."""
    with_umask = os.umask(0)
    try:
        Folder(tmp_path / "a" / "board").close()
    finally:
        os.umask(with_umask)
    assert (tmp_path / "a" / "board").stat().st_mode & 0o777 == 0o700


def test_folder_is_in_the_runtime_directory_if_there_is_one(tmp_path: Path) -> None:
    """Else in /tmp, with the user's number."""
    assert default_folder({"XDG_RUNTIME_DIR": str(tmp_path)}) == tmp_path / "otel-llm-energy"
    fallback = Path(f"/tmp/otel-llm-energy-{os.geteuid()}")
    assert default_folder({}) == default_folder({"XDG_RUNTIME_DIR": "/nonexistent"}) == fallback


def test_runtime_directory_is_left_alone_when_it_is_another_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after `su`, which keeps the variable: root's folder there would shut that user out of the own board."""
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    assert default_folder({"XDG_RUNTIME_DIR": str(tmp_path)}) == Path("/tmp/otel-llm-energy-4711")


@pytest.mark.parametrize("error", [PermissionError, OSError(errno.ENAMETOOLONG, "File name too long")])
def test_folder_is_elsewhere_when_the_runtime_directory_cannot_be_looked_at(
    error: OSError, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may lie in a folder that only another user may enter; the app's start must not fail of it."""

    def refused(*_: object, **__: object) -> os.stat_result:
        raise error

    monkeypatch.setattr(Path, "stat", refused)
    assert default_folder({"XDG_RUNTIME_DIR": "/home/other/run"}) == Path(f"/tmp/otel-llm-energy-{os.geteuid()}")


class OwnMeter:
    """A user's, without a representation of its own."""

    name = "own"
    pace = Pace(1.0, 1.0)

    def open(self) -> Sequence[Channel]:
        raise MeterError("meter-not-found", "It is only named.")

    def read(self) -> Sequence[Reading]:
        return []

    def close(self) -> None: ...


def test_processes_agree_when_their_meter_is_the_users_own() -> None:
    """Each has an object of its own, whose standard representation holds its place in memory."""
    ours, theirs = OwnMeter(), OwnMeter()
    assert _rules(settings({}, meters=ours), "local") == _rules(settings({}, meters=[theirs]), "local")
    ours_elsewhere, theirs_elsewhere = (settings({}, servers={"gpu-1": each}) for each in (ours, theirs))
    assert _rules(ours_elsewhere, "gpu") == _rules(theirs_elsewhere, "gpu")
    assert _rules(ours_elsewhere, "gpu") != _rules(settings({}, servers={"gpu-2": theirs}), "gpu")


@pytest.mark.parametrize(
    ("ours", "theirs", "board", "agree"),
    [
        ({"scaphandre_url": "http://localhost:8080/metrics"}, {}, "local", True),
        ({"scaphandre_url": "http://localhost:9090/metrics"}, {}, "local", False),
        ({"scaphandre_url": "http://localhost:9090/metrics", "meters": "rapl"}, {"meters": "rapl"}, "local", True),
        ({"powercap_root": "/counters"}, {}, "local", False),
        ({"powercap_root": "/counters", "meters": "rapl"}, {"meters": "rapl"}, "local", False),
        ({"powercap_root": "/counters", "meters": "scaphandre"}, {"meters": "scaphandre"}, "local", True),
        ({"meters": "rapl"}, {}, "local", False),
        ({"meters": "rapl"}, {}, "gpu", True),
        ({"powercap_root": "/counters"}, {"scaphandre_url": "http://localhost:9090/metrics"}, "gpu", True),
        ({"max_hold": 30}, {}, "local", True),
        ({"max_hold": 0}, {}, "local", False),
        ({"idle_watts": "package-0=18,package-0/dram=2"}, {"idle_watts": "package-0/dram=2,package-0=18"}, "gpu", True),
        ({"idle_watts": 18}, {"idle_watts": 19}, "gpu", False),
        ({"idle": "none"}, {}, "gpu", False),
        ({"detail": "full", "clients": ["openai"], "grid_intensity": 300}, {}, "local", True),
    ],
)
def test_processes_agree_when_their_options_come_to_the_same_for_what_is_read(
    ours: dict[str, object], theirs: dict[str, object], board: str, agree: bool
) -> None:
    """Else both would warn, and degrade each other's bills, for an option that changes no joule at this board."""
    assert (_rules(settings({}, **ours), board).settings == _rules(settings({}, **theirs), board).settings) is agree


def test_folder_is_refused_when_it_is_a_symbolic_link(tmp_path: Path) -> None:
    """Somebody could have put it there for us to follow."""
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "board").symlink_to(tmp_path / "real")
    with pytest.raises(BoardError, match="OTEL_LLM_ENERGY_BOARD") as refusal:
        Folder(tmp_path / "board")
    assert refusal.value.reason == "board-unusable"


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o777])
def test_folder_is_refused_when_it_is_open_to_others(tmp_path: Path, mode: int) -> None:
    """They could read what is called, or put files of theirs into it."""
    (tmp_path / "board").mkdir()
    (tmp_path / "board").chmod(mode)
    with pytest.raises(BoardError, match=f"mode {mode:04o}, not 0700"):
        Folder(tmp_path / "board")


def test_folder_is_refused_when_it_is_another_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another user than this one cannot be had in a test, so this process says it is another."""
    (tmp_path / "board").mkdir(mode=0o700)
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    with pytest.raises(BoardError, match="belongs to user"):
        Folder(tmp_path / "board")


def test_turn_cannot_be_taken_when_its_lock_is_a_symbolic_link(folder: Folder, tmp_path: Path) -> None:
    """What it points to is left alone."""
    (folder.path / "local.1.lock").symlink_to(tmp_path / "victim")
    with pytest.raises(BoardError):
        succeed(folder, "local")
    assert not (tmp_path / "victim").exists()


def test_turn_is_taken_by_one_when_several_want_it(folder: Folder) -> None:
    """The others get none as long as it is held."""
    first = succeed(folder, "local")
    assert first is not None
    assert [succeed(folder, "local") for _ in range(3)] == [None] * 3
    assert not first.is_over
    other = succeed(folder, "another-machine's")
    assert other is not None


def test_next_turn_is_taken_when_the_holder_has_ended(folder: Folder) -> None:
    """Under the next number, and what was left behind is removed."""
    first = succeed(folder, "local")
    assert first is not None
    first.end()
    second = succeed(folder, "local")
    assert second is not None
    assert second.number == first.number + 1
    second.clear_earlier()
    assert folder.names() == [f"{second.name}.lock"]


def test_turn_is_over_when_another_overtakes_its_holder(folder: Folder) -> None:
    """Once only: of two that want to, the second is too late."""
    first = succeed(folder, "local")
    assert first is not None
    second = overtake(folder, "local", first.number)
    assert second is not None
    assert first.is_over
    assert not second.is_over
    assert overtake(folder, "local", first.number) is None
    assert newest(folder, "local") == second.number


def test_turn_is_over_when_its_files_were_removed(folder: Folder) -> None:
    """By a cleaner of /tmp, for instance: another process would take the first turn again."""
    turn = succeed(folder, "local")
    assert turn is not None
    (folder.path / f"{turn.name}.lock").unlink()
    assert turn.is_over


@pytest.mark.parametrize("reused", [False, True])
def test_turn_is_over_when_another_thread_ends_it_meanwhile(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, reused: bool
) -> None:
    """The descriptor of its lock may be another file's by then."""
    turn = succeed(folder, "local")
    assert turn is not None
    others = []

    def has(_: str) -> bool:
        turn.end()
        if reused:
            others.append(os.open(__file__, os.O_RDONLY))
        return False

    monkeypatch.setattr(folder, "has", has)
    try:
        assert turn.is_over
    finally:
        for other in others:
            os.close(other)


def test_nobody_is_let_in_all_the_time_when_no_descriptor_is_left(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who knocks makes the socket ready again at once: between two tries the thread rests."""
    hub = Hub(folder, "local.1", MagicMock(patience_seconds=lambda: None))
    seen: list[str] = []

    def rest(seconds: float) -> None:
        seen.append("rest")
        hub.stop()

    monkeypatch.setattr(time, "sleep", rest)
    with socket.socket(socket.AF_UNIX) as other:
        other.connect(folder.socket_path("local.1.sock"))
        monkeypatch.setattr(socket.socket, "accept", Mock(side_effect=OSError(errno.EMFILE, "Too many open files")))
        hub.serve()
    hub.close()
    assert seen == ["rest"]


def test_members_are_waited_for_as_gevent_does_where_it_has_replaced_the_kernels_way(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is imported before or after us; whoever waited by the kernel's way would stop all its threads."""
    waited: list[int | None] = []

    class Poll:
        def register(self, file: object, events: int) -> None: ...

        def poll(self, millis: int | None) -> list[tuple[int, int]]:
            waited.append(millis)
            hub.stop()
            return []

    monkeypatch.setattr(select, "poll", Poll)
    hub = Hub(folder, "local.1", MagicMock(patience_seconds=lambda: 0.0123))
    hub.serve()
    hub.close()
    assert waited == [13]


def test_journal_says_what_was_entered_when_it_is_read(folder: Folder) -> None:
    """In order: first what was so at its beginning."""
    journal = Journal(folder, "local.1", RULES, lambda: [("start", 5)])
    for number in range(3):
        journal.note(("settle", number))
    journal.write()
    journal.close()
    assert newest_journal(folder, "local") == "local.1"
    assert entered_in(read_journal(folder, "local.1"), RULES) == [
        ("start", 5),
        *[("settle", number) for number in range(3)],
    ]


def test_journal_is_not_continued_when_it_is_of_other_rules_or_another_start_of_the_machine(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other versions share in other ways, and the clock of another start is another clock."""
    Journal(folder, "local.1", RULES, lambda: [("start", 5)]).close()
    assert entered_in(read_journal(folder, "local.1"), "1 0.2.0 same") == []
    monkeypatch.setattr("otel_llm_energy.host.journal.boot_id", lambda: "another")
    assert entered_in(read_journal(folder, "local.1"), RULES) == []


def test_journal_is_read_as_far_as_it_was_written_when_its_writer_was_killed(folder: Folder) -> None:
    """The line that was broken off is left out."""
    Journal(folder, "local.1", RULES, lambda: [("start", 5)]).close()
    with (folder.path / "local.1.journal").open("a") as file:
        file.write('["settle",7]\n["settle",')
    assert entered_in(read_journal(folder, "local.1"), RULES) == [("start", 5), ("settle", 7)]


def test_journal_keeps_the_file_before_when_it_is_long(folder: Folder) -> None:
    """What it says then begins where that file began: as much as the length allows, and no more files than two."""
    journal = Journal(folder, "local.1", RULES, lambda: [("start", 0)], longest_bytes=500)
    for number in range(100):
        journal.note(("settle", number))
        journal.write()
    journal.close()
    said = entered_in(read_journal(folder, "local.1"), RULES)
    assert said[0] == ("start", 0)
    settled = [entered[1] for entered in said[1:]]
    assert settled == list(range(settled[0], 100))
    assert sorted(folder.names()) == ["local.1.earlier", "local.1.journal"]


def test_journal_says_all_when_many_turns_have_continued_it(folder: Folder) -> None:
    """Each with copies of its own, so that a holder that was only stopped writes nothing into the next one's."""
    first = Journal(folder, "local.1", RULES, lambda: [("start", 0)])
    for turn in (2, 3, 4):
        journal = Journal(folder, f"local.{turn}", RULES, list, earlier=read_journal(folder, f"local.{turn - 1}"))
        journal.note(("settle", turn))
        journal.write()
        journal.close()
    first.note(("settle", 100))
    first.write()
    first.close()
    assert entered_in(read_journal(folder, "local.4"), RULES) == [
        ("start", 0),
        ("settle", 2),
        ("settle", 3),
        ("settle", 4),
    ]


def test_journal_goes_on_from_what_was_read_when_a_stopped_holder_writes_once_more(folder: Folder) -> None:
    """What the next holder has not entered is not in its journal either, or the one after it would enter more."""
    stopped = Journal(folder, "local.1", RULES, lambda: [("start", 0)])
    written = read_journal(folder, "local.1")
    stopped.note(("settle", 100))
    stopped.write()
    stopped.close()
    Journal(folder, "local.2", RULES, list, earlier=written).close()
    assert entered_in(read_journal(folder, "local.2"), RULES) == entered_in(written, RULES) == [("start", 0)]


def test_journal_is_given_up_when_the_disk_is_full(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One line says so and what to do; half a journal is not left for the next holder, and nothing else stops."""
    journal = Journal(folder, "local.1", RULES, lambda: [("start", 0)])

    def full(descriptor: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    for number in range(3):
        journal.note(("settle", number))
        journal.write()
    assert not journal.works
    assert folder.names() == []
    assert caplog.text.count("cannot be written") == 1
    assert "No space left on device" in caplog.text
    assert "OTEL_LLM_ENERGY_BOARD" in caplog.text


def test_journal_is_given_up_quietly_when_a_daemon_has_closed_the_folder(
    folder: Folder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And has a file of its own under the number: the folder is opened anew, which is nobody's trouble."""
    other = os.open(tmp_path / "the daemon's", os.O_RDWR | os.O_CREAT)
    os.dup2(other, folder.descriptor)
    os.close(other)
    journal = Journal(folder, "local.1", RULES, lambda: [("start", 0)])
    assert not journal.works
    assert "cannot be written" not in caplog.text

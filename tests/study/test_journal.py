"""Rows outlive whatever kills the process: none lost, none doubled, none half."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import set_span_in_context

from otel_llm_energy.quantities import NS_PER_SECOND
from otel_llm_energy.study import StudyError
from otel_llm_energy.study.dataset import TABLE, compact, scan
from otel_llm_energy.study.journal import ROWS, Journal, replace_file, rows_in
from otel_llm_energy.study.power import PowerLog
from otel_llm_energy.study.sink import RowSink

_FILL_THE_DISK = """
import resource, signal, sys
from pathlib import Path
from otel_llm_energy.study.journal import Journal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with Journal(Path(sys.argv[1])) as journal:
    for number in range(100):
        try:
            journal.append({"call_id": str(number), "text": "x" * 100})
        except OSError:
            print(number)
            break
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
"""


def _row(number: int, **more: object) -> dict[str, object]:
    return {"call_id": f"call-{number}", "attempt": 1, "error_type": None, **more}


def _ids(folder: Path) -> list[str]:
    return scan([folder]).select("call_id").collect()["call_id"].to_list()


@settings(max_examples=50)
@given(rows=st.integers(0, 5), lost_bytes=st.integers(0, 400))
def test_whole_rows_stay_when_the_file_ends_anywhere(
    tmp_path_factory: pytest.TempPathFactory, rows: int, lost_bytes: int
) -> None:
    """What a kill or a power cut leaves is a beginning of the file: the rows that are whole in it are rows."""
    folder = tmp_path_factory.mktemp("cut")
    with Journal(folder) as journal:
        for number in range(rows):
            journal.append(_row(number, text="é\n" * number))
    content = (folder / ROWS).read_bytes()
    kept = content[: max(len(content) - lost_bytes, 0)]
    (folder / ROWS).write_bytes(kept)
    with Journal(folder) as journal:
        journal.append(_row(99))
    read = [row["call_id"] for row in rows_in(folder / ROWS)]
    assert read == [f"call-{number}" for number in range(kept.count(b"\n"))] + ["call-99"]


def test_no_half_row_stays_when_the_disk_is_full(tmp_path: Path) -> None:
    """The kernel refuses more than 1000 bytes, in the middle of a row: it is taken back, and those before it stay."""
    ended = subprocess.run(
        [sys.executable, "-c", _FILL_THE_DISK, str(tmp_path)], capture_output=True, text=True, check=True
    )
    refused = int(ended.stdout)
    assert 0 < refused < 10
    assert [row["call_id"] for row in rows_in(tmp_path / ROWS)] == [str(number) for number in range(refused)]
    assert (tmp_path / ROWS).read_bytes().endswith(b"\n")


def test_rows_can_be_read_when_a_text_holds_half_a_character(tmp_path: Path) -> None:
    """A server that cuts a prompt it quotes, say, at so many halves: the error is kept, and so are all other rows."""
    with Journal(tmp_path) as journal:
        journal.append(_row(0, response="Wörter \U0001f600\u2028"))
        journal.append(_row(1, error="too long: \ud83d..."))
    texts = scan([tmp_path]).select("response", "error").collect().rows()
    assert texts == [("Wörter \U0001f600\u2028", None), (None, "too long: ?...")]


def test_no_other_file_is_written_to_when_a_call_ends_after_its_collection_was_broken_off(tmp_path: Path) -> None:
    """Its thread still has the journal, whose descriptor is another file's by now."""
    journal = Journal(tmp_path)
    journal.close()
    others = [(tmp_path / str(number)).open("wb") for number in range(8)]
    with pytest.raises(OSError, match="the journal is closed"):
        journal.append(_row(0))
    for other in others:
        other.close()
    assert [(tmp_path / str(number)).read_bytes() for number in range(8)] == [b""] * 8


def test_second_collector_is_refused_when_the_first_is_at_work(tmp_path: Path) -> None:
    """Two would double rows."""
    with Journal(tmp_path), pytest.raises(StudyError, match="another process collects into it"):
        Journal(tmp_path)
    Journal(tmp_path).close()


def test_each_row_counts_once_when_killed_between_table_and_journal(tmp_path: Path) -> None:
    """Rows are in the table already and in the journal still."""
    with Journal(tmp_path) as journal:
        for number in range(3):
            journal.append(_row(number))
        content = journal.path.read_bytes()
        compact(tmp_path, journal)
        assert journal.path.read_bytes() == b""
    (tmp_path / ROWS).write_bytes(content)
    assert sorted(_ids(tmp_path)) == ["call-0", "call-1", "call-2"]


def test_later_attempt_counts_when_a_failed_call_was_asked_again(tmp_path: Path) -> None:
    """One row a call: the last."""
    with Journal(tmp_path) as journal:
        journal.append(_row(0, error_type="APIConnectionError"))
        compact(tmp_path, journal)
        journal.append({**_row(0), "attempt": 2})
        compact(tmp_path, journal)
    table = scan([tmp_path]).collect()
    assert table.select("call_id", "attempt", "error_type").rows() == [("call-0", 2, None)]


def test_table_holds_every_column_when_rows_lack_some(tmp_path: Path) -> None:
    """What is not known is null, not absent."""
    with Journal(tmp_path) as journal:
        journal.append({**_row(0), "llm.energy.joules": 1.5, "power_watts": [1.0, 2.0]})
        compact(tmp_path, journal)
    row = scan([tmp_path]).collect().row(0, named=True)
    assert (row["llm.energy.joules"], row["power_watts"], row["prompt"]) == (1.5, [1.0, 2.0], None)


def test_sink_knows_that_its_joules_are_estimates_when_one_row_is(tmp_path: Path) -> None:
    """Their sum is one, then, whatever comes after."""
    with Journal(tmp_path) as journal:
        sink = RowSink(journal, {}, content=False)
        for number, quality in enumerate(["measured", "shared", "estimated", "measured"]):
            assert sink.estimated == (number > 2)
            sink.write({**_row(number), "llm.energy.joules": 1.5, "llm.energy.quality": quality})
        assert sink.estimated
        assert sink.joules == 6.0


def test_row_says_when_its_call_began_and_for_how_long_it_took(tmp_path: Path) -> None:
    """By the span of the call, not by the one around it, which takes in what the study itself does."""
    provider = TracerProvider(shutdown_on_exit=False)
    tracer = provider.get_tracer("study")
    with Journal(tmp_path) as journal:
        sink = RowSink(journal, {"llama": PowerLog()}, content=False)
        provider.add_span_processor(sink)
        study = tracer.start_span("study", start_time=999 * NS_PER_SECOND)
        sink.expect(study.get_span_context().trace_id, {**_row(0), "deployment": "llama small", "server": "llama"})
        within, asked = set_span_in_context(study), {"gen_ai.operation.name": "chat"}
        call = tracer.start_span("chat", within, attributes=asked, start_time=1000 * NS_PER_SECOND)
        call.end(1000 * NS_PER_SECOND + 2_500_000_000)
        study.end(1004 * NS_PER_SECOND)
        assert not sink.waiting
    (row,) = rows_in(tmp_path / ROWS)
    assert (row["started_at"], row["seconds"]) == (1000.0, 2.5)


def test_error_says_how_to_collect_when_a_folder_holds_no_study(tmp_path: Path) -> None:
    """Rather than an empty report."""
    with pytest.raises(StudyError, match="study collect PROMPTS"):
        scan([tmp_path])


def test_error_names_the_line_when_a_journal_was_edited(tmp_path: Path) -> None:
    """Only the last line can be torn by a kill; anything else is somebody's doing."""
    (tmp_path / ROWS).write_text(json.dumps(_row(0)) + "\n{broken\n" + json.dumps(_row(1)) + "\n")
    with pytest.raises(StudyError, match="line 2: not a row"):
        list(rows_in(tmp_path / ROWS))


def test_a_row_that_is_being_written_is_none_yet_when_a_report_is_made_meanwhile(tmp_path: Path) -> None:
    """Only who collects may cut it off; who reads leaves it out."""
    (tmp_path / ROWS).write_text(json.dumps(_row(0)) + "\n" + json.dumps(_row(1))[:-5])
    assert _ids(tmp_path) == ["call-0"]


def test_a_table_of_another_version_is_read_when_its_columns_are_others(tmp_path: Path) -> None:
    """Studies are kept for long: what it lacks is not known, and what nobody knows any more is left out."""
    pl.DataFrame({"call_id": ["old"], "attempt": [1.0], "of_former_times": ["x"]}).write_parquet(tmp_path / TABLE)
    with Journal(tmp_path) as journal:
        journal.append(_row(0))
    table = scan([tmp_path]).collect()
    assert table.select("call_id", "attempt", "prompt").rows() == [("old", 1, None), ("call-0", 1, None)]
    assert "of_former_times" not in table.columns


def test_old_table_stays_when_the_new_one_cannot_be_written(tmp_path: Path) -> None:
    """A folder in the place of the temporary file stands for a disk that refuses it."""
    with Journal(tmp_path) as journal:
        journal.append(_row(0))
        compact(tmp_path, journal)
        journal.append(_row(1))
        (tmp_path / f"{TABLE}.partial").mkdir()
        with pytest.raises(OSError):
            compact(tmp_path, journal)
        assert sorted(_ids(tmp_path)) == ["call-0", "call-1"]


def test_journal_stays_when_the_disk_fills_while_its_table_is_written(tmp_path: Path) -> None:
    """The kernel refuses more than 1000 bytes: an error as of any full disk, and nothing half written is left."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Journal(tmp_path) as journal:
        journal.append(_row(0))
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
            with pytest.raises(OSError, match="cannot be written"):
                compact(tmp_path, journal)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert [path.name for path in tmp_path.iterdir() if path.suffix == ".partial"] == []
        assert _ids(tmp_path) == ["call-0"]


def test_error_names_the_table_when_it_is_none(tmp_path: Path) -> None:
    """One line rather than a trace of Polars."""
    (tmp_path / TABLE).write_text("not Parquet")
    with pytest.raises(StudyError, match=r"calls\.parquet: not a table of a study"):
        scan([tmp_path])


@pytest.mark.parametrize("name", ["run[1]", "run*"])
def test_rows_are_those_of_the_folder_when_its_name_is_a_pattern(tmp_path: Path, name: str) -> None:
    """``run[1]`` was read as ``run1``, and ``run*`` as both."""
    for number, folder in enumerate([name, "run1"]):
        with Journal(tmp_path / folder) as journal:
            journal.append(_row(number))
            compact(tmp_path / folder, journal)
    assert _ids(tmp_path / name) == ["call-0"]


def test_folder_is_refused_before_any_call_when_its_name_is_no_text(tmp_path: Path) -> None:
    """The table could not be written at the end."""
    folder = tmp_path / b"out\xff".decode("utf-8", "surrogateescape")
    with pytest.raises(StudyError, match="no UTF-8"):
        Journal(folder)
    assert not folder.exists()


def test_folder_is_refused_when_it_was_given_a_name_that_is_no_text(tmp_path: Path) -> None:
    """A report of it ended in a traceback."""
    with Journal(tmp_path / "out") as journal:
        journal.append(_row(0))
        compact(tmp_path / "out", journal)
    renamed = (tmp_path / "out").rename(tmp_path / b"out\xff".decode("utf-8", "surrogateescape"))
    with pytest.raises(StudyError, match="no UTF-8"):
        _ids(renamed)


@pytest.mark.parametrize("folder", [".", "..", "there"])
def test_file_cannot_be_replaced_when_it_is_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    """An error of the disk, of which the commands make a sentence, and nothing is left behind."""
    (tmp_path / "here" / "there").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(OSError, match=r"irectory|busy"):
        replace_file(Path(folder), b"content")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["here", "there"]


def test_what_is_no_file_is_written_to_when_a_file_is_put_there(tmp_path: Path) -> None:
    """Whoever writes a page to a pipe, or as root to a device, finds it there afterwards as before."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        replace_file(pipe, b"content")
        assert os.read(reader, 100) == b"content"
    finally:
        os.close(reader)
    assert pipe.is_fifo()
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_link_stays_one_when_the_file_behind_it_is_replaced(tmp_path: Path) -> None:
    """As it would if it were opened and written; also where there is no file behind it yet."""
    (tmp_path / "elsewhere").mkdir()
    link, file = tmp_path / "link", tmp_path / "elsewhere" / "file"
    link.symlink_to(file)
    for content in (b"first", b"second"):
        replace_file(link, content)
        assert link.is_symlink()
        assert file.read_bytes() == content
    assert sorted(path.name for path in (tmp_path / "elsewhere").iterdir()) == ["file"]

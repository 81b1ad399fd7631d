"""Prompts come from files of several formats; what is wrong with a file is said once and plainly."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from otel_llm_energy.study import StudyError
from otel_llm_energy.study.features import prompt_features
from otel_llm_energy.study.prompts import Prompt, read_prompts
from otel_llm_energy.study.scores import against_expected, scorer

_QUESTIONS = ["What is a joule?", 'Say "yes",\nor no.', "Où?"]


def _written(folder: Path, suffix: str) -> Path:
    path = folder / f"prompts{suffix}"
    table = pl.DataFrame({"prompt": _QUESTIONS, "type": ["fact", "order", "fact"]})
    if suffix == ".csv":
        table.write_csv(path)
    elif suffix == ".parquet":
        table.write_parquet(path)
    else:
        path.write_text("\n".join(json.dumps(row) for row in table.to_dicts()))
    return path


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_prompts_and_types_are_the_same_when_the_format_differs(tmp_path: Path, suffix: str) -> None:
    """A dataset is a dataset: quotes, line ends and letters beyond ASCII come through."""
    prompts = read_prompts(str(_written(tmp_path, suffix))).prompts
    assert [(each.text, each.type) for each in prompts] == list(zip(_QUESTIONS, ["fact", "order", "fact"], strict=True))
    assert len({each.id for each in prompts}) == 3


def test_each_line_is_a_prompt_when_the_file_is_plain_text(tmp_path: Path) -> None:
    """Blank lines are none."""
    (tmp_path / "p.txt").write_text("One?\n\n  \nTwo?\n")
    assert [each.text for each in read_prompts(str(tmp_path / "p.txt")).prompts] == ["One?", "Two?"]


def test_a_line_is_whole_when_it_holds_what_only_some_take_for_an_end_of_lines(tmp_path: Path) -> None:
    """Pages of the web hold U+2028 and U+0085, and old files form feeds; editors show them inside the line."""
    (tmp_path / "p.txt").write_bytes("One\u2028and\x85two\x0cthree?\r\nFour?\r\n".encode())
    prompts = read_prompts(str(tmp_path / "p.txt")).prompts
    assert [each.text for each in prompts] == ["One\u2028and\x85two\x0cthree?", "Four?"]


def test_built_in_set_is_there_when_it_is_named() -> None:
    """50 prompts of several types, some with expected answers that its own checks understand."""
    prompts = read_prompts("starter").prompts
    assert len(prompts) == 50
    assert len({each.type for each in prompts}) == 8
    assert {each.turn for each in prompts if each.conversation == "holiday"} == {0, 1, 2}
    assert scorer(None, prompts) is against_expected


def test_error_names_the_columns_that_are_there_when_csv_has_no_prompt(tmp_path: Path) -> None:
    """Whoever named the column otherwise sees its name."""
    (tmp_path / "p.csv").write_text("question,type\nWhy?,fact\n")
    with pytest.raises(StudyError, match=r"p\.csv: no column 'prompt'.*question, type"):
        read_prompts(str(tmp_path / "p.csv"))


def test_error_names_line_and_remedy_when_the_encoding_is_another(tmp_path: Path) -> None:
    """Latin-1 is not guessed: a wrong guess would ask other prompts than were meant."""
    (tmp_path / "p.csv").write_bytes("prompt\nWhy?\nOù?\n".encode("latin-1"))
    with pytest.raises(StudyError, match=r"p\.csv, line 3: not UTF-8 \(byte 0xf9\).*iconv"):
        read_prompts(str(tmp_path / "p.csv"))


def test_error_names_both_prompts_when_two_have_one_id(tmp_path: Path) -> None:
    """Rows could not be told apart."""
    (tmp_path / "p.csv").write_text("id,prompt\na,One?\nb,Two?\na,Three?\n")
    with pytest.raises(StudyError, match=r"prompts 1 and 3 have the same id 'a'"):
        read_prompts(str(tmp_path / "p.csv"))


def test_prompts_get_ids_of_their_own_when_a_text_comes_twice(tmp_path: Path) -> None:
    """A text that comes twice is two prompts, which one hash still holds together."""
    (tmp_path / "p.txt").write_text("Why?\nWhy?\n")
    one, two = read_prompts(str(tmp_path / "p.txt")).prompts
    assert one.id != two.id
    assert one.sha256 == two.sha256


def test_empty_and_huge_prompts_are_kept_when_a_csv_holds_them(tmp_path: Path) -> None:
    """Neither is lost on the way in; what becomes of them is a row's business."""
    huge = "word " * 200_000
    pl.DataFrame({"prompt": ["", huge], "id": ["empty", "huge"]}).write_csv(tmp_path / "p.csv")
    assert [len(each.text) for each in read_prompts(str(tmp_path / "p.csv")).prompts] == [0, 1_000_000]


def test_blank_lines_are_no_prompts_when_a_csv_ends_with_some(tmp_path: Path) -> None:
    """Editors and spreadsheets leave them; a row that names anything is one."""
    (tmp_path / "p.csv").write_text("id,prompt\na,One?\n\n,\nempty,\n\n")
    assert [each.id for each in read_prompts(str(tmp_path / "p.csv")).prompts] == ["a", "empty"]


def test_texts_stay_as_they_are_when_they_look_like_numbers_or_ends_of_lines(tmp_path: Path) -> None:
    """An id such as 007 is no number, and a separator of lines that JSON allows in a text ends no line of the file."""
    (tmp_path / "p.csv").write_text("id,prompt\n007,0042\n")
    (prompt,) = read_prompts(str(tmp_path / "p.csv")).prompts
    assert (prompt.id, prompt.text) == ("007", "0042")
    (tmp_path / "p.jsonl").write_text('{"prompt": "One\u2028two?"}\n', encoding="utf-8")
    (prompt,) = read_prompts(str(tmp_path / "p.jsonl")).prompts
    assert prompt.text == "One\u2028two?"


@pytest.mark.parametrize("name", ["p.txt", "p.csv", "p.jsonl"])
def test_the_mark_of_utf_8_is_no_text_when_a_file_begins_with_it(name: str, tmp_path: Path) -> None:
    """Editors and spreadsheets of Windows write one."""
    content = {"p.txt": "One?", "p.csv": "prompt\nOne?", "p.jsonl": '{"prompt": "One?"}'}[name]
    (tmp_path / name).write_text(content, encoding="utf-8-sig")
    assert [prompt.text for prompt in read_prompts(str(tmp_path / name)).prompts] == ["One?"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("p.jsonl", '{"prompt": "One?"}\n{"prompt": ', "line 2: not JSON"),
        ("p.jsonl", '{"question": "One?"}', 'line 1: no "prompt"'),
        ("p.docx", "", "not from .docx"),
        ("p.parquet", "no parquet", "not a Parquet file"),
        ("p.txt", "\n", "there is no prompt in it"),
        ("p.jsonl", '{"prompt": "One?", "check": "guess"}', "check cannot be 'guess'"),
        ("p.jsonl", '{"prompt": [{"role": "user", "content": "One?"}]}', "prompt 1: prompt is no text, but a list"),
        ("p.jsonl", '{"prompt": "One?"}\n{"prompt": "Two?", "expected": ["2"]}', "prompt 2: expected is no text"),
        ("p.jsonl", '{"prompt": "One?", "type": "\\ud83d"}', "prompt 1: type holds half of a character"),
    ],
)
def test_error_says_what_is_wrong_when_a_file_cannot_be_read(
    tmp_path: Path, name: str, content: str, words: str
) -> None:
    """One sentence, with the place."""
    (tmp_path / name).write_text(content)
    with pytest.raises(StudyError, match=words):
        read_prompts(str(tmp_path / name))


def test_error_names_the_built_in_sets_when_there_is_no_such_file() -> None:
    """A misspelt name of a set is a file that is not there."""
    with pytest.raises(StudyError, match=r"startr: no such file.*starter"):
        read_prompts("startr")


def test_features_are_counted_when_a_prompt_has_words() -> None:
    """Worked out by hand; ARI is 4.71 letters/words + 0.5 words/sentences - 21.43, full stops counted as letters."""
    features = prompt_features("Cats sleep all day. Dogs dream all night.")
    assert features["prompt_characters"] == 41
    assert (features["prompt_words"], features["prompt_sentences"], features["prompt_lines"]) == (8, 2, 1)
    assert features["prompt_ari"] == pytest.approx(4.71 * 34 / 8 + 0.5 * 8 / 2 - 21.43, abs=0.01)


def test_readability_is_unknown_when_a_prompt_has_no_words() -> None:
    """Unknown, not 0."""
    features = prompt_features("")
    assert features["prompt_words"] == 0
    assert features["prompt_lix"] is None


@pytest.mark.parametrize(
    ("check", "expected", "answer", "score"),
    [
        ("exact", "Paris", " paris\n", 1.0),
        ("exact", "Paris", "It is Paris.", 0.0),
        ("contains", "Paris", "It is paris.", 1.0),
        ("regex", r"\b12\b", "It is 12.", 1.0),
        ("regex", r"\b12\b", "It is 120.", 0.0),
    ],
)
def test_answer_is_scored_when_one_was_expected(check: str, expected: str, answer: str, score: float) -> None:
    """Exact, contained or matched."""
    assert against_expected(Prompt("a", "?", expected=expected, check=check), answer) == score


def test_score_is_unknown_when_no_answer_was_expected() -> None:
    """Unknown, not 0."""
    assert against_expected(Prompt("a", "?"), "anything") is None


def test_users_function_scores_when_it_is_named(tmp_path: Path) -> None:
    """A Python file and a function in it."""
    (tmp_path / "mine.py").write_text("def brief(prompt, answer, expected):\n    return 1 / len(answer.split())\n")
    score = scorer(f"{tmp_path}/mine.py:brief", ())
    assert score(Prompt("a", "?"), "one two") == 0.5


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_score_is_an_error_when_the_users_function_gives_no_number(value: str, tmp_path: Path) -> None:
    """It could stand in no row, and would spoil every mean."""
    (tmp_path / "mine.py").write_text(f"def odd(prompt, answer, expected):\n    return float('{value}')\n")
    with pytest.raises(ValueError, match=f"{value} is no score"):
        scorer(f"{tmp_path}/mine.py:odd", ())(Prompt("a", "?"), "one")


@pytest.mark.parametrize("named", ["mine.py", "no_such_module:f", "json:no_such_function"])
def test_error_names_the_function_when_there_is_none(named: str) -> None:
    """Before the first call, not after it."""
    with pytest.raises(StudyError, match=named):
        scorer(named, ())

"""Prompts from a file, whatever its format, or from the set that comes with the package."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from otel_llm_energy.study import StudyError

CHECKS: Final = ("exact", "contains", "regex")
_BUILT_IN: Final = ("starter",)
_ID_DIGITS: Final = 16
_LINE_END: Final = re.compile("\r\n|\r|\n")  # `splitlines` takes several characters of texts for one, too
_HALF: Final = re.compile("[\ud800-\udfff]")  # of a surrogate pair


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt of a dataset.

    Attributes:
        id: unique in its dataset: its own, or made from its text.
        text: what is asked; may be empty, and then is not asked.
        type: of the task, such as ``"code"``; empty where the dataset does not say.
        conversation: prompts of one conversation are its turns, in the order of the dataset; empty for one alone.
        turn: 0 for the first.
        expected: the right answer; ``None`` where the dataset does not say.
        check: how an answer is held against it: one of `CHECKS`.
    """

    id: str
    text: str
    type: str = ""
    conversation: str = ""
    turn: int = 0
    expected: str | None = None
    check: str = "contains"

    @property
    def sha256(self) -> str:
        """Of the text; the same prompt in two datasets, or twice in one, has the same."""
        return sha256_of(self.text)


@dataclass(frozen=True, slots=True)
class PromptSet:
    """All prompts of a dataset.

    Attributes:
        source: the path, or the built-in set's name.
        sha256: of the file's bytes.
    """

    source: str
    sha256: str
    prompts: tuple[Prompt, ...]


def sha256_of(text: str) -> str:
    """In hexadecimal digits."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def read_prompts(source: str) -> PromptSet:
    """Read prompts from a csv, jsonl, txt or Parquet file, or a built-in set.

    csv, jsonl and Parquet have a column ``prompt``, and may have ``type``, ``id``, ``conversation``, ``expected`` and
    ``check``. A txt file has a prompt on each line that is not blank; blank lines of the others are none either.

    Args:
        source: a path, or one of the built-in sets' names.

    Raises:
        StudyError: no such file, another format or encoding, no column ``prompt``, two prompts with one id.
    """
    if source in _BUILT_IN:
        name, content = f"{source}.jsonl", (files(__package__) / "builtin" / f"{source}.jsonl").read_bytes()
    else:
        name, content = source, _content(Path(source))
    rows = _rows(name, content)
    prompts = tuple(_prompts(name, rows))
    if not prompts:
        raise StudyError(f"{name}: there is no prompt in it.")
    return PromptSet(source, hashlib.sha256(content).hexdigest(), prompts)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        names = ", ".join(_BUILT_IN)
        raise StudyError(
            f"{path}: no such file. Name a csv, jsonl, txt or Parquet file, or a built-in set: {names}."
        ) from None
    except OSError as error:
        raise StudyError(f"{path}: cannot be read: {error.strerror}.") from error


def _rows(name: str, content: bytes) -> Sequence[Mapping[str, Any]]:
    suffix = Path(name).suffix.lower()
    if suffix == ".parquet":
        return _parquet_rows(name, content)
    text = _decoded(name, content)
    if suffix == ".csv":
        return _csv_rows(name, text)
    if suffix in (".jsonl", ".ndjson"):
        return list(_json_rows(name, text))
    if suffix == ".txt":
        return [{"prompt": line} for line in _LINE_END.split(text) if line.strip()]
    raise StudyError(
        f"{name}: prompts are read from .csv, .jsonl, .txt or .parquet, not from {suffix or 'a file without a suffix'}."
    )


def _decoded(name: str, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise StudyError(
            f"{name}, line {line}: not UTF-8 (byte 0x{content[error.start]:02x}). "
            f"Convert it: iconv -f LATIN1 -t UTF-8 {name}"
        ) from None


def _csv_rows(name: str, text: str) -> Sequence[Mapping[str, Any]]:
    import polars as pl

    try:
        # All columns are texts, so that "007" stays what it is.
        frame = pl.read_csv(io.BytesIO(text.encode()), infer_schema=False)
    except pl.exceptions.PolarsError as error:
        raise StudyError(f"{name}: not a csv file: {_first_line(error)}") from error
    _insist_on_prompt(name, frame.columns)
    return [row for row in frame.iter_rows(named=True) if any(value is not None for value in row.values())]


def _parquet_rows(name: str, content: bytes) -> Sequence[Mapping[str, Any]]:
    import polars as pl

    try:
        frame = pl.read_parquet(io.BytesIO(content))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise StudyError(f"{name}: not a Parquet file: {_first_line(error)}") from error
    _insist_on_prompt(name, frame.columns)
    return frame.to_dicts()


def _json_rows(name: str, text: str) -> Iterator[Mapping[str, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise StudyError(f"{name}, line {number}: not JSON: {error}.") from None
        if not isinstance(row, dict) or "prompt" not in row:
            raise StudyError(
                f'{name}, line {number}: no "prompt" in it. Each line is an object such as {{"prompt": "..."}}.'
            )
        yield row


def _insist_on_prompt(name: str, columns: Sequence[str]) -> None:
    if "prompt" not in columns:
        there = ", ".join(columns) or "none"
        raise StudyError(f"{name}: no column 'prompt'. Rename the one that holds the prompts; there are: {there}.")


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _prompts(name: str, rows: Iterable[Mapping[str, Any]]) -> Iterator[Prompt]:
    seen: dict[str, int] = {}
    repeated: Counter[str] = Counter()
    turns: Counter[str] = Counter()
    for number, row in enumerate(rows, start=1):
        prompt = _prompt(name, number, row)
        if not prompt.id:
            # The same text twice is two prompts, with one sha256.
            repeated[prompt.sha256] += 1
            suffix = f"-{repeated[prompt.sha256]}" if repeated[prompt.sha256] > 1 else ""
            prompt = replace(prompt, id=prompt.sha256[:_ID_DIGITS] + suffix)
        if prompt.id in seen:
            raise StudyError(
                f"{name}: the prompts {seen[prompt.id]} and {number} have the same id {prompt.id!r}. Give each its own."
            )
        seen[prompt.id] = number
        if prompt.conversation:
            prompt = replace(prompt, turn=turns[prompt.conversation])
            turns[prompt.conversation] += 1
        yield prompt


def _prompt(name: str, number: int, row: Mapping[str, Any]) -> Prompt:
    def text(key: str) -> str:
        value = row.get(key)
        if isinstance(value, (list, dict, bytes)):  # as Python writes it, it would be asked, or never found
            raise StudyError(
                f"{name}, prompt {number}: {key} is no text, but a {type(value).__name__}. "
                "The turns of a conversation are rows of their own, with its name as conversation."
            )
        found = "" if value is None else str(value)
        if _HALF.search(found):  # JSON can say it; no file or request can hold it
            raise StudyError(
                f"{name}, prompt {number}: {key} holds half of a character ({ascii(found)[:60]}). Mend it."
            )
        return found

    check = text("check") or "contains"
    if check not in CHECKS:
        raise StudyError(f"{name}, prompt {number}: check cannot be {check!r}. Allowed: {', '.join(CHECKS)}.")
    expected = text("expected")
    return Prompt(
        text("id"), text("prompt"), text("type"), text("conversation"), expected=expected or None, check=check
    )

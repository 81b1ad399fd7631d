"""What was collected, as one lazy table, whether its collection is complete, under way or was killed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from otel_llm_energy.study import StudyError
from otel_llm_energy.study.journal import ROWS, Journal, insist_on_text, replacing, rows_in
from otel_llm_energy.study.rows import schema

if TYPE_CHECKING:
    import polars as pl

TABLE: Final = "calls.parquet"
MANIFEST: Final = "manifest.json"
SESSIONS: Final = "sessions"
_ROWS_AT_A_TIME: Final = 5_000


def scan(folders: Sequence[Path]) -> pl.LazyFrame:
    """The calls of these folders, each once.

    Raises:
        StudyError: a folder holds no study.
    """
    import polars as pl

    return pl.concat([_scan_one(folder) for folder in folders], how="vertical")


def holds_rows(folder: Path) -> bool:
    """Something was collected into the folder, whether it can be read or not."""
    return (folder / TABLE).exists() or _has_content(folder / ROWS)


def _has_content(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def _scan_one(folder: Path) -> pl.LazyFrame:
    import polars as pl

    insist_on_text(folder)
    if not holds_rows(folder):
        raise StudyError(f"{folder}: no study in it. Collect one: otel-llm-energy study collect PROMPTS --out {folder}")
    table, journal = folder / TABLE, folder / ROWS
    written = table.exists()
    columns = schema()
    parts = []
    if written:
        try:
            parts.append(_with_all_columns(pl.scan_parquet(table, glob=False), columns))
        except pl.exceptions.PolarsError as error:
            raise StudyError(f"{table}: not a table of a study: {str(error).partition(chr(10))[0]}") from error
    if _has_content(journal):
        parts.append(_frame(rows_in(journal)).lazy())
    if len(parts) == 1 and written:
        return parts[0]  # a table holds each call once
    return pl.concat(parts, how="vertical").unique("call_id", keep="last", maintain_order=True)


def _with_all_columns(frame: pl.LazyFrame, columns: Mapping[str, pl.DataType]) -> pl.LazyFrame:
    """A table of another version may lack columns, or have more."""
    import polars as pl

    there = set(frame.collect_schema().names())
    return frame.select(
        (pl.col(name) if name in there else pl.lit(None)).cast(kind).alias(name) for name, kind in columns.items()
    )


def _frame(rows: Iterator[Mapping[str, Any]]) -> pl.DataFrame:
    """Rows as a table, some thousands at a time: as a table they take a fraction of the memory."""
    import polars as pl

    tables = [pl.DataFrame(schema=schema())]
    while some := list(islice(rows, _ROWS_AT_A_TIME)):
        tables.append(pl.DataFrame(some, schema=schema(), orient="row", strict=False))
    return pl.concat(tables, how="vertical")


def compact(folder: Path, journal: Journal) -> None:
    """Move the journal's rows to the table.

    The journal is emptied only when the table is in place: killed in between, a row is in both, and `scan` counts it
    once.

    Raises:
        OSError: the disk is full; everything is as it was.
    """
    if journal.path.stat().st_size == 0:
        return
    import polars as pl

    with replacing(folder / TABLE) as partial:
        try:
            _scan_one(folder).sink_parquet(partial, compression="zstd")
        except pl.exceptions.PolarsError as error:  # so it says that a disk is full, where that is seen at the end
            raise OSError(f"{TABLE} cannot be written: {str(error).partition(chr(10))[0]}") from error
    journal.clear()


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """What was planned and found out; ``None`` if there is none."""
    path = folder / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StudyError(f"{path}: cannot be read: {error}.") from error
    return manifest

"""Rows from MELODI's public csv files, so that what was published stands beside one's own.

MELODI (https://github.com/ejhusom/MELODI) wrote one line a call: tokens and durations as Ollama tells them, in ns, and
energies in kWh: the GPU's whole, and Scaphandre's figure of the server's process. Idle power is in both.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import polars as pl

from otel_llm_energy import conventions
from otel_llm_energy.quantities import JOULES_PER_KWH, NS_PER_SECOND
from otel_llm_energy.study import StudyError
from otel_llm_energy.study.dataset import TABLE
from otel_llm_energy.study.features import prompt_features
from otel_llm_energy.study.journal import Journal, replacing
from otel_llm_energy.study.prompts import sha256_of
from otel_llm_energy.study.rows import schema
from otel_llm_instrumentation import semconv

_TOTAL: Final = ("energy_consumption_llm_total", "energy_consumption_llm")  # the later name for the same
_GPU: Final = "energy_consumption_llm_gpu"
_CPU: Final = "energy_consumption_llm_cpu"
_NEEDED: Final = ("model_name", "prompt", "response_token_length")
_NUMBERS: Final = (
    *_TOTAL,
    _GPU,
    _CPU,
    "total_duration",
    "load_duration",
    "prompt_duration",
    "response_duration",
    "clock_duration",
    "prompt_token_length",
    "response_token_length",
)


def import_melodi(files: Sequence[Path], folder: Path, machine: str) -> int:
    """Write the rows of these files as a study's folder; how many there are.

    Args:
        files: MELODI's csv files, all from one machine.
        folder: made if it is not there; must hold no study.
        machine: its name, for comparisons: the files do not say.

    Raises:
        StudyError: a file is not MELODI's, the folder holds a study already, or it cannot be written.
    """
    with Journal(folder) as journal:
        if (folder / TABLE).exists() or journal.path.stat().st_size:
            raise StudyError(f"{folder}: there is a study in it. Choose another folder with --out.")
        rows = pl.concat([_rows(path, machine) for path in files]).unique("call_id", keep="first", maintain_order=True)
        try:
            with replacing(folder / TABLE) as partial:
                rows.write_parquet(partial)
        except OSError as error:
            raise StudyError(f"{folder}: {error.strerror}. Nothing was imported.") from error
    return rows.height


def _rows(path: Path, machine: str) -> pl.DataFrame:
    table = _read(path)
    missing = [name for name in _NEEDED if name not in table.columns]
    if missing or not any(name in table.columns for name in (*_TOTAL, _GPU, _CPU)):
        wanted = ", ".join(missing or [_TOTAL[0]])
        raise StudyError(f"{path}: not a csv file of MELODI: {wanted} missing. There are: {', '.join(table.columns)}.")
    table = table.with_columns(
        _number(name) if name in table.columns else pl.lit(None, pl.Float64).alias(name) for name in _NUMBERS
    ).with_row_index("line")
    table = pl.concat([table, _prompt_columns(table["prompt"].fill_null("").to_list())], how="horizontal")
    columns = _columns(table, machine, hashlib.sha256(path.read_bytes()).hexdigest()[:12])
    kept = {name: pl.col(name) for name in table.columns}
    return table.select(
        columns.get(name, kept.get(name, pl.lit(None))).cast(kind, strict=False).alias(name)
        for name, kind in schema().items()
    )


def _columns(table: pl.DataFrame, machine: str, file: str) -> dict[str, pl.Expr]:
    """The columns that are not there by the same name; ``file`` names the file in the calls' ids."""
    joules = _joules()
    return {
        "call_id": pl.format("melodi-{}-{}", pl.lit(file), pl.col("line")),
        "attempt": pl.lit(1),
        "source": pl.lit("melodi"),
        "position": pl.col("line"),
        "deployment": pl.format("{} {}", pl.lit(machine), pl.col("model_name")),
        "server": pl.lit(machine),
        "machine": pl.lit(machine),
        "model": pl.col("model_name"),
        "prompt_id": pl.col("prompt_sha256").str.head(16),
        "type": pl.col("type") if "type" in table.columns else pl.lit(""),
        "response": pl.col("response") if "response" in table.columns else pl.lit(None),
        "conversation": pl.lit(""),
        "repeat": pl.lit(0),
        "turn": pl.lit(0),
        "started_at": _started(table),
        "seconds": pl.coalesce("total_duration", "clock_duration") / NS_PER_SECOND,
        conventions.JOULES: joules,
        conventions.QUALITY: pl.when(joules.is_null()).then(pl.lit("unavailable")).otherwise(pl.lit("measured")),
        conventions.METER: pl.lit("melodi"),
        conventions.CPU_JOULES: pl.col(_CPU) * JOULES_PER_KWH,
        conventions.GPU_JOULES: pl.col(_GPU) * JOULES_PER_KWH,
        conventions.SERVER_LOAD_SECONDS: pl.col("load_duration") / NS_PER_SECOND,
        conventions.SERVER_PREFILL_SECONDS: pl.col("prompt_duration") / NS_PER_SECOND,
        conventions.SERVER_DECODE_SECONDS: pl.col("response_duration") / NS_PER_SECOND,
        semconv.REQUEST_MODEL: pl.col("model_name"),
        semconv.USAGE_INPUT_TOKENS: pl.col("prompt_token_length"),
        semconv.USAGE_OUTPUT_TOKENS: pl.col("response_token_length"),
    }


def _read(path: Path) -> pl.DataFrame:
    try:
        return pl.read_csv(io.BytesIO(path.read_bytes()), infer_schema=False)
    except OSError as error:
        raise StudyError(f"{path}: cannot be read: {error.strerror}.") from error
    except pl.exceptions.PolarsError as error:
        raise StudyError(f"{path}: not a csv file in UTF-8: {str(error).partition(chr(10))[0]}") from error


def _number(name: str) -> pl.Expr:
    """Null where there is none: one ``nan``, which pandas may write, would make every mean and forecast none."""
    read = pl.col(name).cast(pl.Float64, strict=False)
    return pl.when(read.is_finite() & (read >= 0)).then(read).alias(name)


def _joules() -> pl.Expr:
    """The total; where a file has none, the sum of what it has."""
    parts = pl.sum_horizontal(_GPU, _CPU)
    known = pl.any_horizontal(pl.col(_GPU).is_not_null(), pl.col(_CPU).is_not_null())
    return pl.coalesce(*_TOTAL, pl.when(known).then(parts)) * JOULES_PER_KWH


def _started(table: pl.DataFrame) -> pl.Expr:
    """Unix time in s, where the file has a time that reads as one."""
    for name in ("start_time", "created_at"):
        if name in table.columns:
            read = pl.col(name).str.to_datetime(time_zone="UTC", time_unit="us", strict=False)
            return read.dt.timestamp("us") / 1e6
    return pl.lit(None, pl.Float64)


def _prompt_columns(prompts: Sequence[str]) -> pl.DataFrame:
    """Hash and features of each prompt; a prompt that comes often is looked at once."""
    known = {text: {"prompt_sha256": sha256_of(text), **prompt_features(text)} for text in set(prompts)}
    return pl.DataFrame([known[text] for text in prompts], infer_schema_length=None)

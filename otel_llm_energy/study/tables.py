"""Rows as lazy tables: worked out in pieces, or a sample of them, so that memory does not grow with the rows."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from otel_llm_energy.study import StudyError
from otel_llm_energy.study.columns import Basis

Floats = NDArray[np.float64]


def collected(frame: pl.LazyFrame) -> pl.DataFrame:
    """The result, worked out in pieces where that is possible."""
    result: pl.DataFrame = frame.collect(engine="streaming")
    return result


def sample(rows: pl.LazyFrame, most: int) -> pl.DataFrame:
    """At most about so many rows, always the same ones."""
    count = int(collected(rows.select(pl.len())).item())
    if count > most:
        rows = rows.filter(pl.col("call_id").hash(1) % 1_000_000 < int(1_000_000 * most / count))
    return collected(rows)


def choose_basis(rows: pl.LazyFrame) -> Basis:
    """Above idle, unless some deployment's rows have no such part (imported ones, or ones without a baseline)."""
    answered = rows.filter(pl.col("error_type").is_null())
    known = collected(
        answered.filter(pl.col("joules").is_not_null())
        .group_by("deployment")
        .agg(part=pl.col("above_idle_joules").is_not_null().mean())
    )
    if known.is_empty():
        if collected(answered.head(1)).is_empty():
            raise StudyError("No call was answered, so there is nothing to report. The rows say why, as error_type.")
        raise StudyError("No row has joules, so there is nothing to report. `otel-llm-energy doctor` says why.")
    return "above_idle_joules" if float(known["part"].min() or 0.0) >= 0.5 else "joules"  # type: ignore[arg-type]


def usable(rows: pl.LazyFrame, basis: Basis) -> pl.LazyFrame:
    """Answered calls with energy on this basis, as ``energy``."""
    good = pl.col(basis).is_not_null() & pl.col("error_type").is_null()
    return rows.filter(good).with_columns(energy=pl.col(basis))

"""The names under which rows are analysed: short, and the same for collected and imported ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from otel_llm_energy import conventions
from otel_llm_energy.study.dataset import scan
from otel_llm_energy.study.features import FEATURES
from otel_llm_instrumentation import semconv

if TYPE_CHECKING:
    import polars as pl

Basis = Literal["above_idle_joules", "joules"]

_RENAMED: Final = {
    conventions.JOULES: "joules",
    conventions.ABOVE_IDLE_JOULES: "above_idle_joules",
    conventions.QUALITY: "quality",
    conventions.REASON: "reason",
    conventions.PREFILL_JOULES: "prefill_joules",
    conventions.DECODE_JOULES: "decode_joules",
    conventions.LOAD_JOULES: "load_joules",
    conventions.CONCURRENCY: "concurrency",
    conventions.METER: "meter",
    semconv.USAGE_INPUT_TOKENS: "input_tokens",
    semconv.USAGE_OUTPUT_TOKENS: "output_tokens",
    semconv.USAGE_CACHE_READ_INPUT_TOKENS: "cached_tokens",
    semconv.RESPONSE_TIME_TO_FIRST_CHUNK: "first_chunk_seconds",
    conventions.SERVER_PREFILL_SECONDS: "prefill_seconds",
    conventions.SERVER_DECODE_SECONDS: "decode_seconds",
}
_KEPT: Final = (
    "call_id",
    "source",
    "deployment",
    "server",
    "machine",
    "model",
    "prompt_id",
    "prompt_sha256",
    "type",
    "conversation",
    "turn",
    "repeat",
    "response_characters",
    "started_at",
    "seconds",
    "error_type",
    "score",
    "max_tokens",
    "temperature",
    "prompt_tokens",
    *FEATURES,
    "server_model_parameters",
    "server_model_bytes",
)


def short_rows(folders: Sequence[Path]) -> pl.LazyFrame:
    """All rows of these folders under short names, without texts and without what is only drawn.

    ``study`` is the number of the folder: two may hold the same calls of the same plan.

    Raises:
        otel_llm_energy.study.StudyError: a folder holds no study.
    """
    import polars as pl

    renamed = [pl.col(long).alias(short) for long, short in _RENAMED.items()]
    return pl.concat(
        [
            scan([folder]).select(*_KEPT, *renamed, pl.lit(number).alias("study"))
            for number, folder in enumerate(folders)
        ]
    )

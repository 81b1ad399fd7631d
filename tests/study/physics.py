"""A dataset whose physics is known: what a call costs follows from its tokens and the watts of its machine.

Prefill and decode have a time per token and a power each, as a real server has; on top comes the idle power of the
whole time. Noise is that of a meter: relative, and independent from call to call.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from otel_llm_energy.study.dataset import TABLE
from otel_llm_energy.study.rows import schema

TYPES = ("fact", "explain", "story", "code")
_MEAN_TOKENS = {"fact": 20, "explain": 180, "story": 350, "code": 120}


@dataclass(frozen=True)
class Machine:
    """A deployment: seconds per token and watts above idle in each phase; a score's chance of being right."""

    name: str
    model: str
    parameters: float
    prefill_seconds: float = 0.0025
    decode_seconds: float = 0.0115
    prefill_watts: float = 75.0
    decode_watts: float = 55.0
    idle_watts: float = 22.0
    overhead_seconds: float = 0.02
    right: float = 0.6


MACHINES = (
    Machine("box small", "small", 1.35e8, right=0.45),
    Machine("box large", "large", 1.7e9, 0.02, 0.07, 80.0, 60.0, right=0.7),
    Machine("gpu large", "large", 1.7e9, 0.0004, 0.012, 210.0, 160.0, 55.0, right=0.72),
)


def dataset(
    rows: int, *, prompts: int, machines: tuple[Machine, ...] = MACHINES, noise: float = 0.02, seed: int = 0
) -> pl.DataFrame:
    """So many calls, in the columns of a collected dataset."""
    drawn = np.random.default_rng(seed)
    prompt = drawn.integers(0, prompts, rows)
    which = drawn.integers(0, len(machines), rows)
    kind = np.random.default_rng(101).integers(0, len(TYPES), prompts)[prompt]
    words = np.random.default_rng(102).integers(5, 400, prompts)[prompt]
    wanted = np.array([_MEAN_TOKENS[name] for name in TYPES])[kind]
    length = np.random.default_rng(103).lognormal(0, 0.5, prompts)[prompt]
    limit = np.array([64, 512])[drawn.integers(0, 2, rows)]
    output = np.clip(wanted * length * drawn.lognormal(0, 0.15, rows), 1, limit).astype(np.int64)
    inputs = (words * 1.3).astype(np.int64) + 30

    def of(attribute: str) -> np.ndarray:
        return np.array([getattr(machine, attribute) for machine in machines])[which]

    prefill_seconds = of("prefill_seconds") * inputs + of("overhead_seconds")
    decode_seconds = of("decode_seconds") * output
    blur = drawn.lognormal(0, noise, (2, rows))
    prefill = of("prefill_watts") * prefill_seconds * blur[0]
    decode = of("decode_watts") * decode_seconds * blur[1]
    seconds = prefill_seconds + decode_seconds
    idle = of("idle_watts") * seconds
    right = drawn.random(rows) < of("right")
    columns = {
        "call_id": np.char.add("call-", np.arange(rows).astype(str)),
        "attempt": np.ones(rows, dtype=np.int64),
        "source": np.full(rows, "study"),
        "position": np.arange(rows),
        "deployment": of("name"),
        "server": np.array([machine.name.split()[0] for machine in machines])[which],
        "machine": np.array([machine.name.split()[0] for machine in machines])[which],
        "model": of("model"),
        "prompt_id": np.char.add("p", prompt.astype(str)),
        "prompt_sha256": np.char.add("sha-", prompt.astype(str)),
        "prompt": np.full(rows, "Lorem ipsum dolor sit amet, consectetur adipiscing elit. " * 3),
        "response": np.full(rows, "Sed do eiusmod tempor incididunt ut labore et dolore magna. " * 4),
        "type": np.array(TYPES)[kind],
        "conversation": np.where(prompt % 50 == 0, np.char.add("talk-", (prompt % 7).astype(str)), ""),
        "turn": np.zeros(rows, dtype=np.int64),
        "repeat": np.zeros(rows, dtype=np.int64),
        "started_at": 1.79e9 + np.arange(rows) * 2.0,
        "seconds": seconds,
        "max_tokens": limit,
        "temperature": np.zeros(rows),
        "prompt_words": words,
        "prompt_characters": words * 6,
        "prompt_tokens": (words * 1.3).astype(np.int64),
        "prompt_sentences": words // 12 + 1,
        "prompt_lines": np.ones(rows, dtype=np.int64),
        "prompt_word_characters": np.full(rows, 5.0),
        "prompt_ari": 8 + np.random.default_rng(104).normal(0, 2, prompts)[prompt],
        "prompt_lix": 30 + np.random.default_rng(105).normal(0, 6, prompts)[prompt],
        "server_model_parameters": of("parameters"),
        "score": np.where(kind == 0, right.astype(float), np.nan),
        "gen_ai.usage.input_tokens": inputs,
        "gen_ai.usage.output_tokens": output,
        "llm.server.prefill_seconds": prefill_seconds,
        "llm.server.decode_seconds": decode_seconds,
        "llm.energy.joules": prefill + decode + idle,
        "llm.energy.above_idle_joules": prefill + decode,
        "llm.energy.prefill_joules": prefill,
        "llm.energy.decode_joules": decode,
        "llm.energy.quality": np.where(drawn.random(rows) < 0.97, "measured", "degraded"),
        "llm.energy.meter": np.full(rows, "rapl"),
        "llm.energy.concurrency": np.ones(rows),
    }
    frame = pl.DataFrame(columns).with_columns(pl.col("score").fill_nan(None))
    return frame.select(
        (pl.col(name) if name in columns else pl.lit(None)).cast(kind).alias(name) for name, kind in schema().items()
    )


def write(folder: Path, frame: pl.DataFrame) -> Path:
    """The dataset as a study's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    frame.write_parquet(folder / TABLE)
    return folder

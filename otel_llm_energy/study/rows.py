"""The columns of a row: one call, as it was planned, asked, answered and measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from otel_llm_energy import conventions
from otel_llm_instrumentation import semconv

if TYPE_CHECKING:
    import polars as pl

Type = Literal["string", "int", "double", "bool", "doubles"]


@dataclass(frozen=True, slots=True)
class Column:
    """A column: name, type and meaning."""

    name: str
    type: Type
    meaning: str


OTHER_ATTRIBUTES: Final = "other_attributes"
_CONTENT: Final = frozenset({semconv.SYSTEM_INSTRUCTIONS, semconv.INPUT_MESSAGES, semconv.OUTPUT_MESSAGES})

_OWN: Final = (
    Column("call_id", "string", "Of the planned call; unique in a dataset."),
    Column("attempt", "int", "1, or more where a failed call was asked again."),
    Column("source", "string", "study, or melodi for imported rows."),
    Column("position", "int", "Place in the plan's order."),
    Column("deployment", "string", "Server and model: what is compared."),
    Column("server", "string", "Name of the server in the plan."),
    Column("machine", "string", "What the server runs on."),
    Column("model", "string", "Model that was asked for."),
    Column("prompt_id", "string", "Of the prompt in its dataset."),
    Column("prompt_sha256", "string", "Of the prompt's text."),
    Column("prompt", "string", "The prompt's text; empty with --no-content."),
    Column("type", "string", "Type of the task."),
    Column("conversation", "string", "Conversation that the prompt is a turn of."),
    Column("turn", "int", "Place in the conversation, from 0."),
    Column("repeat", "int", "How often the prompt was asked before, in the plan."),
    Column("response", "string", "The answer's text; empty with --no-content."),
    Column("response_sha256", "string", "Of the answer's text."),
    Column("response_characters", "int", "Length of the answer."),
    Column("started_at", "double", "Start of the call, Unix time, s."),
    Column("seconds", "double", "Length of the call's span, s."),
    Column("error_type", "string", "Kind of failure; empty where there was none."),
    Column("error", "string", "The failure's words."),
    Column("score", "double", "How good the answer is, 0 to 1."),
    Column("score_error", "string", "Why the function that scores failed."),
    Column("max_tokens", "int", "Limit of the answer's length."),
    Column("temperature", "double", "As planned."),
    Column("seed", "int", "As planned."),
    Column("planned_concurrency", "int", "Calls at a time, as planned."),
    Column("prompt_tokens", "int", "Length of the prompt's text by the server's tokenizer."),
    Column("prompt_characters", "int", "Length of the prompt."),
    Column("prompt_words", "int", "Words of the prompt."),
    Column("prompt_lines", "int", "Lines of the prompt."),
    Column("prompt_sentences", "int", "Sentences at the beginning of the prompt."),
    Column("prompt_word_characters", "double", "Mean length of a word."),
    Column("prompt_ari", "double", "Automated readability index."),
    Column("prompt_coleman_liau", "double", "Coleman-Liau index."),
    Column("prompt_lix", "double", "LIX readability."),
    Column("client_cpu", "string", "CPU of this machine."),
    Column("client_cpus", "int", "CPUs of this machine."),
    Column("client_memory_bytes", "int", "Memory of this machine."),
    Column("client_system", "string", "Operating system of this machine."),
    Column("client_python", "string", "Version of Python."),
    Column("client_package", "string", "Version of otel-llm-energy."),
    Column("server_software", "string", "Program and version that answers, as far as it says."),
    Column("server_model_parameters", "double", "Number of the model's parameters."),
    Column("server_model_bytes", "double", "Size of the model."),
    Column("server_model_quantization", "string", "How its weights are stored."),
    Column("server_context_tokens", "int", "Context of a slot."),
    Column(
        "power_seconds",
        "doubles",
        "Ends of the meter's readings, s after the call's start; of a deployment's first calls.",
    ),
    Column("power_watts", "doubles", "Mean power of the meter up to that end, all channels, W."),
)

_SPAN_TEXTS: Final = (
    semconv.OPERATION_NAME,
    semconv.PROVIDER_NAME,
    semconv.REQUEST_MODEL,
    semconv.RESPONSE_MODEL,
    semconv.RESPONSE_ID,
    semconv.RESPONSE_FINISH_REASONS,
    semconv.SERVER_ADDRESS,
)
_SPAN_COUNTS: Final = (
    semconv.SERVER_PORT,
    semconv.REQUEST_MAX_TOKENS,
    semconv.REQUEST_SEED,
    semconv.USAGE_INPUT_TOKENS,
    semconv.USAGE_OUTPUT_TOKENS,
    semconv.USAGE_CACHE_READ_INPUT_TOKENS,
    semconv.USAGE_REASONING_OUTPUT_TOKENS,
)
_SPAN_NUMBERS: Final = (
    semconv.REQUEST_TEMPERATURE,
    semconv.RESPONSE_TIME_TO_FIRST_CHUNK,
    conventions.SERVER_LOAD_SECONDS,
    conventions.SERVER_PREFILL_SECONDS,
    conventions.SERVER_DECODE_SECONDS,
    conventions.SERVER_END_TIME,
)

SPAN_COLUMNS: Final = (
    *(Column(attribute.key, attribute.type, attribute.meaning) for attribute in conventions.ATTRIBUTES),
    *(Column(key, "string", "As on the span.") for key in _SPAN_TEXTS),
    *(Column(key, "int", "As on the span.") for key in _SPAN_COUNTS),
    *(Column(key, "double", "As on the span.") for key in _SPAN_NUMBERS),
)
COLUMNS: Final = (
    *_OWN,
    *SPAN_COLUMNS,
    Column(OTHER_ATTRIBUTES, "string", "All further attributes of the span, as JSON."),
)

_CASTS: Final[Mapping[str, Any]] = {"string": str, "int": int, "double": float, "bool": bool}
_TYPES: Final = {column.name: column.type for column in SPAN_COLUMNS}


def schema() -> dict[str, pl.DataType]:
    """The columns' types, for Polars."""
    import polars as pl

    types = {
        "string": pl.String(),
        "int": pl.Int64(),
        "double": pl.Float64(),
        "bool": pl.Boolean(),
        "doubles": pl.List(pl.Float64()),
    }
    return {column.name: types[column.type] for column in COLUMNS}


def span_columns(attributes: Mapping[str, Any], *, content: bool = True) -> dict[str, Any]:
    """All attributes of a span as columns; those that have none of their own together as JSON.

    Without ``content``, texts of prompts and answers are left out, though the user may have them captured on spans.
    """
    row: dict[str, Any] = {}
    others: dict[str, Any] = {}
    for key, value in attributes.items():
        if key in _CONTENT and not content:
            continue
        kind = _TYPES.get(key)
        if kind is None:
            others[key] = list(value) if isinstance(value, tuple) else value
        else:
            row[key] = ",".join(map(str, value)) if isinstance(value, (tuple, list)) else _CASTS[kind](value)
    if others:
        row[OTHER_ATTRIBUTES] = json.dumps(others, sort_keys=True, default=str)
    return row

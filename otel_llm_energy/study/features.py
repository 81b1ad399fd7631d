"""What a prompt looks like before it is asked: cheap figures that may say something about its energy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

FEATURES: Final = (
    "prompt_characters",
    "prompt_words",
    "prompt_lines",
    "prompt_sentences",
    "prompt_word_characters",
    "prompt_ari",
    "prompt_coleman_liau",
    "prompt_lix",
)
"""The columns that `prompt_features` gives."""

_READ_CHARACTERS = 20_000
"""Readability is that of the beginning: of a prompt of a megabyte the rest says nothing new, and takes seconds."""


def prompt_features(text: str) -> Mapping[str, float | int | None]:
    """Lengths and readability of a prompt; ``None`` where a text has none, such as one without words.

    The readability formulas are those of ``textstat`` that count letters, not syllables: for syllables it fetches a
    dictionary from the network. ARI: Smith and Senter 1967; Coleman-Liau: 1975; LIX: Bjornsson 1968.
    """
    import textstat

    words = len(text.split())
    beginning = text[:_READ_CHARACTERS]
    readable = bool(beginning.split())
    return {
        "prompt_characters": len(text),
        "prompt_words": words,
        "prompt_lines": text.count("\n") + 1 if text else 0,
        "prompt_sentences": int(textstat.sentence_count(beginning)) if readable else 0,
        "prompt_word_characters": len("".join(text.split())) / words if words else None,
        "prompt_ari": _number(textstat.automated_readability_index(beginning)) if readable else None,
        "prompt_coleman_liau": _number(textstat.coleman_liau_index(beginning)) if readable else None,
        "prompt_lix": _number(textstat.lix(beginning)) if readable else None,
    }


def _number(value: float) -> float:
    return round(float(value), 4)

"""How good an answer is: held against what was expected, or given to a function of the user's."""

from __future__ import annotations

import importlib
import importlib.util
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from otel_llm_energy.study import StudyError
from otel_llm_energy.study.prompts import Prompt

Score = Callable[[Prompt, str], "float | None"]
"""A prompt and its answer -> 0 (useless) to 1 (right), or ``None`` where nothing is known."""


def against_expected(prompt: Prompt, answer: str) -> float | None:
    """1 if the answer is what was expected, else 0; ``None`` if nothing was.

    Case and white space at the ends do not count. A regular expression is looked for anywhere in the answer.
    """
    if prompt.expected is None:
        return None
    given, expected = answer.strip().casefold(), prompt.expected.strip().casefold()
    if prompt.check == "exact":
        return float(given == expected)
    if prompt.check == "contains":
        return float(expected in given)
    return float(re.search(prompt.expected, answer, re.IGNORECASE) is not None)


def scorer(named: str | None, prompts: tuple[Prompt, ...]) -> Score:
    """What scores the answers.

    Args:
        named: ``"file.py:function"`` or ``"package.module:function"``, called with the prompt's text, the answer and
            what was expected (or ``None``); ``None`` for `against_expected`.
        prompts: their regular expressions are tried now, rather than after the first call.

    Raises:
        StudyError: there is no such function, or a regular expression is none.
    """
    if named is not None:
        return _users_own(_function(named))
    for prompt in prompts:
        if prompt.check == "regex" and prompt.expected is not None:
            try:
                re.compile(prompt.expected)
            except re.error as error:
                raise StudyError(
                    f"prompt {prompt.id}: {prompt.expected!r} is no regular expression: {error}."
                ) from None
    return against_expected


def _users_own(function: Callable[[str, str, str | None], Any]) -> Score:
    def score(prompt: Prompt, answer: str) -> float | None:
        value = function(prompt.text, answer, prompt.expected)
        if value is None:
            return None
        number = float(value)
        if not math.isfinite(number):
            raise ValueError(f"{number} is no score")
        return number

    return score


def _function(named: str) -> Callable[[str, str, str | None], Any]:
    place, _, name = named.rpartition(":")
    if not place:
        raise StudyError(f"--score {named}: write file.py:function or package.module:function.")
    try:
        module = _module_in_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
        function = getattr(module, name)
    except (ImportError, OSError, AttributeError, SyntaxError) as error:
        raise StudyError(f"--score {named}: {error}.") from error
    if not callable(function):
        raise StudyError(f"--score {named}: {name} is no function.")
    found: Callable[[str, str, str | None], Any] = function
    return found


def _module_in_file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

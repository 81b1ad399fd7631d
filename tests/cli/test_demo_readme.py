"""The README says what the code does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from otel_llm_energy import conventions
from otel_llm_energy.cli.reasons import REASONS
from otel_llm_energy.settings import OPTIONS, Option

_ROOT = Path(__file__).parents[2]
_README = (_ROOT / "README.md").read_text()


def setting_row(option: Option[Any]) -> str:
    """The row of an option in the README's table of settings."""
    return f"| `{option.name}` | `{option.variable}` | {option.meaning} | {option.allowed} |"


def reason_row(reason: str) -> str:
    """The row of a reason in the README's table of reasons."""
    return f"| `{reason}` | {REASONS[reason]} |"


def test_settings_are_in_the_readme_when_they_are_in_the_table() -> None:
    """Every option, and no other, with the words of its row."""
    assert [row for row in _README.splitlines() if "| `OTEL_LLM_ENERGY_" in row] == [setting_row(o) for o in OPTIONS]


@pytest.mark.parametrize("reason", REASONS)
def test_reason_is_in_the_readme_when_the_demo_explains_it(reason: str) -> None:
    """The README and the demo explain a reason in the same words."""
    assert reason_row(reason) in _README.splitlines()


def test_name_exists_when_the_readme_gives_it() -> None:
    """No attribute or metric that the README names was renamed or left out."""
    metrics = {value.name for value in vars(conventions).values() if isinstance(value, conventions.Metric)}
    known = metrics | {attribute.key for attribute in conventions.ATTRIBUTES}
    assert set(re.findall(r"`(llm\.energy\.[a-z_]+)`", _README)) <= known


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", *_ROOT.glob("examples/*/*.md")])
def test_file_exists_when_a_document_links_to_it(document: str | Path) -> None:
    """Links within the repository lead somewhere."""
    path = _ROOT / document
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text())
    assert [link for link in links if not (path.parent / link).exists()] == []


def test_make_has_the_target_when_a_document_names_it() -> None:
    """Commands that the documents give can be given."""
    targets = set(re.findall(r"^([a-z0-9]+):", (_ROOT / "Makefile").read_text(), re.MULTILINE))
    documents = _README + (_ROOT / "CONTRIBUTING.md").read_text()
    assert set(re.findall(r"`make ([a-z0-9]+)", documents)) <= targets

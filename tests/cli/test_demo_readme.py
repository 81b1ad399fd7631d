"""The README says what the code does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from otel_llm_energy import conventions
from otel_llm_energy.settings import OPTIONS
from tools import reference

_ROOT = Path(__file__).parents[2]
_README = (_ROOT / "README.md").read_text()
_DOCUMENTS = (
    *(_ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *_ROOT.glob("examples/*/*.md"),
    *_ROOT.glob("docs/**/*.md"),
)


def test_reference_is_current_when_it_is_written_anew() -> None:
    """Attributes, reasons, metrics and settings in the documentation are those of the code, word by word."""
    assert reference.PAGE.read_text() == reference.page()


def test_option_exists_when_the_readme_names_its_variable() -> None:
    """No setting that the README names was renamed or left out."""
    named = set(re.findall(r"\bOTEL_LLM_ENERGY_[A-Z_]+", _README))
    assert named <= {option.variable for option in OPTIONS}


def test_name_exists_when_the_readme_gives_it() -> None:
    """No attribute or metric that the README names was renamed or left out."""
    metrics = {value.name for value in vars(conventions).values() if isinstance(value, conventions.Metric)}
    known = metrics | {attribute.key for attribute in conventions.ATTRIBUTES}
    assert set(re.findall(r"`(llm\.energy\.[a-z_]+)`", _README)) <= known


@pytest.mark.parametrize("document", _DOCUMENTS, ids=lambda path: str(path.relative_to(_ROOT)))
def test_file_exists_when_a_document_links_to_it(document: Path) -> None:
    """Links within the repository lead somewhere."""
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text())
    assert [link for link in links if not (document.parent / link).exists()] == []


def test_make_has_the_target_when_a_document_names_it() -> None:
    """Commands that the documents give can be given."""
    targets = set(re.findall(r"^([a-z0-9]+):", (_ROOT / "Makefile").read_text(), re.MULTILINE))
    documents = _README + (_ROOT / "CONTRIBUTING.md").read_text()
    assert set(re.findall(r"`make ([a-z0-9]+)", documents)) <= targets


def test_output_is_left_to_the_command_when_make_sets_its_environment_up(tmp_path: Path) -> None:
    """The first ``make demo ARGS=--json > demo.json`` is JSON, too; ``true`` stands for the Python that sets it up."""
    make = ["make", "--no-print-directory"]  # it says where it is when another make runs the tests
    command = [*make, f"VENV={tmp_path}/venv", "PYTHON=true", f"{tmp_path}/venv/bin/python"]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert "Setting up" in done.stderr


def test_example_says_how_it_is_called_when_no_service_is_named() -> None:
    """The one that prints a trace, which every example's page has the reader call."""
    command = [sys.executable, "examples/joules.py"]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("Shows a service's newest trace")

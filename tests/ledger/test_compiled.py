"""The same tests hold for the ledger as Python and, in `make compiled`, as machine code."""

from __future__ import annotations

import importlib
import os
import pkgutil

import pytest

from otel_llm_energy import ledger

_WANTED = bool(os.environ.get("OTEL_LLM_ENERGY_COMPILE"))


@pytest.mark.parametrize("name", [module.name for module in pkgutil.iter_modules(ledger.__path__)])
def test_modules_are_machine_code_when_that_was_asked_for(name: str) -> None:
    """Else the tests of the compiled wheel would be those of the Python files."""
    module = importlib.import_module(f"otel_llm_energy.ledger.{name}")
    assert str(module.__file__).endswith(".py") is not _WANTED

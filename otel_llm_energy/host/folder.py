"""The folder in which processes of one user meet."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from otel_llm_energy.syscalls import Held


class BoardError(Exception):
    """Processes cannot share: what failed, where, and what to do.

    Attributes:
        reason: the slug that a span shows: ``"board-unusable"`` or ``"board-mismatch"``.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def default_folder(environ: Mapping[str, str] | None = None) -> Path:
    """Below ``$XDG_RUNTIME_DIR``, if that is the user's own, in memory; else in ``/tmp``, with the user's number."""
    runtime = (os.environ if environ is None else environ).get("XDG_RUNTIME_DIR")
    if runtime and _is_own(Path(runtime)):
        return Path(runtime) / "otel-llm-energy"
    return Path("/tmp") / f"otel-llm-energy-{os.geteuid()}"


def _is_own(path: Path) -> bool:
    """A program started by ``su`` has the variable of another user: whose folder is closed to it, or, to root, open."""
    try:
        status = path.stat()
    except OSError:
        return False
    return path.is_absolute() and stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()


class Folder:
    """A folder that is the user's alone. Its files are reached through its descriptor, whatever becomes of its path.

    Args:
        path: made with mode 0700 if it is not there.

    Raises:
        BoardError: it is somebody else's, a symbolic link, open to others, or cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            opened = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise unusable(path, error.strerror or str(error)) from error
        self._held: Held | None = Held.of(opened)
        try:
            _check(path, self._held.file)
        except BoardError:
            self.close()
            raise

    @property
    def descriptor(self) -> int:
        return -1 if self._held is None else self._held.number

    @property
    def is_ours(self) -> bool:
        """Nobody else has closed its descriptor."""
        return self._held is not None and self._held.is_ours

    def names(self) -> list[str]:
        """The files in it."""
        with os.scandir(self.descriptor) as entries:
            return [entry.name for entry in entries]

    def open(self, name: str, flags: int) -> int:
        """A descriptor of a file in it, made with mode 0600 if ``flags`` say so. Raises `OSError`."""
        return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self.descriptor)

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        try:
            os.stat(name, dir_fd=self.descriptor, follow_symlinks=False)
        except OSError:
            return False
        return True

    def rename(self, name: str, other: str) -> None:
        """Give a file another name, in place of a file that has it already. Raises `OSError`."""
        os.replace(name, other, src_dir_fd=self.descriptor, dst_dir_fd=self.descriptor)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there and can be removed."""
        try:
            os.unlink(name, dir_fd=self.descriptor)
        except OSError:
            return

    def socket_path(self, name: str) -> str:
        """A path of at most 108 bytes, which is all that a socket's address holds, however long the folder's own is."""
        return f"/proc/self/fd/{self.descriptor}/{name}"

    def close(self) -> None:
        """Give back the descriptor."""
        held, self._held = self._held, None
        if held is not None:
            held.close()


def unusable(path: Path, what: str) -> BoardError:
    """The board cannot be used: ``what`` says why."""
    return BoardError(
        "board-unusable",
        f"{path}: {what}. Processes on this host cannot share their metering and each works alone, which bills too much"
        " where they call the same server. Name a folder of your own by OTEL_LLM_ENERGY_BOARD, or set it to off if"
        " there is only one process.",
    )


def _check(path: Path, status: os.stat_result) -> None:
    if status.st_uid != os.geteuid():
        raise unusable(path, f"the folder belongs to user {status.st_uid}, not to this process's user {os.geteuid()}")
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise unusable(path, f"the folder is open to others (mode {stat.S_IMODE(status.st_mode):04o}, not 0700)")

"""What the holder has entered into its ledger, written down so that the next holder can enter it again.

Two files: the current one, and the one before it. Each begins with a snapshot of what was so when it was begun; then
everything that happened, in order. The journal of an earlier start of the machine is not continued.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from otel_llm_energy.host.folder import Folder
from otel_llm_energy.host.turns import newest, turn_name
from otel_llm_energy.machine import PROC
from otel_llm_energy.syscalls import Held

Entered = tuple[Any, ...]
"""One thing that was entered: its kind and its values."""

_LONGEST_BYTES = 1 << 20
_SNAPSHOT_END = "begin"  # what is entered after this has happened since the file was begun

_logger = logging.getLogger(__name__)


class Written(NamedTuple):
    """What a turn's holder had written down at one instant: the earlier file and the current one; nobody's is empty."""

    earlier: bytes
    current: bytes


class Journal:
    """Writes one turn's journal; not thread-safe. What cannot be written (a full disk) ends the journal, nothing else.

    Args:
        folder: of the board.
        name: of the turn.
        rules: what all processes agree on; a journal of others is not continued.
        snapshot: what is so now: entering it gives a ledger that can go on from here.
        earlier: the journal that this one continues: what is so now is what entering all of that gives.
        longest_bytes: a file that is longer becomes the earlier one, and a new one is begun.
    """

    def __init__(
        self,
        folder: Folder,
        name: str,
        rules: str,
        snapshot: Callable[[], Iterable[Entered]],
        *,
        earlier: Written | None = None,
        longest_bytes: int = _LONGEST_BYTES,
    ) -> None:
        self._folder = folder
        self._names = journal_names(name)
        self._head = _head(rules)
        self._snapshot = snapshot
        self._longest_bytes = longest_bytes
        self._lines: list[str] = []
        self._size = 0
        self._file: Held | None = None
        if earlier is None:
            self._keep(self._begin_file)
        else:
            self._keep(lambda: self._go_on(earlier))

    @property
    def works(self) -> bool:
        """Nothing has been lost: the next holder can continue from here."""
        return self._file is not None

    def note(self, entered: Entered) -> None:
        """Something was entered."""
        if self._file is not None:
            self._lines.append(json.dumps(entered, separators=(",", ":")))

    def write(self) -> None:
        """Write down what was noted: it is safe from this process's end then, though not from the machine's."""
        if self._file is not None and not self._file.is_ours:
            self.close()  # somebody else has closed it, and so the turn's lock
        if self._file is not None and self._lines:
            self._keep(self._write_lines)
        if self._file is not None and self._size > self._longest_bytes:
            self._keep(self._turn_over)

    def close(self) -> None:
        """Give back the file; it stays for the next holder."""
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _go_on(self, earlier: Written) -> None:
        """With what was read then: a holder that was only stopped may still write a line into its own files."""
        if earlier.earlier:
            self._open(self._names[0])
            self._write(_whole_lines(earlier.earlier))
            self.close()
        self._open(self._names[1])
        self._write(_whole_lines(earlier.current))

    def _open(self, name: str) -> None:
        self._file = Held.of(self._folder.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND))
        self._size = 0

    def _begin_file(self) -> None:
        self._open(self._names[1])
        head = [self._head, *self._snapshot(), (_SNAPSHOT_END,)]
        self._lines = [json.dumps(each, separators=(",", ":")) for each in head] + self._lines
        self._write_lines()

    def _write_lines(self) -> None:
        data = "".join(f"{line}\n" for line in self._lines).encode()
        self._lines = []
        self._write(data)

    def _write(self, data: bytes) -> None:
        assert self._file is not None
        if os.write(self._file.number, data) != len(data):
            raise OSError("the disk is full")
        self._size += len(data)

    def _turn_over(self) -> None:
        self.close()
        self._folder.rename(self._names[1], self._names[0])
        self._begin_file()

    def _keep(self, step: Callable[[], None]) -> None:
        try:
            step()
        except OSError as error:
            # A daemon closes all descriptors that it finds: the folder is opened anew then, and with it a journal.
            _logger.log(
                logging.WARNING if self._folder.is_ours else logging.DEBUG,
                "%s: the journal of the shared metering cannot be written (%s). If this process dies, what it has"
                " metered but not billed is lost. Free some space, or name another folder by OTEL_LLM_ENERGY_BOARD.",
                self._folder.path,
                error.strerror or error,
            )
            self._lines = []
            self.close()
            for name in self._names:
                self._folder.remove(name)  # half a journal would be entered as if it were whole


def newest_journal(folder: Folder, board: str) -> str | None:
    """The newest turn that has a journal."""
    number = newest(folder, board, "journal")
    return turn_name(board, number) if number else None


def journal_names(turn: str) -> tuple[str, str]:
    """The files of a turn's journal: the earlier one and the current one."""
    return f"{turn}.earlier", f"{turn}.journal"


def read_journal(folder: Folder, turn: str) -> Written:
    """What a turn's holder has written down."""
    return Written(*[_content(folder, name) for name in journal_names(turn)])


def entered_in(written: Written, rules: str) -> list[Entered]:
    """What a holder had entered; nothing if it is no journal of these rules and this start of the machine.

    The snapshot at the beginning of the current file says again what the earlier file gives, and is left out beside it.
    """
    earlier, current = (list(_lines_of(content, _head(rules))) for content in written)
    if not earlier:
        return [entered for entered in current if entered[0] != _SNAPSHOT_END]
    following = current[current.index((_SNAPSHOT_END,)) + 1 :] if (_SNAPSHOT_END,) in current else []
    return [entered for entered in earlier if entered[0] != _SNAPSHOT_END] + following


def _head(rules: str) -> Entered:
    return ("journal", rules, boot_id())


def _content(folder: Folder, name: str) -> bytes:
    """A file's, if it is there and this user's."""
    try:
        descriptor = folder.open(name, os.O_RDONLY)
    except OSError:
        return b""
    with os.fdopen(descriptor, "rb") as file:
        return file.read() if os.fstat(file.fileno()).st_uid == os.geteuid() else b""


def _whole_lines(content: bytes) -> bytes:
    return content[: content.rfind(b"\n") + 1]


def _lines_of(content: bytes, head: Entered) -> Iterator[Entered]:
    """What one file holds, if it has this head. A line that its writer's death broke off is the last, and left out."""
    first, *lines = content.decode("utf-8", "replace").split("\n")
    if _parsed(first) != head:
        return
    for line in lines:
        entered = _parsed(line)
        if entered is None:
            return
        yield entered


def _parsed(line: str) -> Entered | None:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return tuple(values) if isinstance(values, list) and values else None


def boot_id() -> str:
    """Names this start of the machine: the monotonic clock of another one is another clock."""
    try:
        return (PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""

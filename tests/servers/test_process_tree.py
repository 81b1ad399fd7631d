"""What a tree of processes used, on a copy of /proc in which children work, end and are waited for, tick by tick."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from otel_llm_energy.machine import TICK_NS
from otel_llm_energy.servers.activity import ProcessTree
from otel_llm_energy.servers.procfs import Procfs
from tests.support.descriptors import open_below

_ROOT, _CHILD, _GRANDCHILD, _OTHER = 10, 11, 12, 13
_PARENTS = {_ROOT: 1, _CHILD: _ROOT, _GRANDCHILD: _CHILD, _OTHER: _ROOT}


class _Used(NamedTuple):
    """Ticks of a process, and of its children that have ended and that it has waited for."""

    own: int
    waited: int = 0
    state: str = "S"
    threads: int = 1


_Processes = Mapping[int, _Used]


class _Proc:
    """The copy of /proc: the file of a process that is gone is empty, as reading it fails."""

    def __init__(self, root: Path) -> None:
        self.procfs = Procfs(root)

    def show(self, processes: _Processes) -> None:
        for pid, parent in _PARENTS.items():
            folder = self.procfs.root / str(pid)
            folder.mkdir(exist_ok=True)
            used = processes.get(pid)
            (folder / "stat").write_text("" if used is None else self._line(pid, parent, used))

    @staticmethod
    def _line(pid: int, parent: int, used: _Used) -> str:
        user, waited_user = used.own // 3, used.waited // 3  # the rest in the kernel
        times = f"{user} {used.own - user} {waited_user} {used.waited - waited_user}"
        name = "a (program)"
        return f"{pid} ({name}) {used.state} {parent} 0 0 0 0 0 0 0 0 0 {times} 20 0 {used.threads} 0 {100 + pid} 0 0\n"


@pytest.fixture
def proc(tmp_path: Path) -> _Proc:
    return _Proc(tmp_path)


def _tree(proc: _Proc, others: Sequence[int] = ()) -> ProcessTree:
    return ProcessTree(_ROOT, 100 + _ROOT, proc.procfs, None, others)


_BEFORE = {_ROOT: _Used(5, 50)}  # what the root had waited for before it was watched counts for nothing
_WITH_CHILD = {**_BEFORE, _CHILD: _Used(100)}


@pytest.mark.parametrize(
    "looks",
    [
        [(_BEFORE, 5), (_BEFORE, 5)],
        [(_WITH_CHILD, 105), ({_ROOT: _Used(6, 50), _CHILD: _Used(120)}, 126)],
        # It worked on after the last look: its parent tells.
        [(_WITH_CHILD, 105), ({_ROOT: _Used(5, 180)}, 135), ({_ROOT: _Used(5, 180)}, 135)],
        # The parent takes note later than we do, and has another child that nobody has seen.
        [(_WITH_CHILD, 105), (_BEFORE, 105), ({_ROOT: _Used(5, 180)}, 135), ({_ROOT: _Used(5, 187)}, 142)],
        # The parent ignores its children's ends, so that the kernel tells it nothing of them; then it ignores no more.
        [(_WITH_CHILD, 105), (_BEFORE, 105), (_BEFORE, 105), ({_ROOT: _Used(5, 57)}, 112)],
        # In whole ticks the parent's count may be less than what was seen.
        [(_WITH_CHILD, 105), ({_ROOT: _Used(5, 149)}, 105)],
        [(_BEFORE, 5), ({_ROOT: _Used(5, 57)}, 12)],
        # What a child has waited for is part of what its parent then waits for.
        [
            ({**_WITH_CHILD, _GRANDCHILD: _Used(30)}, 135),
            ({_ROOT: _Used(5, 50), _CHILD: _Used(100, 40)}, 145),
            ({_ROOT: _Used(5, 190)}, 145),
        ],
        # Before the child was seen it had waited for its first one.
        [(_BEFORE, 5), ({**_BEFORE, _CHILD: _Used(100, 20)}, 125), ({_ROOT: _Used(5, 170)}, 125)],
        [(_WITH_CHILD, 105), ({**_BEFORE, _CHILD: _Used(110, state="Z")}, 115), ({_ROOT: _Used(5, 160)}, 115)],
        [(_WITH_CHILD, 105), ({_ROOT: _Used(5, 50, "Z"), _CHILD: _Used(110)}, None), (_WITH_CHILD, None)],
        [({_ROOT: _Used(7, 50, "Z", 2)}, 7), ({_ROOT: _Used(8, 50, "Z", 2)}, 8)],
    ],
    ids=[
        "nothing",
        "a child works",
        "waited for at once",
        "waited for at the next look",
        "never waited for",
        "fewer ticks",
        "never seen",
        "grandchild",
        "grandchild never seen",
        "not waited for yet",
        "root ends",
        "root goes on without its main thread",
    ],
)
def test_all_that_a_tree_used_is_counted_once_when_children_end(
    looks: Sequence[tuple[_Processes, int | None]], proc: _Proc
) -> None:
    """The sum of all that the tree ever used while it was watched, as far as the kernel has told it by then."""
    proc.show(_BEFORE)
    tree = _tree(proc)
    for processes, ticks in looks:
        proc.show(processes)
        assert tree.read_ns() == (None if ticks is None else ticks * TICK_NS)
    if ticks is not None:
        tree.close()
    assert open_below(proc.procfs.root) == []


_APART = {_ROOT: _Used(5), _CHILD: _Used(100), _OTHER: _Used(7, 90)}


@pytest.mark.parametrize("at_once", [True, False], ids=["from the start", "later"])
def test_what_is_a_tree_of_its_own_counts_for_nothing_more_when_it_works_and_ends(at_once: bool, proc: _Proc) -> None:
    """It and all below it; what it used while it was ours stays, and other children are not mixed up with it."""
    proc.show(_APART)
    tree = _tree(proc, [_CHILD] if at_once else [])
    assert tree.read_ns() == (12 if at_once else 112) * TICK_NS
    proc.show({**_APART, _CHILD: _Used(110), _GRANDCHILD: _Used(30)})
    if not at_once:
        tree.disown(_CHILD)
    used = 12 if at_once else 122
    other = {_OTHER: _Used(8, 90)}
    for processes, more, why in [
        ({_ROOT: _Used(5, 3), _CHILD: _Used(200), _GRANDCHILD: _Used(60), **other}, 4, "a child that nobody has seen"),
        ({_ROOT: _Used(5, 3), **other}, 4, "the root has not waited for it yet"),
        ({_ROOT: _Used(5, 263), **other}, 4, "all that the other tree used"),
        ({_ROOT: _Used(5, 273), **other}, 14, "one more child that nobody has seen"),
    ]:
        proc.show(processes)
        assert tree.read_ns() == (used + more) * TICK_NS, why
    tree.close()


@pytest.mark.parametrize("is_seen", [True, False])
def test_what_is_below_a_tree_of_its_own_is_no_part_of_ours_whether_it_was_seen_before(
    is_seen: bool, proc: _Proc
) -> None:
    """A server that is found late may have children by then."""
    below = {**_APART, _GRANDCHILD: _Used(30)}
    proc.show(below if is_seen else _APART)
    tree = _tree(proc)
    used = 142 if is_seen else 112
    assert tree.read_ns() == used * TICK_NS
    proc.show(below)
    tree.disown(_CHILD)
    proc.show({**below, _CHILD: _Used(200), _GRANDCHILD: _Used(60)})
    assert tree.read_ns() == used * TICK_NS
    tree.close()


def test_root_stays_when_it_is_disowned_of_itself(proc: _Proc) -> None:
    """A server may be watched under two names."""
    proc.show(_APART)
    tree = _tree(proc)
    tree.disown(_ROOT)
    assert tree.read_ns() == 112 * TICK_NS
    tree.close()

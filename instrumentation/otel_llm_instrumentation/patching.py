"""Replacing a method of a client class, and putting it back without disturbing who came after."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Patch:
    """One method of one class, replaced until `undo`."""

    def __init__(self, owner: type, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        self._owner = owner
        self._name = name
        self._inherited = name not in vars(owner)
        self._original = getattr(owner, name)
        self._wrapper = wrap(self._original)
        setattr(owner, name, self._wrapper)

    def undo(self) -> None:
        """Put the original back, unless another wrapper has been put over ours: then ours passes through."""
        if vars(self._owner).get(self._name) is not self._wrapper:
            return
        if self._inherited:
            delattr(self._owner, self._name)
        else:
            setattr(self._owner, self._name, self._original)

"""Replacing a method of a client class, and putting it back without disturbing who came before or after."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any, Protocol

_Method = Callable[..., Any]


class _Place(Protocol):
    """Where a method stands."""

    def get(self) -> Any: ...

    def put(self, method: _Method) -> None: ...


class Patch:
    """One method of one class, replaced until `undo`.

    Args:
        owner, name: the class and its method.
        wrap: makes our method from the one that it is to call.
        beneath: put ours below the wrappers that others have put around the library's own method. What they do for
            the call, a span of theirs among it, is then there before ours begins, whoever was first.
    """

    def __init__(self, owner: type, name: str, wrap: Callable[[_Method], _Method], *, beneath: bool = False) -> None:
        self._top: _Place = _InClass(owner, name)
        place = list(_places(self._top))[-1] if beneath else self._top
        self._original = place.get()
        self._wrapper = wrap(self._original)
        place.put(self._wrapper)

    def undo(self) -> None:
        """Put the original back, wherever ours stands by now; where it is not to be found it passes through."""
        for place in _places(self._top):
            if place.get() is self._wrapper:
                place.put(self._original)
                return


def _places(top: _Place) -> Iterator[_Place]:
    """The places of a method and of all that it wraps, downwards."""
    place: _Place | None = top
    while place is not None:
        yield place
        place = _below(place.get())


def _below(method: object) -> _Place | None:
    """The place of what ``method`` wraps; ``None`` if it wraps nothing, or hides it."""
    wrapped = getattr(method, "__wrapped__", None)
    if wrapped is None:
        return None
    if type(method) is FunctionType:  # wrapt's wrappers say of themselves to be instances, too
        cells = [cell for cell in method.__closure__ or () if _contents(cell) is wrapped]
        return _InClosure(method, cells[0]) if cells else None
    return _InProxy(method)


class _InClass:
    """In the class, or inherited by it: then the class has one of its own only while that is another."""

    def __init__(self, owner: type, name: str) -> None:
        self._owner = owner
        self._name = name
        self._inherited = None if name in vars(owner) else getattr(owner, name)

    def get(self) -> Any:
        return vars(self._owner).get(self._name, self._inherited)

    def put(self, method: _Method) -> None:
        if method is self._inherited:
            delattr(self._owner, self._name)
        else:
            setattr(self._owner, self._name, method)


class _InProxy:
    """In a wrapper made with wrapt."""

    def __init__(self, proxy: Any) -> None:
        self._proxy = proxy

    def get(self) -> Any:
        return self._proxy.__wrapped__

    def put(self, method: _Method) -> None:
        self._proxy.__wrapped__ = method


class _InClosure:
    """In a function that wraps another, made with `functools.wraps`."""

    def __init__(self, wrapper: Any, cell: Any) -> None:
        self._wrapper = wrapper
        self._cell = cell

    def get(self) -> Any:
        return self._cell.cell_contents

    def put(self, method: _Method) -> None:
        self._cell.cell_contents = self._wrapper.__wrapped__ = method


def _contents(cell: Any) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None

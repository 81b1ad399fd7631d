"""What another thread may do amid a function, done at an instruction that the test chooses."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from types import FrameType
from typing import Any


def interleaved(
    functions: Collection[Callable[..., Any]], step: int, call: Callable[[], object], meanwhile: Callable[[], object]
) -> bool:
    """Do ``call``, and ``meanwhile`` just before instruction number ``step`` of those that ``functions`` run in it.

    Returns whether there was such a one: whoever counts ``step`` up until there is not tries all of them.
    """
    codes = {function.__code__ for function in functions}
    left = step + 1

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if frame.f_code not in codes:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            left -= 1
            if left == 0:
                meanwhile()
        return trace

    before = sys.gettrace()
    sys._getframe().f_trace_opcodes = True  # Python 3.12 looks at it here alone
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return left <= 0

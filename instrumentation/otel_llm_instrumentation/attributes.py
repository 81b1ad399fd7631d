"""Adding attributes to a span of ours without having them cleaned a second time."""

from __future__ import annotations

from typing import Any, Final

from opentelemetry.attributes import BoundedAttributes
from opentelemetry.trace import Span
from opentelemetry.util.types import AttributeValue

_KEEPS_A_DICT: Final = {"_dict", "_lock", "_immutable"} <= vars(BoundedAttributes()).keys()


def add_clean(span: Span, attributes: dict[str, AttributeValue]) -> None:
    """Add attributes to an open span that nobody else ends.

    The SDK cleans each value in Python, most of a microsecond apiece. Ours are clean from the start: text, numbers,
    and tuples of text. Where a limit may apply, or attributes are kept in another way, the SDK does it all.
    """
    kept: Any = getattr(span, "_attributes", None)
    if type(kept) is BoundedAttributes and span.is_recording() and _takes(kept, len(attributes)):
        with kept._lock:
            kept._dict.update(attributes)
    else:
        span.set_attributes(attributes)


def _takes(kept: Any, more: int) -> bool:
    """Whether so many attributes of any length would be kept as they are."""
    if not _KEEPS_A_DICT or kept._immutable or kept.max_value_len is not None:
        return False
    return kept.maxlen is None or len(kept._dict) + more <= kept.maxlen

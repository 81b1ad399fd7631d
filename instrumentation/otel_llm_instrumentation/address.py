"""Which server a client speaks to, without knowing the URL classes of its HTTP library."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}

Server = tuple[str | None, int | None]
"""Host and port; ``None`` where unknown."""


def server_of(url: str, base_url: object) -> Server:
    """Host and port of ``url``, or of ``base_url`` (a string or a URL object) where ``url`` is relative."""
    target = urlsplit(url) if "://" in url else urlsplit(base_url) if isinstance(base_url, str) else base_url
    host = getattr(target, "host", None) or getattr(target, "hostname", None)
    if not isinstance(host, str):
        return None, None
    port = getattr(target, "port", None)
    return host, port if isinstance(port, int) else _DEFAULT_PORTS.get(getattr(target, "scheme", ""))

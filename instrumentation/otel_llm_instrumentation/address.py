"""Which server a client speaks to, without knowing the URL and transport classes of its HTTP library."""

from __future__ import annotations

import os
from typing import Any, Final
from urllib.parse import unquote, urlsplit

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_SOCKET_SCHEMES: Final = ("http+unix", "https+unix")  # of requests-unixsocket: the path stands where a host would
_MOST_WRAPPERS: Final = 3  # transports within transports, for retries and the like

Server = tuple[str | None, int | None]
"""Host and port; of a Unix socket its absolute path (or ``@`` and its abstract name), no port. ``None``: unknown."""


def server_of(url: str, base_url: object, http_client: object = None) -> Server:
    """Where a request goes: to ``url``, or to ``base_url`` (a string or a URL object) where ``url`` is relative.

    Args:
        http_client: of httpx or httpx2, or a session of aiohttp. It may lead to a Unix socket, whatever the URL says.
    """
    path = _socket_of(http_client, base_url) if http_client is not None else None
    if path is not None:
        return path, None
    target = urlsplit(url) if "://" in url else urlsplit(base_url) if isinstance(base_url, str) else base_url
    scheme = getattr(target, "scheme", "")
    if scheme in _SOCKET_SCHEMES:
        return socket_path(unquote(getattr(target, "netloc", ""))), None
    host = getattr(target, "host", None) or getattr(target, "hostname", None)
    if not isinstance(host, str) or scheme not in _DEFAULT_PORTS:
        return None, None
    port = getattr(target, "port", None)
    return host, port if isinstance(port, int) else _DEFAULT_PORTS[scheme]


def socket_path(path: object) -> str | None:
    """A Unix socket's path as every process can read it; ``None`` if it is none."""
    if not isinstance(path, (str, bytes, os.PathLike)) or not path:
        return None
    text = os.fsdecode(path)
    return f"@{text[1:]}" if text.startswith("\0") else os.path.abspath(text)  # noqa: PTH100 - an URL's is no Path


def _socket_of(http_client: Any, url: object) -> str | None:
    """The Unix socket through which a client reaches ``url``; ``None`` if it goes by TCP."""
    transport_for = getattr(http_client, "_transport_for_url", None)
    if transport_for is None:
        return socket_path(getattr(getattr(http_client, "connector", None), "path", None))
    return socket_path(_uds(transport_for(url), _MOST_WRAPPERS))


def _uds(transport: Any, most_wrappers: int) -> object:
    pool = getattr(transport, "_pool", None)
    if pool is not None:
        return getattr(pool, "_uds", None)
    if most_wrappers:
        for inner in getattr(transport, "__dict__", {}).values():
            if hasattr(inner, "handle_request") or hasattr(inner, "handle_async_request"):
                return _uds(inner, most_wrappers - 1)
    return None

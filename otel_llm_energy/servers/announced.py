"""The servers that the environment names to the clients: they will be called, so they are worth finding before that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final
from urllib.parse import urlsplit

_URL_VARIABLES: Final = ("OPENAI_BASE_URL", "OPENAI_API_BASE")
URL_PORTS: Final = {"http": 80, "https": 443}
"""Where a URL names none."""
OLLAMA_PORT: Final = 11434
"""Ollama's own."""


def announced(environ: Mapping[str, str]) -> Iterator[tuple[str, int]]:
    """Host and port of each server in ``OPENAI_BASE_URL``, ``OPENAI_API_BASE`` (LangChain's) and ``OLLAMA_HOST``.

    What cannot be read is left out: the client will complain of it.
    """
    for variable in _URL_VARIABLES:
        yield from _server(environ.get(variable, ""), None)
    ollama = environ.get("OLLAMA_HOST", "").strip()
    if ollama:
        yield from _server(ollama, None) if "://" in ollama else _server(f"http://{ollama}", OLLAMA_PORT)


def _server(url: str, default_port: int | None) -> Iterator[tuple[str, int]]:
    try:
        parts = urlsplit(url.strip())
        host, port = parts.hostname, parts.port
    except ValueError:
        return
    if parts.scheme in URL_PORTS and parts.netloc:
        yield host or "127.0.0.1", port or default_port or URL_PORTS[parts.scheme]

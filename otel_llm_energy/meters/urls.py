"""Meters written as one line of text."""

from __future__ import annotations

from urllib.parse import unquote, urldefrag, urlsplit

from otel_llm_energy.meters.base import Meter
from otel_llm_energy.meters.scaphandre import ScaphandreMeter
from otel_llm_energy.meters.scaphandre_stream import ScaphandreStream


def meter_at(url: str) -> Meter:
    """The meter that a URL names.

    - ``http://host:8080/metrics``: `ScaphandreMeter`, the exporter's page;
    - ``file:///run/scaphandre.json``: `ScaphandreStream`, what ``scaphandre json --file`` writes.

    After a ``#`` may stand which of an exporter's processes is the server: ``http://host:8080/metrics#ollama``. That
    is never sent.

    Raises:
        ValueError: it is no such URL. What was given is not shown: it may hold a password.
    """
    source, fragment = urldefrag(url)
    process = unquote(fragment) or None
    scheme = source.partition(":")[0]
    if scheme == "file":
        return ScaphandreStream(_path(url))
    return ScaphandreMeter(source, process=process)


def _path(url: str) -> str:
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/") or parts.fragment:
        raise ValueError("A file's url must look like file:///run/scaphandre.json; what was given does not.")
    return unquote(parts.path)

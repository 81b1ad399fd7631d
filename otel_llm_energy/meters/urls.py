"""Meters of other hosts, written as one line of text."""

from __future__ import annotations

from urllib.parse import unquote, urldefrag

from otel_llm_energy.meters.base import ProcessMeter
from otel_llm_energy.meters.scaphandre import ScaphandreMeter


def meter_at(spec: str) -> ProcessMeter:
    """The meter that a URL names.

    ``http://host:8080/metrics`` is a Scaphandre exporter. After a ``#`` stands which of its processes is the server:
    ``http://host:8080/metrics#ollama``; it is never sent.

    Raises:
        ValueError: it is no such URL.
    """
    url, process = urldefrag(spec)
    return ScaphandreMeter(url, process=unquote(process) or None)

"""Meters written as one line of text."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, unquote, urldefrag, urlsplit

from otel_llm_energy.meters.base import Meter
from otel_llm_energy.meters.prometheus import PrometheusMeter
from otel_llm_energy.meters.scaphandre import ScaphandreMeter
from otel_llm_energy.meters.scaphandre_stream import ScaphandreStream

_LABEL_NAME = re.compile("[A-Za-z_][A-Za-z0-9_.]*")


def meter_at(url: str) -> Meter:
    """The meter that a URL names.

    - ``http://host:8080/metrics``: `ScaphandreMeter`, the exporter's page;
    - ``prometheus+http://host:9090?instance=gpu-1:8080``: `PrometheusMeter`; the query is the labels of the host;
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
    if scheme in ("prometheus+http", "prometheus+https"):
        address, _, query = source.removeprefix("prometheus+").partition("?")
        return PrometheusMeter(address, labels=_labels(query), process=process)
    return ScaphandreMeter(source, process=process)


def _labels(query: str) -> dict[str, str]:
    pairs = parse_qsl(query, keep_blank_values=True)
    if any(not _LABEL_NAME.fullmatch(name) or not value for name, value in pairs):
        raise ValueError("The query of a Prometheus' url must be labels of the host, such as ?instance=gpu-1:8080.")
    return dict(pairs)


def _path(url: str) -> str:
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/") or parts.fragment:
        raise ValueError("A file's url must look like file:///run/scaphandre.json; what was given does not.")
    return unquote(parts.path)

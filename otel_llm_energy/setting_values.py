"""What the options may be: each check makes the value that is used of a keyword's, or refuses it with an error.

An error is any of `REFUSALS`; its words reach nobody, since the value may hold a password.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from otel_llm_energy.meters.base import Meter
from otel_llm_energy.meters.discovery import NAMES as METER_NAMES
from otel_llm_energy.meters.urls import meter_at
from otel_llm_energy.servers.figures import Selector
from otel_llm_energy.tracing.directory import Address

CLIENTS: Final = ("openai", "ollama", "http", "langchain")
REFUSALS: Final = (ValueError, TypeError, OverflowError, AttributeError)
"""What a check may raise of a value: of a number as long as a book, of an address that is no text."""

# Said by whoever means off or auto; each would be a folder of that name wherever the app happens to start.
_NO_PATHS: Final = ("none", "null", "no", "false", "disabled", "0", "on", "yes", "true", "enabled", "1", "default")

_T = TypeVar("_T")


def as_meters(value: Any) -> Sequence[str | Meter]:
    """A name, a URL or a meter, or several of these."""
    given = [value] if isinstance(value, str) or not isinstance(value, Sequence) else list(value)
    if not given or not all(_names_meter(one) if isinstance(one, str) else _is_meter(one) for one in given):
        raise ValueError(value)
    return given


def _names_meter(text: str) -> bool:
    return text in (*METER_NAMES, "auto") or ("://" in text and _is_meter(meter_at(text)))


def _is_meter(value: object) -> bool:
    # Not by isinstance, which from Python 3.12 on does not see what a user's meter passes on by __getattr__.
    return all(hasattr(value, name) for name in ("name", "pace", "open", "read", "close"))


def as_servers(value: Any) -> Mapping[str, str | Meter]:
    """By address: a process of this machine, a meter, or the URL of one."""
    servers = dict(value)
    for address, meter in servers.items():
        Address.parse(address)
        if not (_names_server(meter) if isinstance(meter, str) else _meters_server(meter)):
            raise ValueError(meter)
    return servers


def _meters_server(value: object) -> bool:
    process = getattr(value, "process", None)
    return _is_meter(value) and (process is None or bool(Selector.parse(process)))


def _names_server(text: str) -> bool:
    kind, _, value = text.partition(":")
    if kind in ("pid", "name"):
        return value.isdecimal() if kind == "pid" else bool(value)
    return _meters_server(meter_at(text))


def as_clients(value: Any) -> Sequence[str]:
    """``"auto"``, or some of `CLIENTS`."""
    if value == "auto":
        return CLIENTS
    names = [value] if isinstance(value, str) else list(value)
    if not set(names) <= set(CLIENTS):
        raise ValueError(value)
    return names


def one_of(choices: Sequence[_T]) -> Callable[[Any], _T]:
    """The check of an option that has one of a few values."""

    def check(value: Any) -> _T:
        if value not in choices:
            raise ValueError(value)
        return choices[choices.index(value)]

    return check


def as_seconds(value: Any) -> float:
    """From 0 to an hour."""
    return _up_to(3600, value)


def as_watts(value: Any) -> Mapping[str, float]:
    """``20`` for each CPU package (or the host), or watts by channel: ``package-0=18,package-0/dram=2``."""
    if isinstance(value, str):
        pairs = [pair.rpartition("=") for pair in value.split(",") if pair.strip()]
        watts = {name.strip(): float(number) for name, _, number in pairs}
        if len(watts) < len(pairs):  # 18,5 is no decimal number, nor may a channel have two
            raise ValueError(value)
    elif isinstance(value, Mapping):
        watts = {str(name): float(number) for name, number in value.items()}
    else:
        watts = {"": float(value)}
    if any(not 0 <= number < 100_000 for number in watts.values()) or ("" in watts and len(watts) > 1):
        raise ValueError(value)
    return watts


def as_http_url(value: Any) -> str:
    """A URL that a client can call. Raises `ValueError`."""
    parts = urlsplit(str(value))
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
        raise ValueError(value)
    return str(value)


def as_path_or_word(value: Any) -> str:
    """``"auto"``, ``"off"``, or a path with the home folder put in."""
    path = os.fspath(value)
    if not isinstance(path, str) or not path.strip() or path.endswith("/") or path.lower() in _NO_PATHS:
        raise ValueError(value)
    return path.lower() if path.lower() in ("auto", "off") else str(as_path(path))


def as_folder_or_word(value: Any) -> str:
    """The same of a folder in which processes meet, whatever the working folder of each is."""
    path = as_path_or_word(value)
    if path not in ("auto", "off") and not Path(path).is_absolute():
        raise ValueError(value)
    return path


def as_path(value: Any) -> Path:
    """A path with the home folder put in."""
    try:
        path = Path(value).expanduser()
    except RuntimeError as error:  # a ~ where the user has no home, as in some containers
        raise ValueError(value) from error
    if b"\0" in os.fsencode(path):  # no file system takes it; nor what cannot be encoded
        raise ValueError(value)
    return path


def as_grams(value: Any) -> float:
    """Of CO2 equivalent per kWh."""
    return _up_to(10_000, value)


def _up_to(most: float, value: Any) -> float:
    number = float(value)
    if not 0 <= number <= most:
        raise ValueError(value)
    return number


def as_words(text: str) -> list[str]:
    """The words between commas, of a variable."""
    return [word.strip() for word in text.split(",") if word.strip()]


def as_pairs(text: str) -> Mapping[str, str]:
    """``ollama:11434=http://ollama:8080/metrics#ollama,localhost:8080=name:llama-server``."""
    pairs = [pair.partition("=") for pair in as_words(text)]
    servers = {address.strip(): server.strip() for address, _, server in pairs}
    if len(servers) < len(pairs):  # of an address that is there twice only one would be heeded
        raise ValueError(text)
    return servers

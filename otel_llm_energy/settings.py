"""Every option in one table: keyword, environment variable, what is allowed, default and meaning."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, Generic, TypeVar
from urllib.parse import urlsplit

from otel_llm_energy.conventions import TIERS, Tier
from otel_llm_energy.ledger.sweep import BATCH_SHARINGS, IDLE_SHARINGS, BatchSharing, IdleSharing
from otel_llm_energy.meters.base import Meter
from otel_llm_energy.meters.discovery import NAMES as METER_NAMES
from otel_llm_energy.meters.urls import meter_at
from otel_llm_energy.servers.figures import Selector
from otel_llm_energy.tracing.directory import Address

METER_URLS: Final = (
    "http://... of a Scaphandre exporter, prometheus+http://... of a Prometheus that scrapes one, file:///... that "
    "scaphandre json writes"
)
CLIENTS: Final = ("openai", "ollama", "http", "langchain")
# Said by whoever means off or auto; each would be a folder of that name wherever the app happens to start.
_NO_PATHS: Final = ("none", "null", "no", "false", "disabled", "0", "on", "yes", "true", "enabled", "1", "default")
_PREFIX: Final = "OTEL_LLM_ENERGY_"
_LIKE: Final = 0.75  # of difflib's ratio: DETIAL is like DETAIL, and CACHE, which is no option but exists, like none

# What a check may raise of a value: of a number as long as a book, of an address that is no text.
_REFUSALS: Final = (ValueError, TypeError, OverflowError, AttributeError)

_logger = logging.getLogger(__name__)
_T = TypeVar("_T")


class SettingError(ValueError):
    """An option has a value that it cannot have; the message names the option, the value and what is allowed."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The options after arguments, environment and defaults were put together; see `OPTIONS` for each."""

    meters: Sequence[str | Meter]
    servers: Mapping[str, str | Meter]
    clients: Sequence[str]
    detail: Tier
    idle: IdleSharing
    share: BatchSharing
    max_hold: float | None
    idle_watts: Mapping[str, float]
    idle_cache: str
    board: str
    scaphandre_url: str | None
    powercap_root: Path | None
    grid_intensity: float | None


@dataclass(frozen=True, slots=True)
class Option(Generic[_T]):
    """One row of the table.

    Attributes:
        name: the keyword; the variable is its name in capitals after ``OTEL_LLM_ENERGY_``.
        default: used where nothing is given.
        allowed: what is allowed, in words.
        meaning: what it does, with its unit.
        check: a value given as keyword -> the value to use; raises `ValueError`.
        read: the same for the text of a variable.
        common: processes that share their metering must have the same value.
    """

    name: str
    default: _T
    allowed: str
    meaning: str
    check: Callable[[Any], _T]
    read: Callable[[str], _T]
    common: bool = True

    @property
    def variable(self) -> str:
        return _PREFIX + self.name.upper()


def _meters(value: Any) -> Sequence[str | Meter]:
    given = [value] if isinstance(value, str) or not isinstance(value, Sequence) else list(value)
    if not given or not all(_names_meter(one) if isinstance(one, str) else _is_meter(one) for one in given):
        raise ValueError(value)
    return given


def _names_meter(text: str) -> bool:
    return text in (*METER_NAMES, "auto") or ("://" in text and _is_meter(meter_at(text)))


def _is_meter(value: object) -> bool:
    # Not by isinstance, which from Python 3.12 on does not see what a user's meter passes on by __getattr__.
    return all(hasattr(value, name) for name in ("name", "pace", "open", "read", "close"))


def _servers(value: Any) -> Mapping[str, str | Meter]:
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


def _clients(value: Any) -> Sequence[str]:
    if value == "auto":
        return CLIENTS
    names = [value] if isinstance(value, str) else list(value)
    if not set(names) <= set(CLIENTS):
        raise ValueError(value)
    return names


def _one_of(choices: Sequence[_T]) -> Callable[[Any], _T]:
    def check(value: Any) -> _T:
        if value not in choices:
            raise ValueError(value)
        return choices[choices.index(value)]

    return check


def _seconds(value: Any) -> float:
    seconds = float(value)
    if not 0 <= seconds <= 3600:
        raise ValueError(value)
    return seconds


def _watts(value: Any) -> Mapping[str, float]:
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


def http_url(value: Any) -> str:
    """A URL that a client can call. Raises `ValueError`."""
    parts = urlsplit(str(value))
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
        raise ValueError(value)
    return str(value)


def _path_or_word(value: Any) -> str:
    path = os.fspath(value)
    if not isinstance(path, str) or not path.strip() or path.endswith("/") or path.lower() in _NO_PATHS:
        raise ValueError(value)
    return path.lower() if path.lower() in ("auto", "off") else str(_path(path))


def _path(value: Any) -> Path:
    try:
        path = Path(value).expanduser()
    except RuntimeError as error:  # a ~ where the user has no home, as in some containers
        raise ValueError(value) from error
    if b"\0" in os.fsencode(path):  # no file system takes it; nor what cannot be encoded
        raise ValueError(value)
    return path


def _grams(value: Any) -> float:
    grams = float(value)
    if not 0 <= grams <= 10_000:
        raise ValueError(value)
    return grams


def _list(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _pairs(text: str) -> Mapping[str, str]:
    """``ollama:11434=http://ollama:8080/metrics#ollama,localhost:8080=name:llama-server``."""
    pairs = [pair.partition("=") for pair in _list(text)]
    servers = {address.strip(): server.strip() for address, _, server in pairs}
    if len(servers) < len(pairs):  # of an address that is there twice only one would be heeded
        raise ValueError(text)
    return servers


OPTIONS: Final[tuple[Option[Any], ...]] = (
    Option(
        "meters",
        ["auto"],
        f"auto, one of {', '.join(METER_NAMES)}, {METER_URLS}, a meter such as ScaphandreMeter(url=...), or a list of "
        "these",
        "Where joules come from. auto takes the best that works on this machine.",
        _meters,
        lambda text: _meters(_list(text)),
    ),
    Option(
        "servers",
        {},
        "{address: server}, in the variable ADDRESS=SERVER,... An address is 'host:port', 'host', ':port' (without "
        "http://), or the path of a Unix socket. A server is 'pid:4711', 'name:ollama', a meter, or its URL and, after "
        f"a #, which of its processes the server is: http://host:8080/metrics#ollama ({METER_URLS})",
        "Who answers at an address, where it is not the process that listens there on this machine. The address is "
        "written as the client calls it: localhost is not 127.0.0.1.",
        _servers,
        lambda text: _servers(_pairs(text)),
    ),
    Option(
        "clients",
        CLIENTS,
        f"auto, or a list of {', '.join(CLIENTS)}; an empty list for none",
        "Which client libraries are instrumented.",
        _clients,
        lambda text: _clients("auto" if text.strip() == "auto" else _list(text)),
        common=False,
    ),
    Option(
        "detail",
        "standard",
        ", ".join(TIERS),
        "How many attributes a span gets.",
        _one_of(TIERS),
        _one_of(TIERS),
        common=False,
    ),
    Option(
        "idle",
        "time",
        ", ".join(IDLE_SHARINGS),
        "How idle energy is shared: by time at work, by activity, or not at all.",
        _one_of(IDLE_SHARINGS),
        _one_of(IDLE_SHARINGS),
    ),
    Option(
        "share",
        "equal-time",
        ", ".join(BATCH_SHARINGS),
        "How calls at work at the same instant share what is above idle: equally, or by the tokens of their phase.",
        _one_of(BATCH_SHARINGS),
        _one_of(BATCH_SHARINGS),
    ),
    Option(
        "max_hold",
        None,
        "seconds from 0 to 3600; 0 never holds a span",
        "A finished span waits at most so long for its energy, s. By default 30, and longer where readings are rarer.",
        _seconds,
        _seconds,
    ),
    Option(
        "idle_watts",
        {},
        "watts of each CPU package (or the host), or by channel: package-0=18,package-0/dram=2",
        "Idle power that is known beforehand, W, of this machine's counters and of those in servers= alike; otherwise "
        "it is learned.",
        _watts,
        _watts,
    ),
    Option(
        "idle_cache",
        "auto",
        "auto (a file in the user's cache folder), off, or the path of a file",
        "Where learned idle power is kept, so that the next run has it from its first call.",
        _path_or_word,
        _path_or_word,
        common=False,
    ),
    Option(
        "board",
        "auto",
        "auto (a folder in the user's runtime directory), off, or the path of a folder",
        "Where processes of this host share one metering; off: this is the only process that calls the servers.",
        _path_or_word,
        _path_or_word,
        common=False,
    ),
    Option(
        "scaphandre_url",
        None,
        "an http or https address such as http://localhost:8080/metrics",
        "The page of Scaphandre's Prometheus exporter.",
        http_url,
        http_url,
    ),
    Option(
        "powercap_root",
        None,
        "the folder that holds intel-rapl:0",
        "Where RAPL counters are read; a folder that is named here is trusted in a virtual machine, too.",
        _path,
        _path,
    ),
    Option(
        "grid_intensity",
        None,
        "grams of CO2 equivalent per kWh, 0 to 10000",
        "If given, spans of detail full carry llm.energy.co2e_grams.",
        _grams,
        _grams,
        common=False,
    ),
)


def settings(environ: Mapping[str, str] | None = None, **arguments: Any) -> Settings:
    """Put the options together: argument over variable over default.

    Args:
        environ: the environment; the process's if ``None``.
        arguments: options given as keywords; ``None`` counts as not given.

    Raises:
        SettingError: a keyword has a value that is not allowed. A wrong variable only warns.
        TypeError: there is no option of that name.
    """
    unknown = ", ".join(sorted(arguments.keys() - {option.name for option in OPTIONS}))
    if unknown:
        raise TypeError(f"{unknown}: no such option. There are {', '.join(option.name for option in OPTIONS)}.")
    environ = os.environ if environ is None else environ
    _warn_of_misspelt(environ)
    values = {option.name: _value(option, arguments.get(option.name), environ) for option in OPTIONS}
    return Settings(**{field.name: values[field.name] for field in fields(Settings)})


def _warn_of_misspelt(environ: Mapping[str, str]) -> None:
    names = [option.variable.removeprefix(_PREFIX) for option in OPTIONS]
    for variable in environ:
        name = variable.removeprefix(_PREFIX)
        meant = get_close_matches(name, names, n=1, cutoff=_LIKE) if variable.startswith(_PREFIX) else []
        if meant and name not in names:
            _logger.warning("%s is no option and does nothing: is %s meant?", variable, _PREFIX + meant[0])


def _value(option: Option[_T], argument: object, environ: Mapping[str, str]) -> _T:
    if argument is not None:
        try:
            return option.check(argument)
        except _REFUSALS:
            # Without its cause, which may quote a password.
            raise SettingError(_complaint(option, option.name, argument)) from None
    text = environ.get(option.variable, "").strip()
    if text:
        try:
            return option.read(text)
        except _REFUSALS:
            instead = "It is left out" if option.default is None else f"Using {option.default!r}"
            _logger.warning("%s %s.", _complaint(option, option.variable, text), instead)
    return option.default


def _complaint(option: Option[_T], name: str, value: object) -> str:
    # A user part or a query: either may hold a secret.
    shown = "a value that may hold credentials" if {"@", "?"} & set(str(value)) else repr(value)
    return f"{name} cannot be {shown}. Allowed: {option.allowed}."

"""Every option in one table: keyword, environment variable, what is allowed, default and meaning."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from otel_llm_energy import setting_values as values
from otel_llm_energy.conventions import TIERS, Tier
from otel_llm_energy.ledger.sweep import BATCH_SHARINGS, IDLE_SHARINGS, BatchSharing, IdleSharing
from otel_llm_energy.meters.base import Meter
from otel_llm_energy.meters.discovery import NAMES as METER_NAMES

METER_URLS: Final = (
    "http://... of a Scaphandre exporter, prometheus+http://... of a Prometheus that scrapes one, file:///... that "
    "scaphandre json writes"
)
_PREFIX: Final = "OTEL_LLM_ENERGY_"
_LIKE: Final = 0.75  # of difflib's ratio: DETIAL is like DETAIL, and CACHE, which is no option but exists, like none

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
        check: a value given as keyword -> the value to use; raises one of `setting_values.REFUSALS`.
        read: the same for the text of a variable.
        common: processes that share their metering must have the same value, where their meters heed it.
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


OPTIONS: Final[tuple[Option[Any], ...]] = (
    Option(
        "meters",
        ["auto"],
        f"auto, one of {', '.join(METER_NAMES)}, {METER_URLS}, a meter such as ScaphandreMeter(url=...), or a list of "
        "these",
        "Where joules come from. auto takes the best that works on this machine.",
        values.as_meters,
        lambda text: values.as_meters(values.as_words(text)),
    ),
    Option(
        "servers",
        {},
        "{address: server}, in the variable ADDRESS=SERVER,... An address is 'host:port', 'host', ':port' (without "
        "http://), or the path of a Unix socket. A server is 'pid:4711', 'name:ollama', a meter, or its URL and, after "
        f"a #, which of its processes the server is: http://host:8080/metrics#ollama ({METER_URLS})",
        "Who answers at an address, where it is not the process that listens there on this machine. The address is "
        "written as the client calls it: localhost is not 127.0.0.1.",
        values.as_servers,
        lambda text: values.as_servers(values.as_pairs(text)),
    ),
    Option(
        "clients",
        values.CLIENTS,
        f"auto, or a list of {', '.join(values.CLIENTS)}; an empty list for none",
        "Which client libraries are instrumented.",
        values.as_clients,
        lambda text: values.as_clients("auto" if text.strip() == "auto" else values.as_words(text)),
        common=False,
    ),
    Option(
        "detail",
        "standard",
        ", ".join(TIERS),
        "How many attributes a span gets.",
        values.one_of(TIERS),
        values.one_of(TIERS),
        common=False,
    ),
    Option(
        "idle",
        "time",
        ", ".join(IDLE_SHARINGS),
        "How idle energy is shared: by time at work, by activity, or not at all.",
        values.one_of(IDLE_SHARINGS),
        values.one_of(IDLE_SHARINGS),
    ),
    Option(
        "share",
        "equal-time",
        ", ".join(BATCH_SHARINGS),
        "How calls at work at the same instant share what is above idle: equally, or by the tokens of their phase.",
        values.one_of(BATCH_SHARINGS),
        values.one_of(BATCH_SHARINGS),
    ),
    Option(
        "max_hold",
        None,
        "seconds from 0 to 3600; 0 never holds a span",
        "A finished span waits at most so long for its energy, s. By default 30, and longer where readings are rarer.",
        values.as_seconds,
        values.as_seconds,
    ),
    Option(
        "idle_watts",
        {},
        "watts of each CPU package (or the host), or by channel: package-0=18,package-0/dram=2",
        "Idle power that is known beforehand, W, of this machine's counters and of those in servers= alike; otherwise "
        "it is learned.",
        values.as_watts,
        values.as_watts,
    ),
    Option(
        "idle_cache",
        "auto",
        "auto (a file in the user's cache folder), off, or the path of a file",
        "Where learned idle power is kept, so that the next run has it from its first call.",
        values.as_path_or_word,
        values.as_path_or_word,
        common=False,
    ),
    Option(
        "board",
        "auto",
        "auto (a folder in the user's runtime directory), off, or the path of a folder, from / or ~ on",
        "Where processes of this host share one metering; off: this is the only process that calls the servers.",
        values.as_folder_or_word,
        values.as_folder_or_word,
        common=False,
    ),
    Option(
        "scaphandre_url",
        None,
        "an http or https address such as http://localhost:8080/metrics",
        "The page of Scaphandre's Prometheus exporter.",
        values.as_http_url,
        values.as_http_url,
    ),
    Option(
        "powercap_root",
        None,
        "the folder that holds intel-rapl:0",
        "Where RAPL counters are read; a folder that is named here is trusted in a virtual machine, too.",
        values.as_path,
        values.as_path,
    ),
    Option(
        "grid_intensity",
        None,
        "grams of CO2 equivalent per kWh, 0 to 10000",
        "If given, spans of detail full carry llm.energy.co2e_grams.",
        values.as_grams,
        values.as_grams,
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
    chosen = {option.name: _value(option, arguments.get(option.name), environ) for option in OPTIONS}
    return Settings(**chosen)


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
        except values.REFUSALS:
            # Without its cause, which may quote a password.
            raise SettingError(_complaint(option, option.name, argument)) from None
    text = environ.get(option.variable, "").strip()
    if text:
        try:
            return option.read(text)
        except values.REFUSALS:
            instead = "It is left out" if option.default is None else f"Using {option.default!r}"
            _logger.warning("%s %s.", _complaint(option, option.variable, text), instead)
    return option.default


def _complaint(option: Option[_T], name: str, value: object) -> str:
    # A user part or a query: either may hold a secret.
    shown = "a value that may hold credentials" if {"@", "?"} & set(str(value)) else repr(value)
    return f"{name} cannot be {shown}. Allowed: {option.allowed}."

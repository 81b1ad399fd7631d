"""Options: as keyword and as variable, right and wrong, and which of them wins."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import otel_llm_energy
from otel_llm_energy.meters import CpuEstimate, ScaphandreMeter
from otel_llm_energy.settings import OPTIONS, Option, SettingError, settings

BY_NAME: Mapping[str, Option[Any]] = {option.name: option for option in OPTIONS}
SECRET = "s3cr3t"

# A value that is allowed as keyword, the same as the text of a variable, and what comes of both.
RIGHT: Mapping[str, tuple[object, str, object]] = {
    "meters": (["scaphandre", "rapl"], "scaphandre, rapl", ["scaphandre", "rapl"]),
    "servers": ({"ollama:11434": "pid:4711"}, "ollama:11434=pid:4711", {"ollama:11434": "pid:4711"}),
    "clients": (["ollama"], "ollama", ["ollama"]),
    "detail": ("full", "full", "full"),
    "idle": ("activity", "activity", "activity"),
    "share": ("phase-tokens", "phase-tokens", "phase-tokens"),
    "max_hold": (2.5, "2.5", 2.5),
    "idle_watts": ({"package-0": 18, "package-0/dram": 2}, "package-0=18,package-0/dram=2", None),
    "idle_cache": (Path("/tmp/idle.json"), "/tmp/idle.json", "/tmp/idle.json"),
    "board": (Path("/run/board"), "/run/board", "/run/board"),
    "scaphandre_url": ("http://h:8080/metrics", "http://h:8080/metrics", "http://h:8080/metrics"),
    "powercap_root": (Path("/tree"), "/tree", Path("/tree")),
    "grid_intensity": (350, "350", 350.0),
}

WRONG: Mapping[str, tuple[tuple[object, str], ...]] = {
    "meters": (
        ("raplx", "raplx"),
        ("file://x/y", "file://x/y"),
        ("ftp://x", "rapl,ftp://x"),
        ([], ","),
        (["rapl", 5], "rapl,5"),
    ),
    "servers": (
        ({"ollama:11434": "ftp://x"}, "ollama:11434=ftp://x"),
        ({"ollama:x": "pid:1"}, "ollama:x=pid:1"),
        ({"ollama:11434": "pid:me"}, "ollama:11434=pid:me"),
        ({"ollama:11434": "name:"}, "ollama:11434=name:"),
        ({"ollama:11434": "http://"}, "ollama:11434=http://"),
        ({"ollama:11434": "http://x:80/m#program:y"}, "ollama:11434=http://x:80/m#program:y"),
        ({"ollama:11434": 5}, "ollama:11434"),
        ({"http://ollama:11434/v1": "pid:1"}, "http://ollama:11434/v1=pid:1"),
        ({"ollama:114340": "pid:1"}, "ollama:114340=pid:1"),
        ({None: "pid:1"}, "ollama:11434=pid:1,ollama:11434=pid:2"),
    ),
    "clients": ((["anthropic"], "anthropic"), (5, "5")),
    "detail": (("verbose", "verbose"),),
    "idle": (("sleep", "sleep"),),
    "share": (("tokens", "tokens"),),
    "max_hold": ((-1, "-1"), ("soon", "soon"), (float("nan"), "nan"), (4000, "4000"), (10**400, "inf")),
    "idle_watts": (
        (-5, "-5"),
        ({"package-0": "x"}, "package-0=x"),
        ({"package-0": 10**400}, "package-0=1e400"),
        ("5,package-0=3", "5,package-0=3"),
        ("18,5", "18,5"),
    ),
    "idle_cache": ((5, "/a/folder/"), ("/a/folder/", "/a/folder/"), ("false", "false")),
    "board": (
        (5, ""),
        ("/a/folder/", "/a/folder/"),
        (Path("energy/board"), "energy/board"),  # another one for each working folder
        ("./board", "board"),
        ("None", "None"),
        ("/a\0b", ""),
        ("/\ud800", ""),
        ("0", "0"),
        ("~nobody-of-this-name/x", "~nobody-of-this-name/x"),
    ),
    "scaphandre_url": (
        ("localhost:8080", "localhost:8080"),
        ("http://", "http://"),
        ("http://h:0", "http://h:0"),
        (8080, "8080"),
    ),
    "powercap_root": ((5, ""), ("~nobody-of-this-name/x", "~nobody-of-this-name/x")),
    "grid_intensity": ((-1, "-1"), ("green", "green"), (10_001, "10001")),
}


def wrong_keywords() -> list[Any]:
    return [pytest.param(name, value, id=f"{name}={value}") for name, pairs in WRONG.items() for value, _ in pairs]


def wrong_variables() -> list[Any]:
    return [pytest.param(name, text, id=f"{name}={text}") for name, pairs in WRONG.items() for _, text in pairs if text]


def test_every_option_is_in_the_tables_of_this_file() -> None:
    """An option that is added is tested, too."""
    assert set(BY_NAME) == set(RIGHT) == set(WRONG)


@pytest.mark.parametrize("name", list(RIGHT))
def test_keyword_and_variable_mean_the_same_when_right(name: str) -> None:
    """What can be said in code can be said in the environment."""
    value, text, expected = RIGHT[name]
    by_keyword = getattr(settings({}, **{name: value}), name)
    by_variable = getattr(settings({BY_NAME[name].variable: text}), name)
    assert by_keyword == by_variable
    if expected is not None:
        assert by_variable == expected


@pytest.mark.parametrize("name", list(RIGHT))
def test_keyword_wins_over_variable_and_variable_over_default(name: str) -> None:
    """Argument, then environment, then default."""
    value, text, _ = RIGHT[name]
    default = getattr(settings({}), name)
    assert default == BY_NAME[name].default
    wrong_text = WRONG[name][0][1]
    assert getattr(settings({BY_NAME[name].variable: wrong_text}, **{name: value}), name) != default
    assert getattr(settings({BY_NAME[name].variable: text}), name) != default
    assert getattr(settings({BY_NAME[name].variable: "  "}), name) == default


@pytest.mark.parametrize(("name", "value"), wrong_keywords())
def test_wrong_keyword_raises_one_error_with_option_value_and_allowed(name: str, value: object) -> None:
    """The message is enough to put it right."""
    with pytest.raises(SettingError) as error:
        settings({}, **{name: value})
    message = str(error.value)
    assert message.startswith(f"{name} cannot be ")
    assert repr(value) in message
    assert BY_NAME[name].allowed in message


@pytest.mark.parametrize(("name", "text"), wrong_variables())
def test_wrong_variable_warns_once_in_the_same_words_and_says_the_fallback(
    name: str, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The app runs on with the default."""
    option = BY_NAME[name]
    with caplog.at_level(logging.WARNING):
        chosen = settings({option.variable: text})
    assert getattr(chosen, name) == option.default
    (record,) = caplog.records
    message = record.getMessage()
    assert message.startswith(f"{option.variable} cannot be {text!r}. Allowed: {option.allowed}.")
    assert message.endswith(f" Using {option.default!r}." if option.default is not None else " It is left out.")


def test_form_of_the_variable_and_of_an_address_is_told_when_a_server_is_named_by_its_url(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The likeliest mistakes: the client's base_url for the address, and an address without a server."""
    with pytest.raises(SettingError, match=r"An address is 'host:port', .* \(without http://\)"):
        settings({}, servers={"http://gpu-box:8000": "name:ollama"})
    settings({"OTEL_LLM_ENERGY_SERVERS": "gpu-box:8000"})
    assert "in the variable ADDRESS=SERVER,..." in caplog.text


def test_unknown_keyword_is_refused_when_it_is_no_option() -> None:
    """A misspelt option must not be ignored in silence."""
    with pytest.raises(TypeError, match="max_holding"):
        settings({}, max_holding=3)
    with pytest.raises(TypeError, match="max_holding"):
        otel_llm_energy.instrument(max_holding=3)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("scaphandre_url", f"ftp://user:{SECRET}@host/metrics"),
        ("scaphandre_url", f"ftp://host/metrics?token={SECRET}"),
        ("servers", {"ollama:11434": f"ftp://user:{SECRET}@host/"}),
        ("meters", f"htp://user:{SECRET}@host/metrics"),
        ("meters", [ScaphandreMeter(f"http://user:{SECRET}@host/metrics"), "nothing"]),
    ],
)
def test_credentials_are_not_shown_when_a_value_is_wrong(name: str, value: object) -> None:
    """Neither in the message nor in the traceback that a user may post."""
    with pytest.raises(SettingError) as error:
        settings({}, **{name: value})
    assert SECRET not in "".join(traceback.format_exception(error.value))


def test_credentials_are_not_logged_when_a_variable_is_wrong(caplog: pytest.LogCaptureFixture) -> None:
    """Logs are shipped elsewhere."""
    settings({"OTEL_LLM_ENERGY_SCAPHANDRE_URL": f"htp://user:{SECRET}@host:8080/metrics"})
    settings({"OTEL_LLM_ENERGY_METERS": f"scaphandre=http://host/?key={SECRET}"})
    assert len(caplog.records) == 2
    assert SECRET not in caplog.text


def test_meters_may_be_a_name_a_meter_or_a_list() -> None:
    """As the docstring of `instrument` says."""
    estimate = CpuEstimate()
    assert settings({}, meters="auto").meters == ["auto"]
    assert settings({}, meters="rapl").meters == ["rapl"]
    assert settings({}, meters=estimate).meters == [estimate]
    assert settings({}, meters=("rapl", estimate)).meters == ["rapl", estimate]
    by_url = settings({"OTEL_LLM_ENERGY_METERS": "file:///run/scaphandre.json, http://host:8080/metrics"}).meters
    assert by_url == ["file:///run/scaphandre.json", "http://host:8080/metrics"]


def test_servers_may_be_on_hosts_that_one_prometheus_knows() -> None:
    """Host and process in one line of text, as the environment has it."""
    prometheus = "prometheus+http://joule:pw@prometheus:9090?instance=gpu-1:8080"
    text = f"gpu-1:11434={prometheus}#ollama,:8000=http://gpu-2:8080/metrics#cmdline:vllm%20serve"
    servers = settings({"OTEL_LLM_ENERGY_SERVERS": text}).servers
    assert servers == {
        "gpu-1:11434": f"{prometheus}#ollama",
        ":8000": "http://gpu-2:8080/metrics#cmdline:vllm%20serve",
    }


def test_clients_may_be_none_at_all_or_one_or_all() -> None:
    """Who instruments by hand needs no second wrapper."""
    assert list(settings({}, clients=[]).clients) == []
    assert list(settings({}, clients="ollama").clients) == ["ollama"]
    assert list(settings({"OTEL_LLM_ENERGY_CLIENTS": "auto"}).clients) == ["openai", "ollama", "http", "langchain"]


@pytest.mark.parametrize("name", ["board", "idle_cache"])
def test_words_for_a_path_are_known_however_they_are_written(name: str) -> None:
    """Not as folders of that name."""
    for text, expected in (("OFF", "off"), ("Auto", "auto")):
        assert getattr(settings({}, **{name: text}), name) == expected


@pytest.mark.parametrize("name", ["board", "idle_cache"])
def test_path_may_begin_at_the_users_home(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """That is the same place wherever a process works."""
    monkeypatch.setenv("HOME", "/home/somebody")
    assert getattr(settings({}, **{name: "~/energy"}), name) == "/home/somebody/energy"


@pytest.mark.parametrize(
    ("name", "value"), [("max_hold", 0), ("max_hold", 3600), ("grid_intensity", 0), ("grid_intensity", 10_000)]
)
def test_least_and_most_are_allowed_when_they_are_given(name: str, value: float) -> None:
    """0 holds no span at all, and a grid may emit nothing."""
    assert getattr(settings({}, **{name: value}), name) == value
    assert getattr(settings({BY_NAME[name].variable: str(value)}), name) == value


def test_meter_is_refused_when_it_lacks_a_part() -> None:
    """It would fail later, where nobody looks."""

    class Half:
        name = "half"

        def open(self) -> list[Any]:
            return []

    with pytest.raises(SettingError, match="meters cannot be"):
        settings({}, meters=Half())


def test_idle_watts_may_be_one_number() -> None:
    """Of each CPU package, or the host; a machine whose meter leaves its idle power out has 0 W."""
    assert settings({}, idle_watts=0).idle_watts == {"": 0.0}
    assert settings({}, idle_watts=20).idle_watts == {"": 20.0}
    assert settings({"OTEL_LLM_ENERGY_IDLE_WATTS": "20"}).idle_watts == {"": 20.0}


def test_option_is_named_when_the_one_line_is_looked_up() -> None:
    """The docstring of `instrument` is what an editor and the API's page show."""
    said = otel_llm_energy.instrument.__doc__ or ""
    assert [name for name in BY_NAME if f"{name}:" not in said and f"``{name}``" not in said] == []


def test_misspelt_variable_is_pointed_out_with_the_one_that_is_meant(caplog: pytest.LogCaptureFixture) -> None:
    """It would do nothing, silently. Variables that are like no option are somebody else's."""
    settings({"OTEL_LLM_ENERGY_DETIAL": "full", "OTEL_LLM_ENERGY_DETAIL": "full", "OTEL_LLM_ENERGY_CACHE": "/x"})
    (message,) = caplog.messages
    assert message.startswith("OTEL_LLM_ENERGY_DETIAL is no option")
    assert message.endswith("is OTEL_LLM_ENERGY_DETAIL meant?")

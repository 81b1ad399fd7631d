"""The plan of a study: which prompts go to which models of which servers, and how; a fixed list of calls."""

from __future__ import annotations

import hashlib
import json
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

from otel_llm_energy.servers.announced import URL_PORTS
from otel_llm_energy.servers.server import written_address
from otel_llm_energy.study import StudyError
from otel_llm_energy.study.prompts import Prompt, PromptSet

APIS: Final = ("auto", "openai", "ollama")
ORDERS: Final = ("random", "by-model")
EMBEDDED: Final = "embedded"
"""As a server's address: the small model that comes with the package, started for the length of the study."""
_ID_DIGITS: Final = 20
_MOST: Final = 1e6  # a socket takes no longer timeout than 24 days
_MOST_WHOLE: Final = 2**63  # what a table's column holds
_BELOW_MOST: Final = "below 2**63"
_MOST_CALLS: Final = 1_000_000  # all are planned at once, in memory; a report on so many was tried


@dataclass(frozen=True, slots=True)
class ServerPlan:
    """One server that is asked.

    Attributes:
        name: in tables and in ids; the address where none is given.
        base_url: such as ``"http://localhost:8000/v1"``, for Ollama ``"http://localhost:11434"``, or `EMBEDDED`.
        models: their names there.
        api: ``"openai"``, ``"ollama"``, or ``"auto"`` to look.
        api_key_variable: the variable that holds its key. Keys themselves never stand in a plan.
        machine: what it runs on, for comparisons; empty for this one.
        meter: page of the Scaphandre exporter of its machine, if it is another than this one.
        extra: more fields of each request, such as ``{"cache_prompt": false}``.
    """

    name: str
    base_url: str
    models: tuple[str, ...]
    api: str = "auto"
    api_key_variable: str = "OPENAI_API_KEY"
    machine: str = ""
    meter: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def host(self) -> str:
        """The machine that is asked, as the client libraries name it; an IPv6 address without brackets."""
        return urlsplit(self.base_url).hostname or ""

    @property
    def port(self) -> int:
        """Where it listens there."""
        parts = urlsplit(self.base_url)
        return parts.port or URL_PORTS.get(parts.scheme, URL_PORTS["http"])

    @property
    def address(self) -> str:
        """``host:port``, as the option ``servers`` of `instrument` wants it."""
        return written_address(self.host, self.port)


@dataclass(frozen=True, slots=True)
class Plan:
    """All that decides what is asked, and how.

    Attributes:
        prompts: path of the dataset, or the name of a built-in set.
        servers: who is asked.
        repeats: how often each prompt is asked.
        max_tokens: limits of the answer's length; with several, each prompt is asked with each.
        warm_up: calls to each model before the others, which make no rows.
        seed: of the order, and of the answers where the server takes one.
        temperature: 0 for the same answer each time.
        concurrency: calls at a time.
        rest_seconds: pause after each call; it parts the calls' energies and shows the idle power.
        timeout_seconds: of a call.
        order: ``"random"`` over all, or ``"by-model"``: one model after the other, where loading takes long.
        stream: take the answer as it is written; its first chunk parts prefill from decode where the server does not.
        tokenize: ask the server's tokenizer for each prompt's length.
        score: ``"file.py:function"`` that scores an answer; empty to use what the prompts expect.
    """

    prompts: str
    servers: tuple[ServerPlan, ...]
    repeats: int = 1
    max_tokens: tuple[int, ...] = (256,)
    warm_up: int = 1
    seed: int = 0
    temperature: float = 0.0
    concurrency: int = 1
    rest_seconds: float = 0.5
    timeout_seconds: float = 300.0
    order: str = "random"
    stream: bool = True
    tokenize: bool = True
    score: str = ""

    def as_dict(self) -> dict[str, Any]:
        """As it would stand in a TOML file, defaults included."""
        listed = asdict(self)
        listed["servers"] = [_without_empty(server) for server in listed["servers"]]
        return listed

    @property
    def digest(self) -> str:
        """Of all that decides which calls there are and what they ask."""
        decisive = self.as_dict()
        for only_manner in ("concurrency", "rest_seconds", "timeout_seconds", "warm_up"):
            del decisive[only_manner]
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class PlannedCall:
    """One call of the plan.

    Attributes:
        id: the same in every run of the same plan.
        position: its place in the plan's order, from 0.
    """

    id: str
    position: int
    server: ServerPlan
    model: str
    prompt: Prompt
    repeat: int
    max_tokens: int

    @property
    def deployment(self) -> str:
        """A model on a server: what is compared."""
        return f"{self.server.name} {self.model}"


Job = Sequence[PlannedCall]
"""Calls that follow one another: the turns of a conversation, or one prompt alone."""


def jobs(plan: Plan, prompts: PromptSet) -> list[Job]:
    """Every call of the plan, in its order: the same for the same plan, wherever and however often it is made.

    Raises:
        StudyError: they are too many for one study.
    """
    _insist_on_size(plan, prompts)
    groups = _groups(prompts.prompts)
    drawn = random.Random(plan.seed)
    deployments = [(server, model) for server in plan.servers for model in server.models]
    cells = [
        (server, model, group, repeat, limit)
        for server, model in deployments
        for repeat in range(plan.repeats)
        for limit in plan.max_tokens
        for group in groups
    ]
    drawn.shuffle(cells)
    if plan.order == "by-model":
        drawn.shuffle(deployments)
        place = {(server.name, model): index for index, (server, model) in enumerate(deployments)}
        cells.sort(key=lambda cell: place[cell[0].name, cell[1]])
    made: list[Job] = []
    position = 0
    for server, model, group, repeat, limit in cells:
        made.append(
            [
                PlannedCall(
                    _call_id(server, model, each, repeat, limit), position + turn, server, model, each, repeat, limit
                )
                for turn, each in enumerate(group)
            ]
        )
        position += len(group)
    return made


def _insist_on_size(plan: Plan, prompts: PromptSet) -> None:
    models = sum(len(server.models) for server in plan.servers)
    calls = len(prompts.prompts) * plan.repeats * len(plan.max_tokens) * models
    if calls > _MOST_CALLS:
        raise StudyError(
            f"{calls:,} calls are planned: {len(prompts.prompts):,} prompts, {plan.repeats:,} times each, with"
            f" {len(plan.max_tokens)} limits, to {models} models. One study has {_MOST_CALLS:,} at most."
            " Ask less often, or part them: a report takes several studies."
        )


def _groups(prompts: Sequence[Prompt]) -> list[tuple[Prompt, ...]]:
    conversations: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        # A prompt alone is a group of its own; ids are unique and NUL stands in no name.
        conversations.setdefault(prompt.conversation or f"\0{prompt.id}", []).append(prompt)
    return [tuple(turns) for turns in conversations.values()]


def _call_id(server: ServerPlan, model: str, prompt: Prompt, repeat: int, max_tokens: int) -> str:
    named = json.dumps([server.name, server.base_url, model, prompt.id, prompt.sha256, repeat, max_tokens])
    return hashlib.sha256(named.encode()).hexdigest()[:_ID_DIGITS]


# Reading a plan


def read_plan(path: Path) -> Plan:
    """A plan from a TOML file, or from the manifest of an earlier study.

    Raises:
        StudyError: no such file, no TOML, an unknown or wrong entry.
    """
    try:
        text = path.read_text(encoding="utf-8")
        entries = dict(json.loads(text)["plan"]) if path.suffix == ".json" else _toml(text)
    except OSError as error:
        raise StudyError(f"{path}: cannot be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise StudyError(f"{path}: neither a plan in TOML nor a study's manifest: {error}.") from error
    return _plan_relative_to(path, make_plan(entries, str(path)))


def _toml(text: str) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    entries: dict[str, Any] = tomllib.loads(text)
    return entries


def _plan_relative_to(path: Path, plan: Plan) -> Plan:
    """A dataset that is named relative to the plan is found from anywhere."""
    beside = path.parent / plan.prompts
    return with_changes(plan, prompts=str(beside.resolve())) if beside.is_file() else plan


def with_changes(plan: Plan, **changes: Any) -> Plan:
    """The plan with these entries changed; checked. Raises `StudyError`."""
    return make_plan({**plan.as_dict(), **changes}, "the options")


def make_plan(entries: Mapping[str, Any], where: str) -> Plan:
    """A checked plan from a mapping as TOML gives it.

    Args:
        entries: see `Plan` and, below ``servers``, `ServerPlan`.
        where: they come from, for error messages.

    Raises:
        StudyError: an unknown, wrong or missing entry.
    """
    given = _known(entries, Plan, where)
    servers = given["servers"]
    if not isinstance(servers, Sequence) or isinstance(servers, str) or not servers:
        raise StudyError(f"{where}: no server. Write [[servers]] with base_url and models.")
    given["servers"] = tuple(_server(entry, f"{where}, server {number}") for number, entry in enumerate(servers, 1))
    limits = given.get("max_tokens", (256,))
    given["max_tokens"] = tuple(limits) if isinstance(limits, (list, tuple)) else (limits,)
    plan = Plan(**given)
    _check(plan, where)
    return plan


def _server(entry: Any, where: str) -> ServerPlan:
    if not isinstance(entry, Mapping):
        raise StudyError(f"{where}: not a table.")
    given = _known({"name": "", **entry}, ServerPlan, where)
    parts = _address(given["base_url"])
    if parts.username or parts.password or (not parts.netloc and "@" in str(given["base_url"])):
        raise StudyError(
            f"{where}: base_url holds credentials. Put the key into a variable and name it as api_key_variable."
        )
    if given["base_url"] != EMBEDDED and not parts.netloc:
        raise StudyError(
            f"{where}: base_url cannot be {given['base_url']!r}. Write it as http://localhost:8000/v1, or {EMBEDDED}."
        )
    _insist_on_types(given, where)
    models = given["models"]
    given["models"] = (models,) if isinstance(models, str) else tuple(models)
    given["name"] = given["name"] or parts.netloc or EMBEDDED
    server = ServerPlan(**given)
    if not server.models or not all(isinstance(model, str) and model for model in server.models):
        raise StudyError(f"{where}: models is empty. Name at least one.")
    if not _distinct(server.models):
        raise StudyError(
            f"{where}: models cannot be {list(server.models)!r}. Allowed: each model once; repeats asks more often."
        )
    if server.api not in APIS:
        raise StudyError(f"{where}: api cannot be {server.api!r}. Allowed: {', '.join(APIS)}.")
    return server


def _address(url: object) -> SplitResult:
    """The parts of an http or https address; nothing but empty ones if it is none."""
    none = urlsplit("")
    try:
        parts = urlsplit(str(url))
        _ = parts.port  # raises where it is no port
    except ValueError:
        return none
    return parts if parts.scheme in URL_PORTS and parts.hostname else none


def _insist_on_types(server: Mapping[str, Any], where: str) -> None:
    kinds: dict[str, tuple[type | tuple[type, ...], str]] = {
        "models": ((str, list, tuple), "a list of names"),
        "extra": (Mapping, "a table"),
        **dict.fromkeys(("name", "api", "api_key_variable", "machine", "meter"), (str, "a text")),
    }
    for key, (kind, words) in kinds.items():
        if key in server and not isinstance(server[key], kind):
            raise StudyError(f"{where}: {key} cannot be {server[key]!r}. Allowed: {words}.")
    try:
        json.dumps(server.get("extra"), allow_nan=False)
    except (TypeError, ValueError) as error:  # TOML has dates and nan
        raise StudyError(
            f"{where}: extra cannot be {server['extra']!r}. Allowed: what JSON can say ({error})."
        ) from None


def _known(entries: Mapping[str, Any], kind: type[Plan] | type[ServerPlan], where: str) -> dict[str, Any]:
    names = {one.name for one in fields(kind)}
    unknown = ", ".join(sorted(entries.keys() - names))
    if unknown:
        raise StudyError(f"{where}: unknown: {unknown}. There are {', '.join(sorted(names))}.")
    needed = {one.name for one in fields(kind) if one.default is MISSING and one.default_factory is MISSING}
    missing = ", ".join(sorted(needed - entries.keys()))
    if missing:
        raise StudyError(f"{where}: {missing} missing.")
    return dict(entries)


def _check(plan: Plan, where: str) -> None:
    def insist(allowed: bool, name: str, words: str) -> None:
        if not allowed:
            raise StudyError(f"{where}: {name} cannot be {getattr(plan, name)!r}. Allowed: {words}.")

    def whole(value: object, least: int) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and least <= value < _MOST_WHOLE

    def at_least_0(value: object) -> bool:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= _MOST

    insist(isinstance(plan.prompts, str) and bool(plan.prompts), "prompts", "a path or a built-in set's name")
    insist(whole(plan.repeats, 1), "repeats", f"a whole number from 1, {_BELOW_MOST}")
    limits = plan.max_tokens
    insist(bool(limits) and all(whole(one, 1) for one in limits), "max_tokens", f"whole numbers from 1, {_BELOW_MOST}")
    # Calls that differ in nothing would share an id, and so a row.
    insist(_distinct(limits), "max_tokens", "each number once; repeats asks more often")
    insist(whole(plan.warm_up, 0), "warm_up", f"a whole number from 0, {_BELOW_MOST}")
    insist(whole(plan.seed, 0), "seed", f"a whole number from 0, {_BELOW_MOST}")
    insist(whole(plan.concurrency, 1), "concurrency", f"a whole number from 1, {_BELOW_MOST}")
    insist(at_least_0(plan.temperature), "temperature", "a number from 0 to a million")
    insist(at_least_0(plan.rest_seconds), "rest_seconds", "seconds from 0 to a million")
    insist(at_least_0(plan.timeout_seconds) and plan.timeout_seconds > 0, "timeout_seconds", "seconds up to a million")
    insist(isinstance(plan.stream, bool), "stream", "true, false")
    insist(isinstance(plan.tokenize, bool), "tokenize", "true, false")
    insist(isinstance(plan.score, str), "score", "file.py:function")
    insist(plan.order in ORDERS, "order", ", ".join(ORDERS))
    insist(_distinct([server.name for server in plan.servers]), "servers", "servers with different names")


def _distinct(values: Sequence[object]) -> bool:
    return len(set(values)) == len(values)


def _without_empty(server: dict[str, Any]) -> dict[str, Any]:
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in server.items()
        if value not in ("", {})
    }


def calls_of(plan_jobs: Sequence[Job]) -> Iterator[PlannedCall]:
    """All calls of all jobs."""
    for job in plan_jobs:
        yield from job

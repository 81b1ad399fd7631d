"""Who is asked: an OpenAI-compatible server or Ollama, through their own client libraries, which are instrumented."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final, Protocol

import requests

from otel_llm_energy.study import StudyError
from otel_llm_energy.study.plan import Plan, ServerPlan

_LOOK_SECONDS: Final = 5.0
_TOKENIZE_SECONDS: Final = 30.0

Message = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked: the conversation so far, and how to answer."""

    model: str
    messages: Sequence[Message]
    max_tokens: int
    temperature: float
    seed: int
    stream: bool


class Asker(Protocol):
    """Asks one server. Safe from several threads."""

    server: ServerPlan

    def ask(self, request: Request, answer: list[str]) -> None:
        """Add the answer's pieces to ``answer`` as they come; raises whatever the client library raises."""

    def alive(self) -> bool:
        """Whether the server answers, and not that it is still loading its model."""

    def facts(self, model: str) -> dict[str, Any]:
        """What the server tells of itself and the model, as columns of a row; only what it does tell."""

    def count_tokens(self, model: str, text: str) -> int | None:
        """Length by the server's own tokenizer; ``None`` if it offers none."""


def make_asker(server: ServerPlan, plan: Plan) -> Asker:
    """The asker for a server of the plan.

    Raises:
        StudyError: nobody answers there, or the client library is missing.
    """
    api = _api_of(server) if server.api == "auto" else server.api
    asker: Asker = _OllamaAsker(server, plan) if api == "ollama" else _OpenAIAsker(server, plan)
    if not asker.alive():
        raise StudyError(f"{server.base_url}: nobody answers. Start the server, await its model, or correct base_url.")
    return asker


def _api_of(server: ServerPlan) -> str:
    """Ollama, if it answers Ollama's own questions; with ``/v1`` the user wants the compatible one."""
    if server.base_url.rstrip("/").endswith("/v1"):
        return "openai"
    return "ollama" if "version" in _json("GET", f"{server.base_url.rstrip('/')}/api/version") else "openai"


class _OpenAIAsker:
    def __init__(self, server: ServerPlan, plan: Plan) -> None:
        import openai

        self.server = server
        url = server.base_url.rstrip("/")
        # The server's own pages, llama.cpp's and vLLM's, lie beside its OpenAI-compatible ones.
        self._root = url.removesuffix("/v1")
        key = os.environ.get(server.api_key_variable)
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        # Tried again, a call would have cost more than its span says.
        self._client = openai.OpenAI(base_url=url, api_key=key or "unused", max_retries=0, timeout=plan.timeout_seconds)
        self._url = url
        self._tokenizes = True

    def ask(self, request: Request, answer: list[str]) -> None:
        create: Any = self._client.chat.completions.create
        wanted: dict[str, Any] = {
            "model": request.model,
            "messages": list(request.messages),
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "seed": request.seed,
            "extra_body": dict(self.server.extra),
        }
        if not request.stream:
            whole = create(**wanted)
            if isinstance(whole, str):
                raise self._no_model_server()
            answer.append((whole.choices[0].message.content or "") if whole.choices else "")
            return
        chunk = None
        for chunk in create(**wanted, stream=True, stream_options={"include_usage": True}):
            if chunk.choices and chunk.choices[0].delta.content:
                answer.append(chunk.choices[0].delta.content)
        if chunk is None:
            raise self._no_model_server()

    def _no_model_server(self) -> StudyError:
        """The library takes a web page for text, or for a stream without chunks."""
        return StudyError(f"{self.server.base_url}: what answers there is no model server. Correct base_url.")

    def alive(self) -> bool:
        # While llama.cpp loads its model it refuses calls, but lists the model.
        return _answers(f"{self._url}/models", self._headers) and not _loads(f"{self._root}/health", self._headers)

    def facts(self, model: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        props = _json("GET", f"{self._root}/props", headers=self._headers)
        if "build_info" in props:
            found["server_software"] = f"llama.cpp {props['build_info']}"
            settings = props.get("default_generation_settings")
            if isinstance(settings, Mapping) and isinstance(settings.get("n_ctx"), int):
                found["server_context_tokens"] = settings["n_ctx"]
        elif "version" in (version := _json("GET", f"{self._root}/version", headers=self._headers)):
            found["server_software"] = f"vllm {version['version']}"
        listed = _json("GET", f"{self._url}/models", headers=self._headers).get("data")
        for entry in listed if isinstance(listed, list) else ():
            if isinstance(entry, Mapping) and entry.get("id") == model:
                found |= _openai_model_facts(entry)
        return found

    def count_tokens(self, model: str, text: str) -> int | None:
        if not self._tokenizes:
            return None
        body = {"content": text, "model": model, "prompt": text}  # llama.cpp reads the first, vLLM the others
        tokens = _json("POST", f"{self._root}/tokenize", body, self._headers, _TOKENIZE_SECONDS).get("tokens")
        if not isinstance(tokens, list):
            self._tokenizes = False
            return None
        return len(tokens)


def _openai_model_facts(entry: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if isinstance(entry.get("max_model_len"), int):  # vLLM
        found["server_context_tokens"] = entry["max_model_len"]
    meta = entry.get("meta")  # llama.cpp
    if isinstance(meta, Mapping):
        found |= _numbers(meta, {"n_params": "server_model_parameters", "size": "server_model_bytes"})
    return found


class _OllamaAsker:
    def __init__(self, server: ServerPlan, plan: Plan) -> None:
        try:
            import ollama
        except ImportError as error:
            raise StudyError(f"{error}. Install it: pip install 'otel-llm-energy[ollama]'") from error
        self.server = server
        self._url = server.base_url.rstrip("/")
        self._client = ollama.Client(host=self._url, timeout=plan.timeout_seconds)

    def ask(self, request: Request, answer: list[str]) -> None:
        extra = dict(self.server.extra)
        options = {
            "num_predict": request.max_tokens,
            "temperature": request.temperature,
            "seed": request.seed,
            **extra.pop("options", {}),
        }
        chat: Any = self._client.chat
        wanted = {"model": request.model, "messages": list(request.messages), "options": options, **extra}
        if not request.stream:
            answer.append(chat(**wanted).message.content or "")
            return
        for chunk in chat(**wanted, stream=True):
            answer.append(chunk.message.content or "")

    def alive(self) -> bool:
        return _answers(f"{self._url}/api/version", {})

    def facts(self, model: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        version = _json("GET", f"{self._url}/api/version").get("version")
        if version:
            found["server_software"] = f"ollama {version}"
        shown = _json("POST", f"{self._url}/api/show", {"model": model})
        details, info = shown.get("details"), shown.get("model_info")
        if isinstance(details, Mapping):
            found |= _quantization(details)
        if isinstance(info, Mapping):
            found |= _numbers(info, {"general.parameter_count": "server_model_parameters"})
        for entry in _json("GET", f"{self._url}/api/tags").get("models") or ():
            if isinstance(entry, Mapping) and model in (entry.get("name"), entry.get("model")):
                found |= _numbers(entry, {"size": "server_model_bytes"})
        return found

    def count_tokens(self, model: str, text: str) -> int | None:
        return None  # Ollama tells a prompt's length only after answering it


def _quantization(details: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if details.get("quantization_level"):
        found["server_model_quantization"] = str(details["quantization_level"])
    size = re.fullmatch(r"([\d.]+)([KMBT])", str(details.get("parameter_size", "")))
    if size:
        found["server_model_parameters"] = float(size[1]) * {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}[size[2]]
    return found


def _numbers(source: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, float]:
    return {column: float(source[key]) for key, column in names.items() if isinstance(source.get(key), (int, float))}


def _answers(url: str, headers: Mapping[str, str]) -> bool:
    try:
        requests.get(url, headers=headers, timeout=_LOOK_SECONDS)
    except requests.RequestException:
        return False
    return True


def _loads(url: str, headers: Mapping[str, str]) -> bool:
    try:
        return requests.get(url, headers=headers, timeout=_LOOK_SECONDS).status_code == HTTPStatus.SERVICE_UNAVAILABLE
    except requests.RequestException:
        return False


def _json(
    method: str,
    url: str,
    body: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
    timeout_seconds: float = _LOOK_SECONDS,
) -> Mapping[str, Any]:
    """The object that a page holds; empty where there is no such page: what a server does not tell is not known."""
    try:
        answer = requests.request(method, url, json=body, headers=headers, timeout=timeout_seconds)
        found = answer.json() if answer.ok else {}
    except (requests.RequestException, ValueError):
        return {}
    return found if isinstance(found, Mapping) else {}

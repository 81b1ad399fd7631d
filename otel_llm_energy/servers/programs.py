"""Programs that are known by name: LLM servers, and relays that only pass on what others answer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Final

LLM_SERVERS: Final = frozenset(
    {
        "aphrodite",
        "gpt4all",
        "koboldcpp",
        "llama-box",
        "llama-server",
        "llama_cpp",
        "llamafile",
        "lm-studio",
        "lmstudio",
        "local-ai",
        "mlc_llm",
        "ollama",
        "sglang",
        "tabbyapi",
        "text-generation-launcher",
        "text-generation-router",
        "text-generation-server",
        "tritonserver",
        "vllm",
        "xinference",
    }
)
"""Programs and Python packages that run models."""

RELAYS: Final = frozenset(
    {
        "apache2",
        "autossh",
        "caddy",
        "cloudflared",
        "com.docker.backend",
        "docker-proxy",
        "envoy",
        "frpc",
        "frps",
        "gost",
        "haproxy",
        "httpd",
        "kubectl",
        "litellm",
        "mitmdump",
        "mitmproxy",
        "nginx",
        "ngrok",
        "pasta",
        "passt",
        "rootlessport",
        "slirp4netns",
        "socat",
        "ssh",
        "sshd",
        "tinyproxy",
        "traefik",
        "vpnkit-bridge",
        "wslrelay",
    }
)
"""Programs that hold a port for a server elsewhere: in a container, behind a gateway, on another machine."""

CONTAINER_RELAYS: Final = frozenset({"docker-proxy", "pasta", "passt", "rootlessport", "slirp4netns"})
"""Those of them that do nothing but publish ports of containers of this host."""

_INTERPRETER = re.compile(r"(python|pypy|node|bun|deno)[\d.]*")
_LONGEST_SHORT_NAME = 15


def program_name(arguments: Sequence[str], short_name: str = "") -> str:
    """What runs: the program, or the script or module that an interpreter runs, as people call it."""
    if not arguments:
        return short_name
    name = _base(arguments[0])
    if not _INTERPRETER.fullmatch(name):
        return name or short_name
    rest = list(arguments[1:])
    while rest:
        word = rest.pop(0)
        if word == "-m" and rest:
            return rest[0].split(".")[0]
        if word == "-c":
            break
        if not word.startswith("-"):
            return _base(word).removesuffix(".py")
    return name


def is_relay(name: str) -> bool:
    """Whether a program of this name only passes calls on."""
    return _known(name, RELAYS)


def is_container_relay(name: str) -> bool:
    """Whether a program of this name publishes ports of containers."""
    return _known(name, CONTAINER_RELAYS)


def is_llm_server(name: str) -> bool:
    """Whether a program of this name runs models."""
    return _known(name, LLM_SERVERS) or name.endswith(".llamafile")


def is_llama_cpp(name: str) -> bool:
    """Whether a program of this name is llama.cpp's server, or a llamafile, which holds it."""
    return name.startswith("llama") or name.endswith("llamafile")


def slots_hint(arguments: Sequence[str], environment: Mapping[str, str]) -> int | None:
    """How many calls it works on at once, if its command line or environment says so.

    Source: ``--parallel`` and ``LLAMA_ARG_N_PARALLEL`` of llama.cpp's server (also Ollama's runner has the first),
    ``OLLAMA_NUM_PARALLEL`` of Ollama.
    """
    name = program_name(arguments)
    if not is_llama_cpp(name) and not name.startswith("ollama"):
        return None
    variable = "OLLAMA_NUM_PARALLEL" if name == "ollama" else "LLAMA_ARG_N_PARALLEL"
    for word in (option(arguments, ("--parallel", "-np")), environment.get(variable)):
        if word is not None and word.isdecimal() and int(word) > 0:  # 0 and -1 mean: as it thinks best
            return int(word)
    return None


def option(arguments: Sequence[str], names: Sequence[str]) -> str | None:
    """The value of an option on a command line, ``--name value`` or ``--name=value``; ``None`` if it is not there."""
    for index, word in enumerate(arguments):
        name, _, value = word.partition("=")
        if name in names:
            return value or next(iter(arguments[index + 1 : index + 2]), None)
    return None


def _base(path: str) -> str:
    """The last part of a path; of a title that a program gave itself (``nginx: worker process``), its beginning."""
    return PurePosixPath(path.strip().split(": ", 1)[0]).name.lower()


def _known(name: str, names: frozenset[str]) -> bool:
    # llamafile-0.9.2, vllm-cpu: a version or a variant of the program.
    if name in names or any(name.startswith((f"{known}-", f"{known}_")) for known in names):
        return True
    return len(name) == _LONGEST_SHORT_NAME and any(known.startswith(name) for known in names)

"""Who gives an answer, by what the answer itself shows: nothing is asked for it, and nothing is guessed.

``gen_ai.provider.name`` starts as the API that is spoken (``openai``, ``ollama``, ``llama.cpp``), or the company whose
host is called. The answer may then show who speaks it:

==============  ==========================================  ===========================================================
provider        header                                      field of the answer
==============  ==========================================  ===========================================================
``llama.cpp``   ``server: llama.cpp``                       ``timings`` with ``prompt_ms`` and ``predicted_ms``
``llamafile``   ``server: llamafile/...``                   none of its own: without headers it shows as llama.cpp
``vllm``        none                                        ``system_fingerprint: vllm-...``, or both of
                                                            ``prompt_logprobs`` and ``kv_transfer_params``
``ollama``      none                                        ``system_fingerprint: fp_ollama``
``lm_studio``   none                                        ``system_fingerprint`` is the model's name
``tgi``         ``x-compute-type``,                         ``system_fingerprint: 3.1.0-native`` or ``3.1.0-sha-...``
                ``x-compute-characters``
``gpt4all``     none                                        ``id: placeholder``
==============  ==========================================  ===========================================================

Sources: llama.cpp's server as recorded in ``tests/instrumentation``; llamafile ``llamafile/server/client.cpp``; vLLM
``vllm/entrypoints/openai/fingerprint.py`` and ``chat_completion/protocol.py``; Ollama ``openai/openai.go``; LM Studio's
answers in lmstudio-js issue 320; TGI ``router/src/server.rs``; GPT4All ``gpt4all-chat/src/server.cpp``.
``owned_by`` stands only in the list of models, which would be a request more.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any, Final

LLAMA_CPP: Final = "llama.cpp"
LLAMAFILE: Final = "llamafile"
VLLM: Final = "vllm"
OLLAMA: Final = "ollama"
LM_STUDIO: Final = "lm_studio"
TGI: Final = "tgi"
GPT4ALL: Final = "gpt4all"
OPENAI: Final = "openai"
AZURE_OPENAI: Final = "azure.ai.openai"

# The well-known names of the conventions, for the hosts that speak OpenAI's API.
_COMPANIES: Final = {
    "api.anthropic.com": "anthropic",
    "api.deepseek.com": "deepseek",
    "api.groq.com": "groq",
    "api.mistral.ai": "mistral_ai",
    "api.moonshot.ai": "moonshot_ai",
    "api.perplexity.ai": "perplexity",
    "api.x.ai": "x_ai",
    "generativelanguage.googleapis.com": "gcp.gemini",
}
_AZURE_HOSTS: Final = (".openai.azure.com", ".cognitiveservices.azure.com", ".services.ai.azure.com")
_TGI_FINGERPRINT: Final = re.compile(r"\d+\.\d+\.\d+\S*-(native|sha-[0-9a-f]+\S*)")


@functools.lru_cache(maxsize=64)
def provider_of_host(host: str | None) -> str:
    """Whose the host is that speaks OpenAI's API; ``openai`` where its name says nothing."""
    if host is not None and host.endswith(_AZURE_HOSTS):
        return AZURE_OPENAI
    return _COMPANIES.get(host or "", OPENAI)


def provider_in_headers(headers: Mapping[str, str]) -> str | None:
    """Who gives an answer with these headers; ``None`` if they do not show it."""
    server = headers.get("server") or ""
    if server.startswith(LLAMAFILE):
        return LLAMAFILE
    if server == LLAMA_CPP:
        return LLAMA_CPP
    return TGI if "x-compute-type" in headers and "x-compute-characters" in headers else None


def provider_in_answer(answer: Mapping[str, Any]) -> str | None:
    """Who gives an answer with these fields; ``None`` if they do not show it."""
    timings = answer.get("timings")
    if isinstance(timings, dict) and "prompt_ms" in timings and "predicted_ms" in timings:
        return LLAMA_CPP
    if answer.get("id") == "placeholder":
        return GPT4ALL
    if "prompt_logprobs" in answer and "kv_transfer_params" in answer:
        return VLLM
    fingerprint = answer.get("system_fingerprint")
    return _provider_in_fingerprint(fingerprint, answer) if isinstance(fingerprint, str) and fingerprint else None


def _provider_in_fingerprint(fingerprint: str, answer: Mapping[str, Any]) -> str | None:
    if fingerprint == "fp_ollama":
        return OLLAMA
    if fingerprint.startswith("vllm-"):
        return VLLM
    if fingerprint == answer.get("model"):
        return LM_STUDIO
    return TGI if _TGI_FINGERPRINT.fullmatch(fingerprint) else None

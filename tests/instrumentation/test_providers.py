"""`gen_ai.provider.name` is what the answer shows, and the API that is spoken where it shows nothing."""

from __future__ import annotations

from typing import Any

import openai
import pytest
import requests

from otel_llm_instrumentation.providers import provider_in_answer, provider_in_headers, provider_of_host
from tests.conftest import LlamaServerFactory
from tests.instrumentation import payloads
from tests.instrumentation.bare import ASK, bare
from tests.instrumentation.conftest import Watched
from tests.instrumentation.replay import ReplayServer, json_reply, sse_reply

__all__ = ["bare"]

_LM_STUDIO = {"id": "chatcmpl-0wosrfs0yzbm9jozf5gye", "model": "qwen2.5", "stats": {}, "system_fingerprint": "qwen2.5"}


@pytest.mark.parametrize(
    ("answer", "provider"),
    [
        ({"timings": payloads.TIMINGS}, "llama.cpp"),
        ({"system_fingerprint": "vllm-0.12.0-tp2-1a2b3c4d"}, "vllm"),
        ({"prompt_logprobs": None, "kv_transfer_params": None}, "vllm"),
        ({"system_fingerprint": "fp_ollama"}, "ollama"),
        (_LM_STUDIO, "lm_studio"),
        ({"system_fingerprint": "3.1.0-sha-1b2c3d4"}, "tgi"),
        ({"system_fingerprint": "2.0.5-dev0-native"}, "tgi"),
        ({"id": "placeholder"}, "gpt4all"),
        ({"system_fingerprint": "fp_44709d6fcb", "model": "gpt-4o-mini"}, None),
        ({"system_fingerprint": "b6000-unknown", "model": "m"}, None),
        ({"system_fingerprint": "", "model": ""}, None),
        ({"system_fingerprint": None, "model": None}, None),
        ({"timings": "fast", "id": 7, "system_fingerprint": ["x"]}, None),
        ({"timings": {"prompt_ms": 3}}, None),
        ({"timings": {"predicted_ms": 3}}, None),
        ({"prompt_logprobs": None}, None),
        ({"kv_transfer_params": None}, None),
    ],
)
def test_answer_shows_its_provider_when_it_has_what_only_that_one_sends(
    answer: dict[str, Any], provider: str | None
) -> None:
    """One field that is the server's own; anything else shows nothing."""
    assert provider_in_answer(answer) == provider


@pytest.mark.parametrize(
    ("headers", "provider"),
    [
        ({"server": "llama.cpp"}, "llama.cpp"),
        ({"server": "llamafile/0.9.3"}, "llamafile"),
        ({"x-compute-type": "1-nvidia-a10g", "x-compute-characters": "40"}, "tgi"),
        ({"x-compute-type": "cpu"}, None),
        ({"x-compute-characters": "40"}, None),
        ({"server": "uvicorn"}, None),
        ({}, None),
    ],
)
def test_headers_show_their_provider_when_they_name_it(headers: dict[str, str], provider: str | None) -> None:
    """vLLM and many others only say which web server they run on."""
    assert provider_in_headers(headers) == provider


@pytest.mark.parametrize(
    ("host", "provider"),
    [
        ("api.openai.com", "openai"),
        ("api.groq.com", "groq"),
        ("api.mistral.ai", "mistral_ai"),
        ("house.openai.azure.com", "azure.ai.openai"),
        ("gpu-box", "openai"),
        (None, "openai"),
    ],
)
def test_host_shows_the_company_when_it_is_a_known_one(host: str | None, provider: str) -> None:
    """Elsewhere the API that is spoken is all that is known."""
    assert provider_of_host(host) == provider


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("timings", [True, False], ids=["a relative's", "none"])
def test_header_wins_when_the_fields_show_a_relative_or_nobody(
    timings: bool, stream: bool, server: ReplayServer, bare: Watched
) -> None:
    """A llamafile answers in llama.cpp's fields: of a stream and of bare HTTP the header is known."""
    answer = payloads.chat() if timings else payloads.chat(timings=...)
    server.reply = sse_reply(payloads.chunks(timings=timings)) if stream else json_reply(answer)
    server.reply.headers = {"Server": "llamafile/0.9.3"}
    requests.post(f"{server.url}/v1/chat/completions", json={**ASK, "stream": stream})
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="k")
    if stream:
        list(client.chat.completions.create(**ASK, stream=True))
    else:
        client.chat.completions.with_raw_response.create(**ASK)
    assert [call.provider for call in bare.ended] == ["llamafile", "llamafile"]
    assert [(span.attributes or {})["gen_ai.provider.name"] for span in bare.spans] == ["llamafile", "llamafile"]


def test_real_server_shows_itself_when_it_answers(llama_server: LlamaServerFactory, bare: Watched) -> None:
    """llama.cpp, by its timings through the client library and by its header in bare HTTP."""
    base_url = llama_server(slots=1, embeddings=True).base_url
    openai.OpenAI(base_url=base_url, api_key="k").chat.completions.create(**ASK, max_tokens=2)
    requests.post(f"{base_url}/embeddings", json={"input": "hi", "model": "m"})
    assert [call.provider for call in bare.ended] == ["llama.cpp", "llama.cpp"]


@pytest.mark.parametrize(
    ("usages", "tokens"),
    [
        ([{"prompt_tokens": 9, "completion_tokens": n, "total_tokens": 9 + n} for n in (1, 2, 3)], (9, 3)),
        ([None, None, {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}], (9, 3)),
        ([{"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}, None], (9, 3)),
        ([None, None], (None, None)),
        ([..., ...], (None, None)),
    ],
    ids=["cumulative", "null but the last", "null after the last", "null", "none"],
)
def test_tokens_are_the_servers_last_word_when_usage_is_odd(
    usages: list[Any], tokens: tuple[int | None, int | None], server: ReplayServer, bare: Watched
) -> None:
    """The last usage wins, nothing is summed and nothing made up: vLLM's, LM Studio's and GPT4All's ways."""
    server.reply = sse_reply([payloads.chunk(usage=usage) for usage in usages])
    requests.post(f"{server.url}/v1/chat/completions", json={**ASK, "stream": True})
    list(openai.OpenAI(base_url=f"{server.url}/v1", api_key="k").chat.completions.create(**ASK, stream=True))
    assert [(call.input_tokens, call.output_tokens) for call in bare.ended] == [tokens, tokens]

"""One app, with and without us, under the strictest Python and the clients' own types: no new warning, no new error."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.instrumentation import payloads
from tests.instrumentation.replay import ReplayServer, replaying, sse_reply

_ROOT = Path(__file__).resolve().parents[2]
_INSTRUMENT = "import otel_llm_energy\nhandle = otel_llm_energy.instrument()\n"
_UNINSTRUMENT = "handle.uninstrument()\n"
_APP = """
import asyncio
import logging
import os

import aiohttp
import httpx
import ollama
import openai
import requests
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionMessageParam

question: ChatCompletionMessageParam = {"role": "user", "content": "What is the capital of France?"}
url = os.environ["TEST_URL"]


def synchronous() -> None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0) as client:
        stream: openai.Stream[ChatCompletionChunk] = client.chat.completions.create(
            model="m", messages=[question], stream=True
        )
        print([chunk.choices for chunk in stream])
        with client.chat.completions.create(model="m", messages=[question], stream=True) as left:
            print(next(iter(left)).id)
        raw = client.chat.completions.with_raw_response.create(model="m", messages=[question], stream=True)
        print(raw.headers["content-type"], len(list(raw.parse())))


def bare() -> None:
    body = {"model": "m", "messages": [question], "stream": True}
    with requests.post(f"{url}/v1/chat/completions", json=body, stream=True) as response:
        print([line for line in response.iter_lines()])
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body) as streamed:
        print([line for line in streamed.iter_lines()])
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body) as left:
        print(next(left.iter_lines()))


async def asynchronous() -> None:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0) as client:
        stream: openai.AsyncStream[ChatCompletionChunk] = await client.chat.completions.create(
            model="m", messages=[question], stream=True
        )
        print([chunk.choices async for chunk in stream])
        async with await client.chat.completions.create(model="m", messages=[question], stream=True) as left:
            print((await left.__anext__()).id)


async def bare_asynchronous() -> None:
    body = {"model": "m", "messages": [question], "stream": True}
    async with aiohttp.ClientSession() as session:
        async with session.post(f"{url}/v1/chat/completions", json=body) as response:
            print([line async for line in response.content])
        async with session.post(f"{url}/v1/chat/completions", json=body) as left:
            print(await left.content.readline(), type(left), type(left.content))


def refused() -> None:
    client = ollama.Client(host=url)
    try:
        client.chat(model="m", messages=[{"role": "user", "content": "hi"}])
    except Exception as error:
        print(type(error).__name__)
    client._client.close()


def answered(answer: ChatCompletion) -> str | None:
    return answer.choices[0].message.content


logging.getLogger("asyncio").setLevel(logging.ERROR)  # in this mode it tells of every slow step
synchronous()
bare()
asyncio.run(asynchronous())
asyncio.run(bare_asynchronous())
refused()
"""


def _app(with_us: bool) -> str:
    return f"{_INSTRUMENT}{_APP}{_UNINSTRUMENT}" if with_us else _APP


def _run(server: ReplayServer, code: str) -> subprocess.CompletedProcess[str]:
    server.reply = sse_reply(payloads.chunks())
    env = {**os.environ, "TEST_URL": server.url, "OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none"}
    env["OTEL_LLM_ENERGY_METERS"] = "cpu-estimate"
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", code]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=100, check=False)


def test_app_runs_the_same_when_every_warning_is_an_error() -> None:
    """In development mode, where an unclosed file, a forgotten coroutine or a deprecated call is an error."""
    with replaying() as server:
        plain, instrumented = (_run(server, _app(with_us)) for with_us in (False, True))
    assert (plain.returncode, plain.stderr) == (0, "")
    assert (instrumented.returncode, instrumented.stderr) == (0, "")
    assert instrumented.stdout == plain.stdout


@pytest.mark.e2e
def test_app_checks_the_same_when_it_is_type_checked(tmp_path: Path) -> None:
    """No type of the clients is another with us, and the examples are typed."""
    plain, instrumented = tmp_path / "plain.py", tmp_path / "instrumented.py"
    plain.write_text(_app(False))
    instrumented.write_text(_app(True))
    for file in (plain, instrumented, *_ROOT.glob("examples/*/main.py")):
        # LangChain is not here (`make peers` has it, in an environment of its own); xllamacpp has no types.
        command = [sys.executable, "-m", "mypy", "--strict", "--disable-error-code", "import"]
        command += ["--config-file", str(_ROOT / "pyproject.toml"), str(file)]
        checked = subprocess.run(command, capture_output=True, text=True, cwd=_ROOT, check=False)
        assert checked.returncode == 0, checked.stdout

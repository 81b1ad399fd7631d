"""Calls of one library instrumented by somebody else and by us: ``foreign.py WHOSE ORDER`` prints the spans as JSON.

WHOSE is a key of `INSTRUMENT`, ORDER ``theirs-first`` or ``ours-first``. A process of its own for each, since most of
these instrumentations cannot be taken back.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import otel_llm_energy
from tests.instrumentation import payloads
from tests.instrumentation.replay import ReplayServer, json_reply, ndjson_reply, replaying, sse_reply
from tests.support.waiting import until

_OLLAMA: dict[str, Any] = {
    "model": "m",
    "created_at": "2026-11-22T10:00:00Z",
    "message": {"role": "assistant", "content": "Paris"},
    "response": "Paris",
    "done": True,
    "done_reason": "stop",
    "load_duration": 1_000_000,
    "prompt_eval_count": 38,
    "prompt_eval_duration": 2_000_000,
    "eval_count": 8,
    "eval_duration": 3_000_000,
}
_QUESTION = "What is the capital of France?"
exporter = InMemorySpanExporter()

Surface = tuple[str, Callable[[], object]]


def main(whose: str, order: str) -> None:
    library, instrument_theirs = INSTRUMENT[whose]
    provider = set_up_tracing(whose)
    __import__(library)
    if order == "theirs-first":
        instrument_theirs()
    energy = otel_llm_energy.instrument(tracer_provider=provider)
    if order == "ours-first":
        instrument_theirs()
    until(lambda: bool(energy.status().channels))
    with replaying() as server:
        for name, call in SURFACES[library](server):
            call()
            energy.force_flush()
            print(json.dumps({"surface": name, "spans": [said(span) for span in exporter.get_finished_spans()]}))
            exporter.clear()
    energy.uninstrument()


def set_up_tracing(whose: str) -> Any:
    if whose == "logfire":
        import logfire

        logfire.configure(
            send_to_logfire=False, console=False, additional_span_processors=[SimpleSpanProcessor(exporter)]
        )
        return None
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return provider


def said(span: Any) -> dict[str, Any]:
    return {
        "name": span.name,
        "scope": span.instrumentation_scope.name,
        "attributes": {key: value for key, value in span.attributes.items() if isinstance(value, (str, int, float))},
    }


# Whose


def genai_openai() -> None:
    from opentelemetry.instrumentation.genai.openai import OpenAIInstrumentor

    OpenAIInstrumentor().instrument()


def genai_langchain() -> None:
    from opentelemetry.instrumentation.genai.langchain import LangChainInstrumentor

    LangChainInstrumentor().instrument()


def openllmetry_openai() -> None:
    from opentelemetry.instrumentation.openai import OpenAIInstrumentor

    OpenAIInstrumentor().instrument()


def openllmetry_ollama() -> None:
    from opentelemetry.instrumentation.ollama import OllamaInstrumentor

    OllamaInstrumentor().instrument()


def openllmetry_langchain() -> None:
    from opentelemetry.instrumentation.langchain import LangchainInstrumentor

    LangchainInstrumentor().instrument()


def openinference_openai() -> None:
    from openinference.instrumentation.openai import OpenAIInstrumentor

    OpenAIInstrumentor().instrument()


def openinference_ollama() -> None:
    from openinference.instrumentation.ollama import OllamaInstrumentor

    OllamaInstrumentor().instrument()


def openinference_langchain() -> None:
    from openinference.instrumentation.langchain import LangChainInstrumentor

    LangChainInstrumentor().instrument()


def logfire_openai() -> None:
    import logfire

    logfire.instrument_openai()


def openlit_both() -> None:
    import tempfile
    from pathlib import Path

    import openlit

    prices = Path(tempfile.mkdtemp()) / "prices.json"
    prices.write_text("{}")
    openlit.init(
        pricing_json=str(prices),
        disable_metrics=True,
        capture_message_content=False,
        disabled_instrumentors=["httpx", "requests", "langchain", "asyncio", "urllib", "urllib3", "aiohttp-client"],
    )


INSTRUMENT: dict[str, tuple[str, Callable[[], None]]] = {
    "genai-openai": ("openai", genai_openai),
    "genai-langchain": ("langchain_core", genai_langchain),
    "openllmetry-openai": ("openai", openllmetry_openai),
    "openllmetry-ollama": ("ollama", openllmetry_ollama),
    "openllmetry-langchain": ("langchain_core", openllmetry_langchain),
    "openinference-openai": ("openai", openinference_openai),
    "openinference-ollama": ("ollama", openinference_ollama),
    "openinference-langchain": ("langchain_core", openinference_langchain),
    "logfire": ("openai", logfire_openai),
    "openlit-openai": ("openai", openlit_both),
    "openlit-ollama": ("ollama", openlit_both),
}


# Calls


def of_openai(server: ReplayServer) -> Iterator[Surface]:
    import openai

    options: dict[str, Any] = {"base_url": f"{server.url}/v1", "api_key": "k", "max_retries": 0}
    client = openai.OpenAI(**options)
    ask: dict[str, Any] = {"model": "m", "messages": payloads.MESSAGES}

    async def two() -> None:
        async with openai.AsyncOpenAI(**options) as asynchronous:
            create = asynchronous.chat.completions.create
            await asyncio.gather(create(**ask), create(**ask))

    server.reply = json_reply(payloads.chat())
    yield "chat", lambda: client.chat.completions.create(**ask)
    yield "two at once", lambda: asyncio.run(two())
    server.reply = sse_reply(payloads.chunks())
    yield "stream", lambda: list(client.chat.completions.create(**ask, stream=True))
    server.reply = json_reply(payloads.RESPONSE)
    yield "responses", lambda: client.responses.create(model="m", input=_QUESTION)
    server.reply = json_reply(payloads.EMBEDDINGS)
    yield "embeddings", lambda: client.embeddings.create(model="m", input=_QUESTION)


def of_ollama(server: ReplayServer) -> Iterator[Surface]:
    import ollama

    client = ollama.Client(server.url)
    server.reply = json_reply(_OLLAMA)
    yield "chat", lambda: client.chat("m", payloads.MESSAGES)
    server.reply = ndjson_reply([_OLLAMA])
    yield "stream", lambda: list(client.chat("m", payloads.MESSAGES, stream=True))
    server.reply = json_reply(_OLLAMA)
    yield "generate", lambda: asyncio.run(ollama.AsyncClient(server.url).generate("m", _QUESTION))
    server.reply = json_reply({"model": "m", "embeddings": [[1.0]], "prompt_eval_count": 2})
    yield "embeddings", lambda: client.embed("m", _QUESTION)


def of_langchain(server: ReplayServer) -> Iterator[Surface]:
    import openai
    from langchain_core.prompts import ChatPromptTemplate
    from langchain_ollama import ChatOllama
    from langchain_openai import ChatOpenAI, OpenAIEmbeddings

    options: dict[str, Any] = {"model": "m", "base_url": f"{server.url}/v1", "api_key": "k", "max_retries": 0}
    prompt = ChatPromptTemplate.from_template("{question}")
    questions = [{"question": "one"}, {"question": "two"}]
    server.reply = json_reply(payloads.chat())
    model = ChatOpenAI(**options)
    chain = prompt | model
    yield "invoke", lambda: model.invoke(_QUESTION)
    yield "chain", lambda: chain.invoke(questions[0])
    yield "batch", lambda: chain.batch(questions)
    loop = asyncio.new_event_loop()  # one for both: langchain-openai keeps its connections
    yield "abatch", lambda: loop.run_until_complete(chain.abatch(questions))

    async def then_a_clients() -> None:
        await model.ainvoke(_QUESTION)
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="k", max_retries=0) as client:
            await client.chat.completions.create(model="m", messages=payloads.MESSAGES)

    yield "then a client's", lambda: loop.run_until_complete(then_a_clients())
    server.reply = sse_reply(payloads.chunks())
    yield "stream", lambda: list(chain.stream(questions[0]))
    server.reply = json_reply(payloads.RESPONSE)
    yield "responses", lambda: ChatOpenAI(**options, use_responses_api=True).invoke(_QUESTION)
    server.reply = ndjson_reply([_OLLAMA])
    yield "ollama", lambda: ChatOllama(model="m", base_url=server.url).invoke(_QUESTION)
    server.reply = json_reply(payloads.EMBEDDINGS)
    embeddings = OpenAIEmbeddings(**options, check_embedding_ctx_length=False)
    yield "embeddings", lambda: embeddings.embed_query(_QUESTION)


SURFACES: dict[str, Callable[[ReplayServer], Iterator[Surface]]] = {
    "openai": of_openai,
    "ollama": of_ollama,
    "langchain_core": of_langchain,
}

if __name__ == "__main__":
    main(*sys.argv[1:])

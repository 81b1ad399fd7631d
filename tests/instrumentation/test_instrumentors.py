"""The instrumentors come and go without a trace, whoever else patches the same methods."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from typing import Any

import ollama
import openai
import pytest
import wrapt

from otel_llm_instrumentation.ollama import OllamaInstrumentor
from otel_llm_instrumentation.openai import OpenAIInstrumentor
from tests.instrumentation import payloads
from tests.instrumentation.conftest import Watched
from tests.instrumentation.replay import ReplayServer, json_reply

_ASK: dict[str, Any] = {"model": "m", "messages": payloads.MESSAGES}
_OLLAMA_METHOD = "_request_stream" if hasattr(ollama.Client, "_request_stream") else "_request"
_METHODS = [
    (openai.OpenAI, "request"),
    (openai.AsyncOpenAI, "request"),
    (ollama.Client, _OLLAMA_METHOD),
    (ollama.AsyncClient, _OLLAMA_METHOD),
]


def _create(server: ReplayServer) -> Any:
    server.reply = json_reply(payloads.chat())
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="k").chat.completions.create


def test_classes_are_as_before_when_uninstrumented() -> None:
    """Inherited methods are inherited again, own methods are the same objects."""
    before = [vars(owner).get(name) for owner, name in _METHODS]
    for instrumentor in (OpenAIInstrumentor(), OllamaInstrumentor()):
        instrumentor.instrument()
        assert [vars(owner).get(name) for owner, name in _METHODS] != before
        instrumentor.uninstrument()
    assert [vars(owner).get(name) for owner, name in _METHODS] == before


def test_one_span_is_made_when_instrumented_twice(server: ReplayServer, watched: Watched) -> None:
    """Twice is once."""
    OpenAIInstrumentor().instrument(tracer_provider=watched.provider)
    _create(server)(**_ASK)
    watched.only_span()


def test_foreign_wrapper_stays_when_it_was_put_over_ours(server: ReplayServer) -> None:
    """Ours under it passes through, and a second `instrument()` still makes one span a call."""
    foreign: list[str] = []

    def count(wrapped: Any, _instance: object, args: Any, kwargs: Any) -> Any:
        foreign.append("call")
        return wrapped(*args, **kwargs)

    watched, instrumentor = Watched(), OpenAIInstrumentor()
    instrumentor.instrument(tracer_provider=watched.provider)
    wrapt.wrap_function_wrapper(openai.OpenAI, "request", count)
    try:
        instrumentor.uninstrument()
        _create(server)(**_ASK)
        assert (len(foreign), len(watched.spans)) == (1, 0)
        instrumentor.instrument(tracer_provider=watched.provider)
        _create(server)(**_ASK)
        assert (len(foreign), len(watched.spans)) == (2, 1)
        instrumentor.uninstrument()
    finally:
        del openai.OpenAI.request
    _create(server)(**_ASK)
    assert (len(foreign), len(watched.spans)) == (2, 1)


def test_bound_method_passes_through_when_it_was_cached_while_instrumented(server: ReplayServer) -> None:
    """The library caches bound methods of raw clients."""
    watched = Watched()
    OpenAIInstrumentor().instrument(tracer_provider=watched.provider)
    server.reply = json_reply(payloads.chat())
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="k")
    cached, raw = client.request, client.chat.completions.with_raw_response
    raw.create(**_ASK)
    OpenAIInstrumentor().uninstrument()
    raw.create(**_ASK)
    client.request = cached  # type: ignore[method-assign]
    raw.create(**_ASK)
    assert len(watched.spans) == 1


def test_call_still_ends_when_uninstrumented_while_it_is_open(server: ReplayServer) -> None:
    """No span is lost between the two."""
    watched = Watched()
    OpenAIInstrumentor().instrument(tracer_provider=watched.provider)
    server.reply = json_reply(payloads.chat())
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="k")
    with client.chat.completions.with_streaming_response.create(**_ASK) as raw:
        OpenAIInstrumentor().uninstrument()
        raw.parse()
    assert len(watched.spans) == 1


_PRELUDE = """
import sys
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from otel_llm_instrumentation.openai import OpenAIInstrumentor
from otel_llm_instrumentation.ollama import OllamaInstrumentor
from otel_llm_instrumentation.http import HTTPInstrumentor
exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
"""


@pytest.mark.parametrize(
    "script",
    [
        """
        OpenAIInstrumentor().instrument(tracer_provider=provider)
        OllamaInstrumentor().instrument(tracer_provider=provider)
        assert not {"openai", "ollama", "httpx", "httpx2", "pydantic"} & set(sys.modules)
        import openai, ollama
        ask()
        assert len(exporter.get_finished_spans()) == 1
        OpenAIInstrumentor().uninstrument()
        assert "request" not in vars(openai.OpenAI)
        """,
        """
        HTTPInstrumentor().instrument(tracer_provider=provider)
        assert not {"requests", "httpx", "httpx2", "aiohttp"} & set(sys.modules)
        import aiohttp
        assert hasattr(aiohttp.ClientSession._request, "__wrapped__")
        HTTPInstrumentor().uninstrument()
        assert not hasattr(aiohttp.ClientSession._request, "__wrapped__")
        """,
        """
        OpenAIInstrumentor().instrument(tracer_provider=provider)
        OpenAIInstrumentor().uninstrument()
        import openai
        assert "request" not in vars(openai.OpenAI)
        OpenAIInstrumentor().instrument(tracer_provider=provider)
        ask()
        assert len(exporter.get_finished_spans()) == 1
        """,
        """
        OpenAIInstrumentor().instrument()
        from opentelemetry import trace
        trace.set_tracer_provider(provider)
        ask()
        assert len(exporter.get_finished_spans()) == 1
        """,
        """
        import os
        os.environ["OTEL_SDK_DISABLED"] = "true"
        from otel_llm_instrumentation import add_observer
        ended = []
        class Observer:
            def call_started(self, call): pass
            def first_chunk(self, call): pass
            def call_ended(self, call): ended.append(call.output_tokens)
        add_observer(Observer())
        OpenAIInstrumentor().instrument(tracer_provider=TracerProvider())
        ask()
        assert ended == [8], ended
        """,
        """
        import importlib.abc, threading
        begun, go_on = threading.Event(), threading.Event()
        class Slow(importlib.abc.MetaPathFinder):
            def find_spec(self, name, path, target=None):
                if name == "openai._client":
                    begun.set()
                    assert go_on.wait(30)
        sys.meta_path.insert(0, Slow())
        other = threading.Thread(target=lambda: __import__("openai"))
        other.start()
        assert begun.wait(30)
        assert not hasattr(sys.modules["openai"], "OpenAI")
        threading.Timer(0.2, go_on.set).start()
        OpenAIInstrumentor().instrument(tracer_provider=provider)
        other.join()
        ask()
        assert len(exporter.get_finished_spans()) == 1
        """,
    ],
    ids=[
        *("before the import", "before the import of aiohttp", "undone before the import", "before the provider"),
        *("SDK disabled", "amid an import"),
    ],
)
def test_instrument_works_in_a_fresh_process_when_called(script: str, server: ReplayServer) -> None:
    """Whatever the app has imported or set by then; the wrappers import no client library themselves."""
    server.reply = json_reply(payloads.chat())
    ask = f"""
def ask():
    import openai
    client = openai.OpenAI(base_url={server.url!r} + "/v1", api_key="k")
    client.chat.completions.create(model="m", messages=[])
"""
    code = _PRELUDE + ask + textwrap.dedent(script)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr

"""Streams that the app has neither read to their end nor closed when its process ends, or forks."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.instrumentation import payloads
from tests.instrumentation.replay import ReplayServer, sse_reply

_SET_UP = """
import os, sys
import openai, requests
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter
from otel_llm_instrumentation.http import HTTPInstrumentor
from otel_llm_instrumentation.openai import OpenAIInstrumentor

provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(ConsoleSpanExporter(formatter=lambda span: span.name + os.linesep)))
OpenAIInstrumentor().instrument(tracer_provider=provider, skip_dep_check=True)
HTTPInstrumentor().instrument(tracer_provider=provider, skip_dep_check=True)
url = sys.argv[1] + "/v1"
ask = {"model": "m", "messages": [], "stream": True}
"""
_OPENAI = """
stream = openai.OpenAI(base_url=url, api_key="k").chat.completions.create(**ask)
next(stream)
"""
_RAW = """
raw = openai.OpenAI(base_url=url, api_key="k").chat.completions.with_raw_response.create(**ask)
"""
_REQUESTS = """
lines = requests.post(url + "/chat/completions", json=ask, stream=True).iter_lines()
next(lines)
"""
_UNREAD = """
response = requests.post(url + "/chat/completions", json=ask, stream=True)
"""
_FORKED = """
child = os.fork()
if not child:
    del {kept}
    sys.exit()  # with all hooks of the exit
os.waitpid(child, 0)
"""


def _said(program: str, server: ReplayServer) -> str:
    server.reply = sse_reply(payloads.chunks(), hangs=True)
    command = [sys.executable, "-c", _SET_UP + program, server.url]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.mark.parametrize("program", [_OPENAI, _RAW, _REQUESTS], ids=["openai", "raw", "requests"])
def test_open_stream_has_its_span_when_the_process_ends(program: str, server: ReplayServer) -> None:
    """It ends before the provider is shut down; what is collected after that reaches no exporter."""
    assert _said(program, server) == "chat m\n"


@pytest.mark.parametrize(
    ("program", "kept"), [(_OPENAI, "stream"), (_RAW, "raw"), (_REQUESTS, "lines"), (_UNREAD, "response")]
)
def test_open_stream_has_one_span_when_a_forked_child_lets_go_of_it(
    program: str, kept: str, server: ReplayServer
) -> None:
    """The call is its parent's."""
    assert _said(program + _FORKED.format(kept=kept), server) == "chat m\n"

"""Finding and watching the real model servers."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest
import requests

from otel_llm_energy.servers import CpuActivity, resolve
from otel_llm_energy.servers.props import slots_told
from tests.conftest import LlamaServerFactory
from tests.support.backends import Ollama
from tests.support.cpu_time import tree_cpu_ns


def cpu_ns_of_a_call(url: str, body: dict[str, object]) -> tuple[int, int, int]:
    """What one call made its server use by our samples, by the kernel's own account, and the samples' resolution."""
    address = urlsplit(url)
    assert address.hostname is not None and address.port is not None
    server = resolve(address.hostname, address.port)
    assert server.pid is not None, server.message
    activity = CpuActivity()
    activity.watch(server)
    before, truth_before_ns = activity.sample(), tree_cpu_ns(server.pid)
    requests.post(url, json=body, timeout=60).raise_for_status()
    after, truth_after_ns = activity.sample(), tree_cpu_ns(server.pid)
    activity.close()
    assert before is not None and after is not None
    before_ns, after_ns = before.by_server_ns[server.id], after.by_server_ns[server.id]
    assert before_ns is not None and after_ns is not None
    return after_ns - before_ns, truth_after_ns - truth_before_ns, after.resolution_ns


def test_the_work_is_seen_when_llama_cpp_answers(llama_server: LlamaServerFactory) -> None:
    """The real llama.cpp server is found at its address, and a call's CPU time is its own."""
    server = llama_server()
    body = {"messages": [{"role": "user", "content": "Say something."}], "max_tokens": 20}
    used_ns, truth_ns, resolution_ns = cpu_ns_of_a_call(f"{server.base_url}/chat/completions", body)
    assert resolve("localhost", urlsplit(server.base_url).port or 0).pid == server.pid
    assert used_ns > 50_000_000
    assert abs(used_ns - truth_ns) <= resolution_ns


def test_slots_are_told_when_llama_cpp_is_asked(llama_server: LlamaServerFactory) -> None:
    """By its own word, since its command line need not say."""
    assert slots_told("127.0.0.1", urlsplit(llama_server(slots=2).base_url).port or 0) == 2


@pytest.mark.e2e
def test_the_work_is_the_runners_when_ollama_answers(ollama: Ollama) -> None:
    """Ollama listens, a child that starts at the first call works; slots are read from the environment."""
    server = resolve("localhost", urlsplit(ollama.host).port or 0)
    assert (server.pid, server.name, server.slots) == (ollama.pid, "ollama", 1)
    body = {"model": ollama.model, "prompt": "Say something.", "stream": False, "options": {"num_predict": 20}}
    used_ns, truth_ns, resolution_ns = cpu_ns_of_a_call(f"{ollama.host}/api/generate", body)
    assert used_ns > 50_000_000
    assert abs(used_ns - truth_ns) <= resolution_ns

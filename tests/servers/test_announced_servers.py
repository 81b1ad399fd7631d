"""Which servers the environment says the clients will call."""

from __future__ import annotations

import pytest

from otel_llm_energy.servers.announced import announced


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("OPENAI_BASE_URL", "http://127.0.0.1:8080/v1", ("127.0.0.1", 8080)),
        ("OPENAI_BASE_URL", "https://llm.example/v1", ("llm.example", 443)),
        ("OPENAI_BASE_URL", " http://[::1]:8000 ", ("::1", 8000)),
        ("OPENAI_API_BASE", "http://localhost/v1", ("localhost", 80)),
        ("OLLAMA_HOST", "127.0.0.1", ("127.0.0.1", 11434)),
        ("OLLAMA_HOST", "0.0.0.0:11500", ("0.0.0.0", 11500)),
        ("OLLAMA_HOST", ":11500", ("127.0.0.1", 11500)),
        ("OLLAMA_HOST", "[::1]", ("::1", 11434)),
        ("OLLAMA_HOST", "https://ollama.example", ("ollama.example", 443)),
    ],
)
def test_server_is_taken_from_the_variables_of_clients(variable: str, value: str, expected: tuple[str, int]) -> None:
    """With the ports that the clients would use."""
    assert list(announced({variable: value})) == [expected]


@pytest.mark.parametrize(
    "value", ["", "   ", "127.0.0.1:8080/v1", "http://", "http://[::1", "http://h:port", "ftp://h/"]
)
def test_what_is_no_address_of_a_server_is_left_out(value: str) -> None:
    """Nothing is raised: the client complains when it is made."""
    assert list(announced({"OPENAI_BASE_URL": value})) == []


def test_all_variables_count() -> None:
    """An app may use several clients."""
    environ = {"OPENAI_BASE_URL": "http://localhost:8080/v1", "OLLAMA_HOST": "localhost", "OTHER": "http://localhost:1"}
    assert list(announced(environ)) == [("localhost", 8080), ("localhost", 11434)]

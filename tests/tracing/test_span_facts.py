"""What the span of another library says of its call."""

from __future__ import annotations

import pytest

from otel_llm_energy.tracing.claims import Tokens
from otel_llm_energy.tracing.span_facts import marks_a_call, tokens_of


@pytest.mark.parametrize(
    ("input_key", "output_key"),
    [
        ("gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens"),
        ("gen_ai.usage.prompt_tokens", "gen_ai.usage.completion_tokens"),
        ("llm.token_count.prompt", "llm.token_count.completion"),
        ("llm.usage.prompt_tokens", "llm.usage.completion_tokens"),
    ],
)
def test_tokens_are_read_when_another_library_names_them(input_key: str, output_key: str) -> None:
    """Current names, deprecated ones, OpenInference's and OpenLLMetry's; what is no count is none."""
    assert tokens_of({input_key: 38, output_key: 0}) == Tokens(38, 0)
    assert tokens_of({input_key: -1, output_key: "8"}) == Tokens(None, None)


@pytest.mark.parametrize(
    ("key", "calls", "others"),
    [
        (
            "gen_ai.operation.name",
            ["chat", "text_completion", "generate_content", "embeddings"],
            ["execute_tool", "invoke_agent", "invoke_workflow", "create_agent", "fetch_response"],
        ),
        ("openinference.span.kind", ["LLM", "EMBEDDING"], ["CHAIN", "AGENT", "TOOL", "RETRIEVER", "RERANKER"]),
        ("llm.request.type", ["chat", "completion", "embedding"], ["rerank", "unknown"]),
    ],
)
def test_only_single_calls_are_marked_when_another_library_says_what_a_span_is(
    key: str, calls: list[str], others: list[str]
) -> None:
    """A chain's, an agent's or a tool's span is a container: it has no energy of its own."""
    assert [marks_a_call({key: kind}) for kind in calls] == [True] * len(calls)
    assert [marks_a_call({key: kind}) for kind in others] == [False] * len(others)

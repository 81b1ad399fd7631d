"""Content ends at the gateway, whoever named it how, and nothing else does."""

from __future__ import annotations

from pathlib import Path

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from tests.e2e.stack import awaited
from tests.support.backends import Collector
from tests.support.children import free_port
from tests.support.otlp_receiver import receiving_otlp

pytestmark = pytest.mark.e2e

_CONTENT = (
    "gen_ai.input.messages",
    "gen_ai.output.messages",
    "gen_ai.system_instructions",
    "gen_ai.tool.definitions",
    "gen_ai.tool.call.arguments",
    "gen_ai.tool.call.result",
    "gen_ai.retrieval.query.text",
    "gen_ai.task.input",
    "gen_ai.task.output",
    "gen_ai.prompt.0.content",
    "gen_ai.completion.0.content",
    "input.value",
    "output.value",
    "llm.prompts",
    "llm.input_messages.0.message.content",
    "llm.prompt_template.template",
    "llm.prompt_template.variables",
    "llm.tools.0.tool.json_schema",
    "llm.choices.0.completion.text",
    "embedding.embeddings.0.embedding.text",
    "retrieval.documents.0.document.content",
    "retrieval.documents.0.document.metadata",
    "reranker.query",
    "reranker.input_documents.0.document.content",
    "tool.parameters",
    "traceloop.entity.input",
    "traceloop.prompt.template",
    "traceloop.prompt.template_variables",
)
_KEPT = (
    "gen_ai.request.model",
    "gen_ai.usage.input_tokens",
    "gen_ai.output.type",
    "gen_ai.tool.call.id",
    "gen_ai.task.kind",
    "llm.energy.joules",
    "llm.model_name",
    "llm.prompt_template.version",
    "embedding.model_name",
    "tool.name",
    "input.mime_type",
)


def test_content_is_deleted_from_spans_without_events_when_it_has_any_known_name(tmp_path: Path) -> None:
    """A stand-in receives what the gateway sends to Jaeger: energy and model are there, content is not."""
    with receiving_otlp() as receiver:
        outlets = {
            "JAEGER": receiver.grpc_endpoint.removeprefix("http://"),
            "TEMPO": f"127.0.0.1:{free_port()}",
            "PROMETHEUS": f"http://127.0.0.1:{free_port()}",
        }
        with Collector(["gateway.yaml"], tmp_path, outlets) as gateway:
            provider = TracerProvider()
            provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(f"{gateway.otlp_http}/v1/traces")))
            with provider.get_tracer("test").start_as_current_span("chat") as span:
                span.set_attributes(dict.fromkeys((*_CONTENT, *_KEPT), "text"))
            provider.shutdown()
            (received,) = awaited(lambda: receiver.spans, bool)
    assert set(received.attributes) == set(_KEPT)

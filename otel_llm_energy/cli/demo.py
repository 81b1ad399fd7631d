"""The demo: a real model, real calls, and the joules of each on its span."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

import otel_llm_energy
from otel_llm_energy.cli import CommandError, require_demo_extra
from otel_llm_energy.cli.metering import (
    MOST_BASELINE_SECONDS,
    insist_on_the_named_meter,
    learn_baseline,
    log_without,
    missing,
    status_once_discovered,
    wait_until,
)
from otel_llm_energy.cli.model import ModelError, ensure_model
from otel_llm_energy.cli.model_server import ModelServer, ServerOptions
from otel_llm_energy.cli.progress import say
from otel_llm_energy.cli.questions import CALLS, ROOT_SPAN, Questioner
from otel_llm_energy.cli.results import Node, Results, balance_of, tree_of
from otel_llm_energy.runtime import LAST_READING_SECONDS
from otel_llm_energy.setting_values import as_http_url

_SLOTS = 2  # four calls at once then both share the server and queue for it
_EXPORT_SECONDS = 5
_GRPC_PORT = 4317
_PROTOCOL = "OTEL_EXPORTER_OTLP_PROTOCOL"


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What the user asked for; ``None`` where they did not ask.

    Attributes:
        named_meter: the one to read, as options of `instrument`; none where they named none.
        base_url: of a server to ask instead of our own.
        model: its model; without ``base_url`` the path of a GGUF file.
        otlp_endpoint: where to send the spans, too.
        as_json: one object on standard output, and nothing else there.
    """

    named_meter: Mapping[str, Any]
    base_url: str | None = None
    model: str | None = None
    otlp_endpoint: str | None = None
    as_json: bool = False


def run_demo(options: DemoOptions) -> int:
    """Ask, wait for the joules and show them; 0 then.

    Raises:
        CommandError: something that it needs is missing or fails.
    """
    _require_extra(options)
    _require_urls(options)
    results = _results(options)
    if options.as_json:
        print(json.dumps(results.as_json(), indent=2, allow_nan=False), flush=True)
    else:
        from otel_llm_energy.cli.screen import show

        show(results)
    if options.otlp_endpoint is not None:
        _send([node.span for node in results.tree.walk()], options.otlp_endpoint)
    return 0


def _require_extra(options: DemoOptions) -> None:
    wanted = [] if options.as_json else ["rich"]
    wanted += [] if options.base_url else ["xllamacpp"]
    require_demo_extra(wanted)


def _require_urls(options: DemoOptions) -> None:
    """What no client can call is said before anything is asked."""
    for name, url, example in (
        ("--base-url", options.base_url, "http://localhost:8000/v1"),
        ("--otlp", options.otlp_endpoint, "http://localhost:4318"),
    ):
        if url is None or (name == "--otlp" and os.environ.get(_PROTOCOL) == "grpc"):  # gRPC knows other forms
            continue
        try:
            as_http_url(url)
        except ValueError as error:
            raise CommandError(f"{name} cannot be {url!r}. Write it as {example} is written.") from error


def _results(options: DemoOptions) -> Results:
    spans = InMemorySpanExporter()
    provider = _provider(spans)
    with _server(options) as questioner, _energy(options, provider) as energy:
        _wait_for_baseline(energy)
        say(f"Asking {questioner.model} {CALLS} questions: three one after another, four at once, one streamed.")
        questioner.ask_all(provider.get_tracer("otel-llm-energy demo"))
        tree = _finished_tree(energy, spans, questioner)
        status = energy.status()
        return Results(tree, balance_of(status), status)


def _provider(spans: InMemorySpanExporter) -> TracerProvider:
    service = os.environ.get("OTEL_SERVICE_NAME", "otel-llm-energy-demo")
    provider = TracerProvider(sampler=ALWAYS_ON, resource=Resource.create({SERVICE_NAME: service}))
    provider.add_span_processor(SimpleSpanProcessor(spans))
    return provider


@contextmanager
def _server(options: DemoOptions) -> Iterator[Questioner]:
    """The user's server, or our own for the length of the block."""
    if options.base_url is not None:
        yield Questioner(options.base_url, os.environ.get("OPENAI_API_KEY"), options.model)
        return
    with ExitStack() as stack:
        try:
            gguf = Path(options.model) if options.model else ensure_model()
            say("Starting llama.cpp's server on loopback.")
            server = stack.enter_context(ModelServer(ServerOptions(gguf, slots=_SLOTS)))
        except ModelError as error:
            raise CommandError(str(error)) from error
        yield Questioner(server.base_url, None, None)


@contextmanager
def _energy(options: DemoOptions, provider: TracerProvider) -> Iterator[otel_llm_energy.Instrumentation]:
    """The one line, once the meters have been looked for, and its end."""
    told: list[str] = []
    with ExitStack() as stack:
        with log_without(told):
            energy = _instrumented(options, provider)
            stack.callback(energy.uninstrument)
            status = status_once_discovered(energy.status)
            if options.named_meter:
                told += [one.message for one in missing(status)]
                insist_on_the_named_meter(status)
        yield energy


def _instrumented(options: DemoOptions, provider: TracerProvider) -> otel_llm_energy.Instrumentation:
    try:
        energy = otel_llm_energy.instrument(
            tracer_provider=provider,
            clients=["openai"],
            detail="full",
            board="off",  # its calls have a server of their own; other processes' settings are none of its business
            **options.named_meter,
        )
    except otel_llm_energy.SettingError as error:
        raise CommandError(str(error)) from error
    if not energy.active:
        raise CommandError("OTEL_SDK_DISABLED=true switches everything off. Unset it.")
    return energy


def _wait_for_baseline(energy: otel_llm_energy.Instrumentation) -> None:
    """The meters learn idle power in the background, from the time before the first call."""
    if not energy.status().channels:
        return
    if learn_baseline(energy):
        watts = ", ".join(f"{each.channel.id} {each.idle_watts or 0:.3g} W" for each in energy.status().channels)
        say(f"Idle baseline: {watts}.")
    else:
        say(f"The idle baseline was not learned in {MOST_BASELINE_SECONDS:.0f} s: early calls will lack above idle.")


def _finished_tree(
    energy: otel_llm_energy.Instrumentation, spans: InMemorySpanExporter, questioner: Questioner
) -> Node:
    """The tree, once the reading that covers the last call has come: the root leaves after all below it."""

    def tree() -> Node | None:
        return tree_of(spans.get_finished_spans(), ROOT_SPAN, questioner.asked)

    if not wait_until(lambda: tree() is not None, LAST_READING_SECONDS):
        energy.force_flush()
    found = tree()
    if found is None:
        raise CommandError("The spans did not come back from the pipeline. Please report this.")
    return found


def _send(spans: Sequence[ReadableSpan], endpoint: str) -> None:
    """Send all spans at once, so that it is known whether they arrived."""
    exporter = _exporter(endpoint)
    try:
        sent = exporter.export(spans) is SpanExportResult.SUCCESS
    finally:
        exporter.shutdown()
    if not sent:
        raise CommandError(f"{endpoint} did not take the spans; the exporter's words are above.")
    context = spans[0].get_span_context()
    trace_id = f"{context.trace_id:032x}" if context else ""
    say(f"Sent {len(spans)} spans to {endpoint}: trace {trace_id}.")


def _exporter(endpoint: str) -> SpanExporter:
    """gRPC on its standard port or where ``OTEL_EXPORTER_OTLP_PROTOCOL`` says so; else HTTP."""
    protocol = os.environ.get(_PROTOCOL)
    if protocol == "grpc" or (protocol is None and urlsplit(endpoint).port == _GRPC_PORT):
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcSpanExporter

        return GrpcSpanExporter(endpoint=endpoint, timeout=_EXPORT_SECONDS)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    url = endpoint.rstrip("/")
    return OTLPSpanExporter(endpoint=url if url.endswith("/v1/traces") else f"{url}/v1/traces", timeout=_EXPORT_SECONDS)

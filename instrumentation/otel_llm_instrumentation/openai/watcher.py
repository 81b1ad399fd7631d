"""Calls of the ``openai`` client: where they begin."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any, Protocol

from otel_llm_instrumentation.bodies import Answer, Bodies
from otel_llm_instrumentation.call import Call, begin_call
from otel_llm_instrumentation.facts import Request, as_text, request_attributes
from otel_llm_instrumentation.openai.answers import PendingStream, watch_parse
from otel_llm_instrumentation.openai.routes import route_of
from otel_llm_instrumentation.patching import Patch
from otel_llm_instrumentation.providers import AZURE_OPENAI, provider_in_headers, provider_of_host
from otel_llm_instrumentation.telemetry import Telemetry
from otel_llm_instrumentation.watcher import Watcher, watch, watch_async


class _Options(Protocol):
    """What ``FinalRequestOptions`` has in every supported version."""

    method: str
    url: str
    json_data: object
    extra_json: Mapping[str, object] | None


class OpenAIWatcher(Watcher):
    """Observes ``OpenAI.request`` and ``AsyncOpenAI.request``."""

    def __init__(self, telemetry: Telemetry) -> None:
        super().__init__(telemetry)
        # The classes by which answers and clients are told apart, known once the library is imported.
        self._stream_types: tuple[type, ...] = ()
        self._model_types: tuple[type, ...] = ()
        self._azure_types: tuple[type, ...] = ()
        self._bodies = Bodies()

    def patches(self, module: ModuleType) -> tuple[Patch, ...]:
        self._stream_types = (module.Stream, module.AsyncStream)
        self._model_types = (module.BaseModel,)
        self._azure_types = (module.AzureOpenAI, module.AsyncAzureOpenAI)
        return (
            Patch(module.OpenAI, "request", lambda original: watch(original, self), beneath=True),
            Patch(module.AsyncOpenAI, "request", lambda original: watch_async(original, self), beneath=True),
        )

    def _begin(self, client: object, args: tuple[object, ...], kwargs: Mapping[str, object]) -> Call | None:
        options: _Options = kwargs["options"] if "options" in kwargs else args[1]  # type: ignore[assignment]
        route = route_of(options.url)
        if route is None or options.method.lower() != "post":
            return None
        body = _body(options)
        address, port = self.server(options.url, _base_url(client), getattr(client, "_client", None))
        request = Request(
            route,
            self._provider(client, address),
            as_text(body.get("model")),
            address,
            port,
            kwargs.get("stream") is True,
            request_attributes(body, route.parameters),
            body,
        )
        return begin_call(self.telemetry, request)

    def _provider(self, client: object, address: str | None) -> str:
        return AZURE_OPENAI if isinstance(client, self._azure_types) else provider_of_host(address)

    def _deliver(self, call: Call, result: object) -> object:
        response = self._response(result)
        if response is None:
            if isinstance(result, str):  # as the app had it cast
                call.see_body(result.encode())
            else:
                call.see(result)
            call.end()
            return result
        call.evident_provider = provider_in_headers(response.headers)
        if isinstance(result, self._stream_types):
            PendingStream(call, result)
        elif response.is_closed and not call.streaming:
            call.see_body(response.content)
            call.end()
        else:
            self._watch_body(call, result, response)
        return result

    def _watch_body(self, call: Call, raw: Any, response: Any) -> None:
        """Look at what the app reads of a raw response, or of the stream that it has it parsed into."""
        answer = Answer(call, response.headers)

        def adopt(parsed: object) -> bool:
            if not isinstance(parsed, self._stream_types):
                return False
            answer.let_go()
            PendingStream(call, parsed)
            return True

        if call.streaming:
            watch_parse(raw, adopt)
        self._bodies.watch(response.stream, answer)

    def _response(self, result: object) -> Any:
        """The HTTP response behind a stream or a raw answer, or that is the answer; ``None`` behind a parsed one."""
        if isinstance(result, self._model_types):
            return None
        response = getattr(result, "response" if isinstance(result, self._stream_types) else "http_response", None)
        if response is None and hasattr(result, "is_closed") and hasattr(result, "headers"):
            return result  # `client.post(..., cast_to=httpx.Response)`
        return response


def _base_url(client: object) -> object:
    """Of the client, past a property that imports its own code anew each time, from 3.x on."""
    base_url: object = getattr(client, "_base_url", None)
    return base_url if base_url is not None else getattr(client, "base_url", None)


def _body(options: _Options) -> Mapping[str, object]:
    body = options.json_data if isinstance(options.json_data, dict) else {}
    return {**body, **options.extra_json} if options.extra_json else body

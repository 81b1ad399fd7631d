"""Calls of the ``ollama`` client: where they begin, and what ends them."""

from __future__ import annotations

from collections.abc import Mapping
from types import AsyncGeneratorType, GeneratorType, ModuleType

from otel_llm_instrumentation.call import Call, Lease, begin_call
from otel_llm_instrumentation.facts import Request, as_text, request_attributes
from otel_llm_instrumentation.ollama.routes import ROUTES, parameters
from otel_llm_instrumentation.patching import Patch
from otel_llm_instrumentation.streams import watched, watched_async
from otel_llm_instrumentation.watcher import Watcher, watch, watch_async

_NOTHING: Mapping[str, object] = {}


class OllamaWatcher(Watcher):
    """Observes ``Client._request`` and ``AsyncClient._request``."""

    def patches(self, module: ModuleType) -> tuple[Patch, ...]:
        # Before 0.4 the requests that may stream had a method of their own.
        name = "_request_stream" if hasattr(module.Client, "_request_stream") else "_request"
        return (
            Patch(module.Client, name, lambda original: watch(original, self), beneath=True),
            Patch(module.AsyncClient, name, lambda original: watch_async(original, self), beneath=True),
        )

    def _begin(self, client: object, args: tuple[object, ...], kwargs: Mapping[str, object]) -> Call | None:
        path = _path(args, kwargs)
        route = ROUTES.get(path)
        if route is None:
            return None
        body = _mapping(kwargs.get("json"))
        http_client = getattr(client, "_client", None)
        address, port = self.server(path, getattr(http_client, "base_url", None), http_client)
        request = Request(
            route,
            "ollama",
            as_text(body.get("model")),
            address,
            port,
            kwargs.get("stream") is True,
            request_attributes(parameters(body), route.parameters),
            body,
        )
        return begin_call(self.telemetry, request)

    def _deliver(self, call: Call, result: object) -> object:
        if isinstance(result, GeneratorType):
            return watched(Lease(call), result)
        if isinstance(result, AsyncGeneratorType):
            return watched_async(Lease(call), result, closes_chunks=True)
        call.see(result)
        call.end()
        return result


def _path(args: tuple[object, ...], kwargs: Mapping[str, object]) -> str:
    """The path of a request: after the method, before which 0.4 and later have the class of the answer."""
    url = kwargs.get("url") or next((arg for arg in args if isinstance(arg, str) and arg.startswith("/")), "")
    return url if isinstance(url, str) else ""


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else _NOTHING

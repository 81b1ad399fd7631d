"""Bare calls of ``requests``, ``httpx``, ``httpx2`` and ``aiohttp``: where they begin, and what ends them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from types import ModuleType
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from opentelemetry.context import _SUPPRESS_HTTP_INSTRUMENTATION_KEY, get_value
from opentelemetry.trace import Span, get_current_span

from otel_llm_instrumentation.address import Server, server_of
from otel_llm_instrumentation.bodies import Answer, Bodies, see_payloads, tail_of
from otel_llm_instrumentation.call import Call, begin_call, is_below_a_call, is_observed
from otel_llm_instrumentation.facts import Request, as_text, request_attributes
from otel_llm_instrumentation.http.routes import endpoint_of, json_object
from otel_llm_instrumentation.patching import Patch
from otel_llm_instrumentation.providers import provider_in_headers
from otel_llm_instrumentation.telemetry import Telemetry
from otel_llm_instrumentation.watcher import Watcher, watch, watch_async

_FIRST_ERROR_STATUS: Final = 400
_REQUESTS_MARK: Final = "opentelemetry_instrumentation_requests_applied"
_REQUESTS_SCOPE: Final = "opentelemetry.instrumentation.requests"
_AIOHTTP_PARAMETERS: Final = ("method", "str_or_url")


class HTTPWatcher(Watcher):
    """What the HTTP libraries have in common."""

    def __init__(self, telemetry: Telemetry) -> None:
        super().__init__(telemetry)
        self._bodies = Bodies()

    def begin(self, client: object, args: tuple[object, ...], kwargs: Mapping[str, object]) -> Call | None:
        # Most are below a call of a client library.
        return None if is_below_a_call() else super().begin(client, args, kwargs)

    def _begin(self, client: object, args: tuple[object, ...], kwargs: Mapping[str, object]) -> Call | None:
        request = self._request(args, kwargs)
        if request.method != "POST" or not is_observed():
            return None
        endpoint = endpoint_of(self._path(client, request))
        if endpoint is None or self._is_suppressed():
            return None
        body = self._sent(request)
        if body is None or not endpoint.fits(body):
            return None
        address, port = self._server(client, request)
        return begin_call(
            self.telemetry,
            Request(
                endpoint.route,
                endpoint.provider_at(address),
                as_text(body.get("model")),
                address,
                port,
                endpoint.is_streaming(body),
                request_attributes(endpoint.parameters(body), endpoint.route.parameters),
                body,
            ),
        )

    def _deliver(self, call: Call, result: object) -> object:
        response: Any = result
        status = self._status(response)
        if status >= _FIRST_ERROR_STATUS:
            call.error_type = str(status)
        call.evident_provider = provider_in_headers(response.headers)
        body = self._arrived(response)
        if body is not None:
            tail = tail_of(call, response.headers)
            tail.feed(body)
            see_payloads(call, tail.payloads())
            call.end()
        elif (pending := self._pending(response)) is not None:
            self._watch(pending, Answer(call, response.headers))
        else:
            call.end()
        return result

    def _is_suppressed(self) -> bool:
        """Whether the user, or a library, wants no HTTP request to be observed here."""
        return bool(get_value(_SUPPRESS_HTTP_INSTRUMENTATION_KEY))

    def _request(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> Any:
        """The request that the method is called with."""
        return kwargs["request"] if "request" in kwargs else args[0]

    def _status(self, response: Any) -> int:
        status: int = response.status_code
        return status

    def _watch(self, pending: object, answer: Answer) -> None:
        self._bodies.watch(pending, answer)

    @abstractmethod
    def _path(self, client: object, request: Any) -> str:
        """The path that a request goes to."""

    @abstractmethod
    def _server(self, client: object, request: Any) -> Server:
        """Where a request goes to."""

    @abstractmethod
    def _sent(self, request: Any) -> Mapping[str, Any] | None:
        """The JSON object that a request carries, as far as it does not come from a generator."""

    @abstractmethod
    def _arrived(self, response: Any) -> bytes | None:
        """The decoded body of a response, if it has been read already."""

    @abstractmethod
    def _pending(self, response: Any) -> object | None:
        """The object through which the app will read the body; ``None`` if it is of no known kind."""


def _may_be_of_requests(span: Span) -> bool:
    """Whether OpenTelemetry's instrumentation of requests made this span; one that is not sampled does not say."""
    scope = getattr(span, "instrumentation_scope", None)
    return span.get_span_context().is_valid if scope is None else scope.name == _REQUESTS_SCOPE


class RequestsWatcher(HTTPWatcher):
    """Observes ``requests.Session.send``; its redirects and retries happen within."""

    def patches(self, module: ModuleType) -> tuple[Patch, ...]:
        self._session = module.Session
        self._marked_beneath = hasattr(module.Session.send, _REQUESTS_MARK)
        return (Patch(module.Session, "send", lambda original: watch(original, self)),)

    def _is_suppressed(self) -> bool:
        # OpenTelemetry's own instrumentation sets the key for what is below its span, so that urllib3 makes no second
        # one. Turned on after ours it stands around it, and the call below has no LLM span yet. Where the key is set
        # already, it makes no span.
        stands_around = hasattr(self._session.send, _REQUESTS_MARK) and not self._marked_beneath
        return super()._is_suppressed() and not (stands_around and _may_be_of_requests(get_current_span()))

    def _path(self, client: object, request: Any) -> str:
        url: str = request.url
        return urlsplit(url).path

    def _server(self, client: object, request: Any) -> Server:
        return server_of(request.url, None)

    def _sent(self, request: Any) -> Mapping[str, Any] | None:
        return json_object(request.body)

    def _arrived(self, response: Any) -> bytes | None:
        # `content` would read what has not been read.
        body = response._content
        return body if isinstance(body, bytes) else None

    def _pending(self, response: Any) -> object | None:
        # Adapters that are not HTTP's may have any file there.
        return response.raw if hasattr(response.raw, "read_chunked") else None


class HTTPXWatcher(HTTPWatcher):
    """Observes ``send`` of ``Client`` and ``AsyncClient``; redirects, authentication and retries happen within."""

    def patches(self, module: ModuleType) -> tuple[Patch, ...]:
        return (
            Patch(module.Client, "send", lambda original: watch(original, self)),
            Patch(module.AsyncClient, "send", lambda original: watch_async(original, self)),
        )

    def _path(self, client: object, request: Any) -> str:
        path: str = request.url.path
        return path

    def _server(self, client: object, request: Any) -> Server:
        return server_of("", request.url, client)

    def _sent(self, request: Any) -> Mapping[str, Any] | None:
        return json_object(getattr(request, "_content", None))  # `content` raises where a generator gives it

    def _arrived(self, response: Any) -> bytes | None:
        body: bytes | None = getattr(response, "_content", None)
        return body

    def _pending(self, response: Any) -> object | None:
        stream: object = response.stream
        return stream


class _Given(NamedTuple):
    """A request as a session of aiohttp is given it."""

    method: str
    url: object
    data: object
    json: object


class AiohttpWatcher(HTTPWatcher):
    """Observes ``ClientSession._request``, to which all of its requests come; redirects and retries happen within."""

    def patches(self, module: ModuleType) -> tuple[Patch, ...]:
        self._reader = module.StreamReader
        return (Patch(module.ClientSession, "_request", lambda original: watch_async(original, self)),)

    def _request(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> Any:
        method, url = (*args, *(kwargs[name] for name in _AIOHTTP_PARAMETERS[len(args) :]))
        return _Given(str(method).upper(), url, kwargs.get("data"), kwargs.get("json"))

    def _path(self, client: Any, request: Any) -> str:
        try:
            path: str = client._build_url(request.url).path
        except (AssertionError, TypeError, ValueError):
            return ""  # the app hears of it from aiohttp
        return path

    def _server(self, client: Any, request: Any) -> Server:
        return server_of("", client._build_url(request.url), client)

    def _sent(self, request: Any) -> Mapping[str, Any] | None:
        return request.json if isinstance(request.json, dict) else json_object(request.data)

    def _status(self, response: Any) -> int:
        status: int = response.status
        return status

    def _arrived(self, response: Any) -> bytes | None:
        body: bytes | None = response._body  # a middleware has read it
        return body

    def _pending(self, response: Any) -> object | None:
        return response.content if isinstance(response.content, self._reader) else None

    def _watch(self, pending: object, answer: Answer) -> None:
        self._bodies.watch_arrival(pending, answer)

"""The one way in which every client library's requests are observed, sync and async."""

from __future__ import annotations

import contextlib
import functools
import weakref
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from types import ModuleType

from otel_llm_instrumentation.address import Server, server_of
from otel_llm_instrumentation.call import Call
from otel_llm_instrumentation.patching import Patch
from otel_llm_instrumentation.telemetry import Telemetry


class Watcher(ABC):
    """How calls of one client library are observed; passes them through once it is no longer active."""

    def __init__(self, telemetry: Telemetry) -> None:
        self.active = True
        self.telemetry = telemetry
        self._latest_server: tuple[object, Callable[[], object], Server] = (None, lambda: None, (None, None))

    def server(self, url: str, base_url: object, http_client: object) -> Server:
        """`server_of`, remembered for the client that called last: taking a URL apart is not free.

        The client is not kept: whoever lets go of one, closes it.
        """
        if "://" in url:
            return server_of(url, base_url, http_client)
        known_url, known_client, server = self._latest_server
        if known_url is not base_url or known_client() is not http_client:
            server = server_of(url, base_url, http_client)
            with contextlib.suppress(TypeError):  # there is none, or it cannot be referred to weakly
                self._latest_server = (base_url, weakref.ref(http_client), server)
        return server

    def begin(self, client: object, args: tuple[object, ...], kwargs: Mapping[str, object]) -> Call | None:
        """Start the call that this request makes; ``None`` if it makes none. Never raises."""
        if not self.active:
            return None
        try:
            return self._begin(client, args, kwargs)
        except Exception:  # noqa: BLE001 - the app's request goes on unobserved
            self.telemetry.complain("observing a request")
            return None

    def deliver(self, call: Call, result: object) -> object:
        """Leave the call to whatever ends it and give the app its result. Never raises."""
        try:
            return self._deliver(call, result)
        except Exception:  # noqa: BLE001 - the app gets its result
            self.telemetry.complain("observing an answer")
            call.end()
            return result

    @abstractmethod
    def patches(self, module: ModuleType) -> tuple[Patch, ...]:
        """Replace the methods of the imported library that make requests."""

    @abstractmethod
    def _begin(self, client: object, args: tuple[object, ...], kwargs: Mapping[str, object]) -> Call | None: ...

    @abstractmethod
    def _deliver(self, call: Call, result: object) -> object: ...


def watch(original: Callable[..., object], watcher: Watcher) -> Callable[..., object]:
    """A method that makes requests, observed."""

    @functools.wraps(original)
    def request(self: object, *args: object, **kwargs: object) -> object:
        call = watcher.begin(self, args, kwargs)
        if call is None:
            return original(self, *args, **kwargs)
        try:
            result = call.run(original, self, *args, **kwargs)
        except BaseException as error:
            call.end(error)
            raise
        return watcher.deliver(call, result)

    return request


def watch_async(original: Callable[..., Awaitable[object]], watcher: Watcher) -> Callable[..., Awaitable[object]]:
    """`watch`, for a coroutine method."""

    @functools.wraps(original)
    async def request(self: object, *args: object, **kwargs: object) -> object:
        call = watcher.begin(self, args, kwargs)
        if call is None:
            return await original(self, *args, **kwargs)
        try:
            result = await call.run_async(original, self, *args, **kwargs)
        except BaseException as error:
            call.end(error)
            raise
        return watcher.deliver(call, result)

    return request

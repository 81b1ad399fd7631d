"""A standard OpenTelemetry instrumentor of client libraries."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, ClassVar

import wrapt
from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]

from otel_llm_instrumentation.patching import Patch
from otel_llm_instrumentation.telemetry import Telemetry
from otel_llm_instrumentation.watcher import Watcher


class ClientInstrumentor(BaseInstrumentor):  # type: ignore[misc]  # untyped
    """Puts a `Watcher` into each of its libraries: now if the app has imported it, else as soon as the app does.

    `instrument` takes ``tracer_provider``, ``meter_provider`` and ``logger_provider``: by default the global ones, also
    where they are set later.
    """

    _watcher_types: ClassVar[Mapping[str, type[Watcher]]]

    _watchers: tuple[Watcher, ...] = ()
    _patches: tuple[Patch, ...] = ()

    def _instrument(self, **kwargs: Any) -> None:
        scope = type(self).__module__
        telemetry = Telemetry(
            scope, kwargs.get("tracer_provider"), kwargs.get("meter_provider"), kwargs.get("logger_provider")
        )
        watchers = {library: watcher_type(telemetry) for library, watcher_type in self._watcher_types.items()}
        self._watchers = tuple(watchers.values())
        for library, watcher in watchers.items():
            _when_imported(library, functools.partial(self._patch, watcher))

    def _patch(self, watcher: Watcher, module: ModuleType) -> None:
        if not watcher.active:
            return  # undone before the app imported the library; import hooks cannot be taken back
        try:
            self._patches += watcher.patches(module)
        except Exception:  # noqa: BLE001 - this runs within the app's own import
            watcher.telemetry.complain(f"instrumenting {module.__name__}")

    def _uninstrument(self, **kwargs: Any) -> None:
        """Observe no more. Calls that are open still end; wrappers that others hold on to pass through."""
        for watcher in self._watchers:
            watcher.active = False
            watcher.telemetry.backlog.make_up()
        for patch in self._patches:
            patch.undo()
        self._watchers, self._patches = (), ()


def _when_imported(library: str, patch: Callable[[ModuleType], None]) -> None:
    if library in sys.modules:
        # It may be half there: this waits for another thread that is importing it.
        patch(importlib.import_module(library))
    else:
        wrapt.register_post_import_hook(patch, library)

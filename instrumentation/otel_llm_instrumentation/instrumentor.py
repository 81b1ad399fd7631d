"""A standard OpenTelemetry instrumentor of client libraries."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Mapping
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

    _watchers: Mapping[str, Watcher] = {}
    _hooked: frozenset[str] = frozenset()
    _patched: dict[str, object]
    _patches: tuple[Patch, ...] = ()

    def _instrument(self, **kwargs: Any) -> None:
        scope = type(self).__module__
        telemetry = Telemetry(
            scope, kwargs.get("tracer_provider"), kwargs.get("meter_provider"), kwargs.get("logger_provider")
        )
        self._watchers = {library: watcher_type(telemetry) for library, watcher_type in self._watcher_types.items()}
        self._patched = {}
        for library in self._watchers:
            if library in sys.modules:
                # It may be half there: this waits for another thread that is importing it.
                self._patch(library, importlib.import_module(library))
            elif library not in self._hooked:
                # For good, as import hooks cannot be taken back; it finds who watches by then, if anybody does.
                self._hooked |= {library}
                wrapt.register_post_import_hook(functools.partial(self._patch, library), library)

    def _patch(self, library: str, module: ModuleType) -> None:
        watcher = self._watchers.get(library)
        if watcher is None:
            return  # undone before the app imported the library
        mark = object()
        if self._patched.setdefault(library, mark) is not mark:
            return  # by the hook, in another thread that is importing it
        try:
            self._patches += watcher.patches(module)
        except Exception:  # noqa: BLE001 - this runs within the app's own import
            watcher.telemetry.complain(f"instrumenting {module.__name__}")

    def _uninstrument(self, **kwargs: Any) -> None:
        """Observe no more. Calls that are open still end; wrappers that others hold on to pass through."""
        for watcher in self._watchers.values():
            watcher.active = False
            watcher.telemetry.backlog.make_up()
        for patch in self._patches:
            patch.undo()
        self._watchers, self._patches = {}, ()

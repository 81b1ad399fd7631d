"""A standard OpenTelemetry instrumentor of one client library."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, ClassVar

import wrapt
from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]

from otel_llm_instrumentation.patching import Patch
from otel_llm_instrumentation.telemetry import Telemetry
from otel_llm_instrumentation.watcher import Watcher


class ClientInstrumentor(BaseInstrumentor):  # type: ignore[misc]  # untyped
    """Puts a `Watcher` into a library: now if the app has imported it, else as soon as the app does.

    `instrument` takes ``tracer_provider`` and ``meter_provider``: by default the global ones, also where they are
    set later.
    """

    _library: ClassVar[str]
    _watcher_type: ClassVar[type[Watcher]]

    _watcher: Watcher | None = None
    _patches: tuple[Patch, ...] = ()

    def _instrument(self, **kwargs: Any) -> None:
        scope = type(self).__module__
        watcher = self._watcher_type(Telemetry(scope, kwargs.get("tracer_provider"), kwargs.get("meter_provider")))
        self._watcher = watcher
        _when_imported(self._library, lambda module: self._patch(module, watcher))

    def _patch(self, module: ModuleType, watcher: Watcher) -> None:
        if not watcher.active:
            return  # undone before the app imported the library; import hooks cannot be taken back
        try:
            self._patches = watcher.patches(module)
        except Exception:  # noqa: BLE001 - this runs within the app's own import
            watcher.telemetry.complain(f"instrumenting {module.__name__}")

    def _uninstrument(self, **kwargs: Any) -> None:
        """Observe no more. Calls that are open still end; wrappers that others hold on to pass through."""
        if self._watcher is not None:
            self._watcher.active = False
            self._watcher = None
        for patch in self._patches:
            patch.undo()
        self._patches = ()


def _when_imported(library: str, patch: Callable[[ModuleType], None]) -> None:
    module = sys.modules.get(library)
    if module is not None and not getattr(module.__spec__, "_initializing", False):
        patch(module)
    else:
        wrapt.register_post_import_hook(patch, library)

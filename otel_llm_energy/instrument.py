"""The one line: measure every LLM call of this process and put its energy on its span."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Literal

from opentelemetry import trace
from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]
from opentelemetry.metrics import MeterProvider
from opentelemetry.sdk.environment_variables import OTEL_SDK_DISABLED

from otel_llm_energy.call_meter import CallMeter
from otel_llm_energy.conventions import Tier
from otel_llm_energy.ledger.sweep import BatchSharing, IdleSharing
from otel_llm_energy.meters.base import Meter, MeterError
from otel_llm_energy.runtime import Runtime
from otel_llm_energy.settings import SettingError, Settings, settings
from otel_llm_energy.status import Status
from otel_llm_energy.tracing.following_tracer import FollowingTracerProvider
from otel_llm_instrumentation import add_observer, remove_observer
from otel_llm_instrumentation.langchain import LangChainInstrumentor

_logger = logging.getLogger(__name__)


class Instrumentation:
    """What `instrument()` started, and how to look at it, flush it and undo it."""

    def __init__(self, runtime: Runtime | None, options: Settings) -> None:
        self._runtime = runtime
        self._options = options
        self._undo: list[Callable[[], None]] = []
        self._undoing: threading.Thread | None = None
        self._undone = threading.Event()
        if runtime is not None:
            observer = runtime.watch = CallMeter(runtime)
            if not self._started(runtime):
                return
            add_observer(observer)
            self._undo = [lambda: remove_observer(observer), *_instrument_clients(options.clients, runtime)]

    def _started(self, runtime: Runtime) -> bool:
        try:
            runtime.start()
        except RuntimeError:  # a container's limit on processes holds for threads, too
            _logger.warning(
                "LLM calls are not measured: a thread of ours could not be started. Is there a limit on processes"
                " (pids.max, ulimit -u)?",
                exc_info=True,
            )
            runtime.stop()
            self._runtime = None
            return False
        return True

    @property
    def active(self) -> bool:
        """Calls are measured; not so after `uninstrument`, with ``OTEL_SDK_DISABLED``, or without threads."""
        return self._runtime is not None

    def _warn_of_unheeded(
        self, options: Settings, given: Iterable[str], tracer_provider: object, meter_provider: object
    ) -> None:
        """It was asked for again with these, and goes on as it is."""
        # By their text: two meters of the same arguments are two objects.
        ignored = [name for name in given if repr(getattr(options, name)) != repr(getattr(self._options, name))]
        if self._runtime is not None and tracer_provider not in (None, self._runtime.joining.provider()):
            ignored.append("tracer_provider")
        if self._runtime is not None and meter_provider not in (None, self._runtime.meter_provider):
            ignored.append("meter_provider")
        if ignored:
            _logger.warning(
                "instrument() was called before and goes on as it is; not heeded: %s. To change options call"
                " uninstrument() of what it returned first.",
                ", ".join(ignored),
            )

    def uninstrument(self) -> None:
        """Hand on what is held, stop measuring and leave no trace. A repeat does nothing."""
        with _registry_lock:
            if self._runtime is not None:
                self._undoing = threading.current_thread()  # before anybody can see that there is no runtime
            runtime, self._runtime = self._runtime, None
            _forget(self)
        if runtime is not None:
            try:
                for undo in self._undo:
                    undo()
                runtime.stop()
            finally:
                self._undoing = None
                self._undone.set()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Settle what has ended and hand its spans on; False if that took longer than the timeout, ms."""
        runtime = self._runtime
        return self._is_undone(timeout_millis) if runtime is None else runtime.force_flush(timeout_millis)

    def _is_undone(self, timeout_millis: int) -> bool:
        """Whether nothing is held any more; waits for the thread that hands on what is, as `uninstrument` does."""
        undoing = self._undoing
        if undoing is None or not undoing.is_alive():  # in a child that was forked meanwhile it is not
            return True
        if undoing is threading.current_thread():  # in a handler of a signal
            return False
        return self._undone.wait(timeout_millis / 1000)

    def measure_idle(self, seconds: float) -> dict[str, float]:
        """See `otel_llm_energy.measure_idle`."""
        runtime = self._runtime
        if runtime is None:
            raise MeterError("no-meter", "Nothing is measured: OTEL_SDK_DISABLED is set, or uninstrument() was called.")
        return runtime.measure_idle(seconds)

    def status(self) -> Status:
        """Which meters are read, how fresh they are, what was left out and why."""
        runtime = self._runtime
        return Status((), (), {}, "not instrumented") if runtime is None else runtime.status()


_registry_lock = threading.RLock()
if hasattr(os, "register_at_fork"):  # a child of a fork amid another thread's `instrument` would wait for ever
    os.register_at_fork(
        before=_registry_lock.acquire, after_in_parent=_registry_lock.release, after_in_child=_registry_lock.release
    )
_registry: list[Instrumentation] = []  # the one that is active, if any


def _forget(instrumentation: Instrumentation) -> None:
    if instrumentation in _registry:
        _registry.remove(instrumentation)


def active_runtime() -> Runtime | None:
    """What measures now; ``None`` before `instrument` and after `Instrumentation.uninstrument`."""
    active = next(iter(_registry), None)
    return None if active is None else active._runtime


def instrument(
    *,
    tracer_provider: trace.TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
    meters: str | Meter | Sequence[str | Meter] | None = None,
    servers: Mapping[str, str | Meter] | None = None,
    clients: Literal["auto"] | Sequence[str] | None = None,
    detail: Tier | None = None,
    idle: IdleSharing | None = None,
    share: BatchSharing | None = None,
    max_hold: float | None = None,
    **options: Any,
) -> Instrumentation:
    """Measure the energy of every LLM call of this process and put it on the call's span.

    Calling it again returns what is active already, and warns of options that are other than those. Every option can
    also be given as ``OTEL_LLM_ENERGY_...``; the argument wins. See `otel_llm_energy.settings.OPTIONS` for all of them.

    Args:
        tracer_provider: whose spans get energy; ``None``: the global one, and if there is none by the first call, one
            is made that exports by OTLP.
        meter_provider: records the metrics; ``None``: the global one.
        meters: ``"auto"``, ``"rapl"``, ``"scaphandre"``, ``"nvml"``, ``"cpu-estimate"``, a URL of one, a meter, or a
            list of these.
        servers: who answers at an address, where it is not the process that listens there on this machine.
        clients: ``"auto"``, or which of ``"openai"``, ``"ollama"``, ``"http"`` and ``"langchain"`` to instrument.
        detail: ``"minimal"``, ``"standard"`` or ``"full"``: how many attributes a span gets.
        idle: ``"time"``, ``"activity"`` or ``"none"``: how idle energy is shared.
        share: ``"equal-time"`` or ``"phase-tokens"``: how calls that are at work at once share what is above idle.
        max_hold: a finished span waits at most so long for its energy, s; 0 never holds one. ``None``: 30 s, and longer
            where readings are rarer.
        options: ``idle_watts``, ``idle_cache``, ``board``, ``scaphandre_url``, ``powercap_root``, ``grid_intensity``.

    Raises:
        SettingError: an argument has a value that is not allowed.
        TypeError: there is no such option.
    """
    given = {
        "meters": meters,
        "servers": servers,
        "clients": clients,
        "detail": detail,
        "idle": idle,
        "share": share,
        "max_hold": max_hold,
    }
    _check_provider("tracer_provider", tracer_provider, "get_tracer")
    _check_provider("meter_provider", meter_provider, "get_meter")
    with _registry_lock:
        # A repeat takes no new options; wrong ones are an error all the same, and variables have warned already.
        chosen = settings({} if _registry else None, **given, **options)
        if _registry:
            _registry[0]._warn_of_unheeded(
                chosen,
                [name for name, value in {**given, **options}.items() if value is not None],
                tracer_provider,
                meter_provider,
            )
            return _registry[0]
        disabled = os.environ.get(OTEL_SDK_DISABLED, "").strip().lower() == "true"
        runtime = None if disabled else Runtime(chosen, tracer_provider, meter_provider)
        made = Instrumentation(runtime, chosen)
        _registry.append(made)
        return made


def _check_provider(name: str, provider: object, method: str) -> None:
    if provider is not None and not hasattr(provider, method):
        allowed = f"what has a method {method}, as OpenTelemetry's providers do, or None for the global one"
        raise SettingError(f"{name} cannot be {provider!r}. Allowed: {allowed}.")


def measure_idle(seconds: float = 10.0, **options: Any) -> dict[str, float]:
    """Measure this machine's idle power for ``seconds``, keep it for later runs, and return watts by channel.

    Do it once on a quiet machine, with the model loaded as it will be, while nothing calls it. Blocks for that long,
    and a little longer with a slow meter; in async code ``await asyncio.to_thread(otel_llm_energy.measure_idle, 10)``.
    Uses what `instrument()` started, or else reads the meters only meanwhile. Calls of other processes cannot be seen.

    Args:
        seconds: from 1 to 3600.
        options: of `instrument()`, where it was not called before.

    Raises:
        MeterError: there is no meter, a call was open, or other programs were so busy that idle could not be told.
        SettingError, TypeError: as `instrument()`.
    """
    if not isinstance(seconds, (int, float)) or not 1 <= seconds <= 3600:
        raise SettingError(f"seconds cannot be {seconds!r}. Allowed: 1 to 3600.")
    chosen = settings(**options)
    with _registry_lock:
        active = _registry[0] if _registry else None
    if active is not None:
        return active.measure_idle(seconds)
    runtime = Runtime(chosen)
    runtime.desk.start()
    try:
        return runtime.measure_idle(seconds)
    finally:
        runtime.stop()


def _instrument_clients(clients: Sequence[str], runtime: Runtime) -> list[Callable[[], None]]:
    """Instrument the client libraries that the user did not instrument already; how to undo it."""
    undo: list[Callable[[], None]] = []
    provider = FollowingTracerProvider(runtime.joining)
    for instrumentor in [each for name in clients for each in _instrumentors(name)]:
        if not instrumentor.is_instrumented_by_opentelemetry:
            instrumentor.instrument(
                tracer_provider=provider, meter_provider=runtime.meter_provider, skip_dep_check=True
            )
            undo.append(instrumentor.uninstrument)
    return undo


def _instrumentors(name: str) -> Sequence[Any]:
    if name == "openai":
        from otel_llm_instrumentation.openai import OpenAIInstrumentor

        return [OpenAIInstrumentor()]
    if name == "ollama":
        from otel_llm_instrumentation.ollama import OllamaInstrumentor

        return [OllamaInstrumentor()]
    if name == "http":
        from otel_llm_instrumentation.http import HTTPInstrumentor

        return [HTTPInstrumentor()]
    from otel_llm_instrumentation.local import LocalModelInstrumentor

    return [LangChainInstrumentor(), LocalModelInstrumentor()]


class EnergyInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """Entry point of ``opentelemetry-instrument``: the one line without the line."""

    def instrumentation_dependencies(self) -> Collection[str]:
        return ()

    def _instrument(self, **kwargs: Any) -> None:
        self._instrumentation = instrument(
            tracer_provider=kwargs.get("tracer_provider"), meter_provider=kwargs.get("meter_provider")
        )

    def _uninstrument(self, **kwargs: Any) -> None:
        self._instrumentation.uninstrument()

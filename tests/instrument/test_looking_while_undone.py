"""The handle in two threads: one undoes it while the other one looks at it, or flushes by it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

import pytest
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

from otel_llm_energy import Instrumentation
from otel_llm_energy.runtime import Runtime
from otel_llm_energy.settings import settings
from tests.support.interleaving import interleaved


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Instrumentation]:
    """Handles of what joins a provider of their own, and has no threads."""
    monkeypatch.setattr(Runtime, "start", lambda runtime: runtime.joining.start())
    options = settings({}, meters="cpu-estimate", clients=[], board="off", idle_cache="off")
    return lambda: Instrumentation(Runtime(options, TracerProvider(shutdown_on_exit=False)), options)


@pytest.mark.parametrize("look", [Instrumentation.status, Instrumentation.force_flush])
def test_handle_answers_when_it_is_undone_at_any_instruction(
    look: Callable[[Instrumentation], object], make: Callable[[], Instrumentation]
) -> None:
    """What was there when it looked may be gone when it uses that."""
    step, energy = 0, make()
    while interleaved([look], step, partial(look, energy), energy.uninstrument):
        assert not energy.active
        step, energy = step + 1, make()
    energy.uninstrument()
    assert step > 3


def test_flush_says_that_spans_are_held_when_another_thread_is_about_to_hand_them_on(
    make: Callable[[], Instrumentation], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As soon as that has done so it says that none is."""
    stopping, to_stop = threading.Event(), threading.Event()
    stop = Runtime.stop

    def stop_later(runtime: Runtime) -> None:
        stopping.set()
        assert to_stop.wait(30)
        stop(runtime)

    monkeypatch.setattr(Runtime, "stop", stop_later)
    energy = make()
    undoing = threading.Thread(target=energy.uninstrument)
    undoing.start()
    assert stopping.wait(30)
    assert not energy.force_flush(timeout_millis=1)
    to_stop.set()
    assert energy.force_flush()
    undoing.join(30)
    assert energy.force_flush(timeout_millis=0)


def test_flush_waits_for_nobody_when_it_is_amid_undoing_itself(
    make: Callable[[], Instrumentation], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a signal's handler may be: it would wait for what it keeps from going on."""
    flushed: list[bool] = []
    energy = make()
    monkeypatch.setattr(Runtime, "stop", lambda runtime: flushed.append(energy.force_flush(timeout_millis=600_000)))
    energy.uninstrument()
    assert flushed == [False]


class Failing(SpanProcessor):
    """A processor that cannot flush."""

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        raise OSError("The exporter is gone.")


def test_flush_is_false_when_an_exporter_raises(
    make: Callable[[], Instrumentation], caplog: pytest.LogCaptureFixture
) -> None:
    """By the app's own provider it raises, as it does without us."""
    energy = make()
    runtime = energy._runtime
    assert runtime is not None
    provider = runtime.joining.provider()
    assert isinstance(provider, TracerProvider)
    provider.add_span_processor(Failing())
    try:
        assert not energy.force_flush()
        assert "The spans could not be flushed." in caplog.text
        with pytest.raises(OSError, match="gone"):
            provider.force_flush()
    finally:
        energy.uninstrument()

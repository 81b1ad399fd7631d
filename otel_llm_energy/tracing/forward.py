"""Hand spans on to the rest of the pipeline, in a thread of its own."""

from __future__ import annotations

import contextvars
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ConcurrentMultiSpanProcessor, ReadableSpan, Span, SpanProcessor

from otel_llm_energy.tracing.forks import rest_for_ever
from otel_llm_energy.tracing.right_of_way import BackgroundThread

_Item = TypeVar("_Item")
_MOST_BETWEEN_LOOKS = 32  # at the clock, which would cost as much as sending an item does


class Downstream:
    """The processor that comes after us, by the methods that it has now: joining replaces them on the object.

    At interpreter exit the pool of a `ConcurrentMultiSpanProcessor` is shut before any atexit hook runs. Its members
    are then called one after another.
    """

    def __init__(self, processor: SpanProcessor) -> None:
        self._processor = processor
        self._on_start = processor.on_start
        self._on_end = processor.on_end
        self._force_flush = processor.force_flush
        self._shutdown = processor.shutdown

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        try:
            self._on_start(span, parent_context=parent_context)
        except RuntimeError as error:
            for member in self._members_without_pool(error):
                member.on_start(span, parent_context=parent_context)

    def on_ending(self, span: Span) -> None:
        hook = getattr(self._processor, "_on_ending", None)  # absent from the oldest SDKs
        if hook is not None:
            hook(span)

    def on_end(self, span: ReadableSpan) -> None:
        try:
            self._on_end(span)
        except RuntimeError as error:
            for member in self._members_without_pool(error):
                member.on_end(span)

    def force_flush(self, timeout_millis: int) -> bool:
        try:
            return self._force_flush(timeout_millis) is not False
        except RuntimeError as error:
            flushed = [member.force_flush(timeout_millis) for member in self._members_without_pool(error)]
            return False not in flushed

    def shutdown(self) -> None:
        try:
            self._shutdown()
        except RuntimeError as error:
            for member in self._members_without_pool(error):
                member.shutdown()

    def _members_without_pool(self, error: RuntimeError) -> Sequence[SpanProcessor]:
        if not isinstance(self._processor, ConcurrentMultiSpanProcessor) or "cannot schedule" not in str(error):
            raise error
        return self._processor._span_processors


class Forwarder(Generic[_Item]):
    """One thread that sends what is put, in order, and looks at the clock for its owner in between.

    The thread starts at the first item and has an empty context: forwarding under a suppressing one makes some
    processors drop the span. `start`, `put` and `look_soon` take no lock, so that a garbage collector may end a span
    anywhere: they are for one thread at a time, which may be another each time.

    Args:
        send: hands one item on; it may block, and must not raise.
        tick: called between items, not between all that are there already; returns the seconds until it wants to be
            called again.
        capacity: `is_full` from this length on; the owner then sends new items itself.
    """

    def __init__(self, send: Callable[[_Item], None], tick: Callable[[], float], capacity: int) -> None:
        self._send = send
        self._tick = tick
        self._capacity = capacity
        self.renew()

    def renew(self) -> None:
        """Start afresh, as a forked child must: its parent sends what is queued."""
        self._queue: queue.SimpleQueue[_Item | threading.Event | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._background = BackgroundThread()

    def __len__(self) -> int:
        return self._queue.qsize()

    @property
    def is_full(self) -> bool:
        return self._queue.qsize() >= self._capacity

    def start(self) -> None:
        """See that the thread runs, if one can be started: else `flush` sends, or the thread that starts later."""
        if self._thread is not None:
            return
        # Made together and by the names of now: gevent may have replaced both, and a green thread that waits at a queue
        # of the other kind would stop all others.
        if self._queue.empty():  # else no thread could be started before
            self._queue = queue.SimpleQueue()
        context = contextvars.Context()
        thread = threading.Thread(target=context.run, args=(self._run,), name="otel-llm-energy-forward", daemon=True)
        self._thread = thread
        try:
            thread.start()
        except RuntimeError:
            self._thread = None

    def put(self, item: _Item) -> None:
        self.start()
        self._background.woken()
        self._queue.put(item)

    def look_soon(self) -> None:
        """Have ``tick`` called soon, by the thread that sends."""
        self.start()
        self._background.woken()
        self._queue.put(threading.Event())

    def flush(self, timeout_seconds: float) -> bool:
        """Return once all that was put before is sent; False if that takes longer than the timeout."""
        if self._runs_elsewhere():
            sent = threading.Event()
            self._queue.put(sent)
            return sent.wait(max(0.0, timeout_seconds))
        return self._send_here(timeout_seconds)

    def stop(self, timeout_seconds: float) -> bool:
        """End the thread after what is queued; False if that takes longer than the timeout."""
        if not self._runs_elsewhere():
            return self._send_here(timeout_seconds)
        thread = self._thread
        self._queue.put(None)
        if thread is not None:
            thread.join(max(0.0, timeout_seconds))
        return not self._runs_elsewhere()

    def _runs_elsewhere(self) -> bool:
        thread = self._thread
        return thread is not None and thread.is_alive() and thread is not threading.current_thread()

    def _send_here(self, timeout_seconds: float) -> bool:
        end = time.monotonic() + timeout_seconds
        while True:
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return True
            self._handle(item)
            if time.monotonic() > end:
                return self._queue.empty()

    def _run(self) -> None:
        with self._background as this:
            self._send_all(this)

    def _send_all(self, this: BackgroundThread) -> None:
        items, before_look = self._queue, 0
        while True:
            if not before_look or items.empty():
                before_look = _MOST_BETWEEN_LOOKS
                wait_seconds = self._tick()
            try:
                with this.waiting(wait_seconds):
                    item = items.get(timeout=wait_seconds)
            except queue.Empty:
                continue
            finally:
                if items is not self._queue:  # in a forked child, while the parent sends them
                    rest_for_ever()
            if item is None:
                return
            before_look -= 1
            self._handle(item)

    def _handle(self, item: _Item | threading.Event | None) -> None:
        if isinstance(item, threading.Event):
            item.set()
        elif item is not None:
            self._send(item)

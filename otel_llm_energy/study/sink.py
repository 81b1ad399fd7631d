"""The end of the measured pipeline: the enriched spans of each call become its row, which is kept."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor

from otel_llm_energy import conventions
from otel_llm_energy.ledger.bill import Quality
from otel_llm_energy.quantities import NS_PER_SECOND
from otel_llm_energy.study.journal import Journal
from otel_llm_energy.study.power import PowerLog
from otel_llm_energy.study.rows import span_columns
from otel_llm_instrumentation import semconv

_DRAWN_CALLS: Final = 50  # of each deployment: the power of so many is kept


class RowSink(SpanProcessor):
    """Turns the enriched spans of each call into its row, and keeps it.

    A call is a root span of the study with the client library's span below. The root comes last: it waits for the
    energy of what is below it.

    Args:
        journal: keeps the rows.
        logs: the readings by which calls are billed, by the name of their server.
        content: keep the texts of prompts and answers.
    """

    def __init__(self, journal: Journal, logs: Mapping[str, PowerLog], *, content: bool) -> None:
        self.written = Counter[str]()
        self.joules = 0.0
        self.estimated = False
        self.unscored = 0
        self.failure: OSError | None = None
        self._journal = journal
        self._logs = logs
        self._content = content
        self._lock = threading.Lock()
        self._expected: dict[int, _Pending] = {}
        self._drawn = Counter[str]()

    def expect(self, trace_id: int, row: dict[str, Any]) -> None:
        """The spans of this trace belong to this row."""
        with self._lock:
            self._expected[trace_id] = _Pending(row, time.monotonic_ns())

    @property
    def waiting(self) -> bool:
        """Some rows are not complete yet."""
        with self._lock:
            return bool(self._expected)

    def on_end(self, span: ReadableSpan) -> None:
        context = span.get_span_context()
        trace_id = context.trace_id if context else 0
        with self._lock:
            pending = self._expected.get(trace_id)
        if pending is None:
            return
        if span.parent is None:
            self._add_power(pending)
            self.write(pending.row)
            with self._lock:  # who waits for the rows waits until they are kept
                del self._expected[trace_id]
        elif semconv.OPERATION_NAME in (span.attributes or {}):
            start_ns, end_ns = span.start_time or 0, span.end_time or 0
            pending.row |= span_columns(span.attributes or {}, content=self._content)
            pending.row |= {"started_at": start_ns / NS_PER_SECOND, "seconds": (end_ns - start_ns) / NS_PER_SECOND}

    def write(self, row: Mapping[str, Any]) -> None:
        """Keep a row; a full disk stops the collection, with all earlier rows whole."""
        try:
            self._journal.append(row)
        except OSError as error:
            self.failure = self.failure or error
            return
        with self._lock:
            self.written["failed" if row["error_type"] else "answered"] += 1
            self.joules += row.get(conventions.JOULES) or 0.0
            self.unscored += row.get("score_error") is not None
            self.estimated |= row.get(conventions.QUALITY) == Quality.ESTIMATED.value

    def _add_power(self, pending: _Pending) -> None:
        deployment = pending.row["deployment"]
        with self._lock:
            self._drawn[deployment] += 1
            if self._drawn[deployment] > _DRAWN_CALLS:
                return
        length_ns = int(pending.row.get("seconds", 0.0) * NS_PER_SECOND)
        log = self._logs[pending.row["server"]]
        seconds, watts = log.watts(pending.started_ns, pending.started_ns + length_ns)
        if seconds:
            pending.row |= {"power_seconds": seconds, "power_watts": watts}


@dataclass(slots=True)
class _Pending:
    row: dict[str, Any]
    started_ns: int

"""A claim: one call's right to a share of the metered energy, from the call's start to its bill."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from opentelemetry.trace import INVALID_SPAN_CONTEXT, SpanContext

from otel_llm_energy.ledger.bill import Bill
from otel_llm_energy.ledger.entry import Entry
from otel_llm_energy.tracing.combining import CombinedBill

if TYPE_CHECKING:
    from otel_llm_energy.tracing.books import Books


class CallFacts(NamedTuple):
    """What is known of a call, ``None`` where nothing is: noted as it is, since most of it is looked at much later."""

    operation: str | None = None
    provider: str | None = None
    request_model: str | None = None
    response_model: str | None = None
    address: str | None = None
    port: int | None = None
    error_type: str | None = None

    def attributes(self) -> dict[str, str | int]:
        """As the attributes of metrics."""
        return {key: value for key, value in zip(_FACT_KEYS, self, strict=True) if value is not None}


_FACT_KEYS: Final = (
    "gen_ai.operation.name",
    "gen_ai.provider.name",
    "gen_ai.request.model",
    "gen_ai.response.model",
    "server.address",
    "server.port",
    "error.type",
)
_NO_FACTS: Final = CallFacts()


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token counts as the server reported them; ``None`` where it did not."""

    input: int | None = None
    output: int | None = None


class ServerReport(Protocol):
    """What the server itself said about its work on a call; ``None`` where it said nothing.

    The client wrappers' `ServerTimings` is one.

    Attributes:
        prefill_seconds, decode_seconds, load_seconds: lengths of its phases.
        end_unix_ns: its own wall-clock time at the end; only from a server on the same host.
    """

    @property
    def prefill_seconds(self) -> float | None: ...

    @property
    def decode_seconds(self) -> float | None: ...

    @property
    def load_seconds(self) -> float | None: ...

    @property
    def end_unix_ns(self) -> int | None: ...


class Whole:
    """One operation that has several claims, one after the other: what it was paused for has claims of its own.

    There may be a great many, so none is kept once it has its bill.

    Attributes:
        input_tokens, output_tokens: of the operation, once it has ended.
        last: the claim whose bill came last.
        bill: of all claims, once they have theirs.
    """

    __slots__ = ("_adding", "_is_told", "_parts", "_sum", "_taken", "_waiting", "input_tokens", "last", "output_tokens")

    def __init__(self) -> None:
        self.input_tokens: int | None = None
        self.output_tokens: int | None = None
        self.last: Claim | None = None
        self._waiting: deque[Claim] = deque()  # to be added
        self._adding = threading.Lock()  # never waited for
        self._sum: CombinedBill | None = None
        self._taken = 0
        self._parts: int | None = None  # how many claims there are; there may be more while it is None
        self._is_told = False

    @property
    def bill(self) -> Bill | None:
        return None if self._sum is None else self._sum.bill

    def take(self, claim: Claim) -> bool:
        """A claim has its bill; returns whether the operation has ended and no other bill is missing."""
        self._waiting.append(claim)
        return self._add()

    def end(self, parts: int, input_tokens: int | None, output_tokens: int | None) -> bool:
        """It has ended, with so many claims; returns whether they have their bills already.

        That is so where it was paused until then, for what goes on longer than itself.
        """
        self.input_tokens, self.output_tokens = input_tokens, output_tokens
        self._parts = parts
        return self._add()

    def _add(self) -> bool:
        """Add what waits; true once, when that is all. What another thread is at, it sees to the rest of."""
        completed = False
        # Looked at again after each release: what comes while the lock is let go of has no other taker.
        while (self._waiting or self._is_complete) and not completed and self._adding.acquire(blocking=False):
            try:
                while self._waiting:
                    self._add_one(self._waiting.popleft())
                completed = self._is_complete
                self._is_told |= completed
            finally:
                self._adding.release()
        return completed

    @property
    def _is_complete(self) -> bool:
        return self._taken == self._parts and not self._is_told

    def _add_one(self, claim: Claim) -> None:
        self.last = claim
        self._taken += 1
        if claim.bill is None:
            return
        if self._sum is None:
            self._sum = CombinedBill(claim.bill)
        else:
            self._sum.add(claim.bill)


class Claim:
    """One call's claim. It belongs to the call, not to a span: unsampled calls have one too.

    The desk sets ``bill`` once, then tells its listeners; the facts are final before that.

    Attributes:
        span_context: of the span that displays the bill; invalid if there is none.
        input_tokens, cached_input_tokens, output_tokens: as the server reported them, else ``None``.
        facts: of the call, for its metrics.
        own_attributes: what its metrics say besides.
        response_id: as the server gave it.
        opened_ns, first_chunk_ns, ended_ns: of the call, on the monotonic clock.
        books, entry: the desk's: where the claim is kept; ``None`` where nothing meters its server.
        reason: the desk's: why ``books`` is ``None``.
        reached_server: False if nobody worked on the call.
        closed: the desk's: its call has ended.
        whole: what the claim is a part of; ``None`` if it is an operation by itself.
        withdrawn: it turned out to be the claim of no call: its bill is shown and counted nowhere.
        bill: ``None`` until settled.
    """

    __slots__ = (
        "__weakref__",
        "bill",
        "books",
        "cached_input_tokens",
        "closed",
        "ended_ns",
        "entry",
        "facts",
        "first_chunk_ns",
        "input_tokens",
        "opened_ns",
        "output_tokens",
        "own_attributes",
        "reached_server",
        "reason",
        "response_id",
        "span_context",
        "whole",
        "withdrawn",
    )

    def __init__(self, span_context: SpanContext = INVALID_SPAN_CONTEXT) -> None:
        self.span_context = span_context
        self.opened_ns = 0
        self.first_chunk_ns: int | None = None
        self.ended_ns: int | None = None
        self.books: Books | None = None
        self.entry: Entry | None = None
        self.reason: str | None = None
        self.facts = _NO_FACTS
        self.own_attributes: Mapping[str, str | int] | None = None
        self.response_id: str | None = None
        self.input_tokens: int | None = None
        self.cached_input_tokens: int | None = None
        self.output_tokens: int | None = None
        self.whole: Whole | None = None
        self.reached_server = True
        self.closed = False
        self.withdrawn = False
        self.bill: Bill | None = None

    @property
    def attributes(self) -> dict[str, str | int]:
        """Of its metrics (operation, provider, models, server)."""
        return {**self.facts.attributes(), **(self.own_attributes or {})}


class ClaimListener(Protocol):
    """Told of settled claims by whoever settled them: a thread of ours, or that of a call; must not block."""

    def settled(self, claims: Iterable[Claim]) -> None: ...


class Desk(Protocol):
    """Where claims are settled. Thread-safe."""

    def hasten(self, timeout_seconds: float) -> None:
        """Ask for readings now and wait until all claims closed by now are settled, or for the timeout."""

    def force(self, claims: Iterable[Claim], reason: str) -> None:
        """Settle these claims now from what is known, degraded or unavailable for ``reason``, and tell listeners.

        Those whose calls go on may stay without a bill until they have ended.
        """

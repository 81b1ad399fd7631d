"""A desk and a clock that tests move by hand, and what tests of tracing set up again and again."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.trace import Span

from otel_llm_energy.ledger.bill import Bill, Quality, unavailable
from otel_llm_energy.quantities import NJ_PER_JOULE, NS_PER_SECOND
from otel_llm_energy.tracing.claims import Claim, ClaimListener
from otel_llm_energy.tracing.forward import Downstream
from otel_llm_energy.tracing.gate import Gate
from otel_llm_energy.tracing.joint import Joint


class ManualClock:
    """Monotonic nanoseconds that stand still until the test moves them."""

    def __init__(self) -> None:
        self.now_ns = NS_PER_SECOND

    def __call__(self) -> int:
        return self.now_ns

    def advance(self, seconds: float) -> None:
        self.now_ns += int(seconds * NS_PER_SECOND)


def bill_of(joules: float, quality: Quality = Quality.MEASURED, reason: str | None = None) -> Bill:
    """A bill of so many joules."""
    return Bill(round(joules * NJ_PER_JOULE), quality, reason, meter="rapl", scope="process")


class FakeDesk:
    """Settles when the test says so; forced, it settles with ``forced_joules``, or as unavailable if that is None."""

    def __init__(self, forced_joules: float | None = None) -> None:
        self.listeners: list[ClaimListener] = []
        self.forced_joules = forced_joules
        self.forced: list[tuple[Claim, str]] = []
        self.hastened_seconds: list[float] = []
        self.on_hasten: Callable[[], None] = lambda: None

    def settle(self, claim: Claim, joules: float, quality: Quality = Quality.MEASURED) -> None:
        claim.bill = bill_of(joules, quality)
        self._tell([claim])

    def hasten(self, timeout_seconds: float) -> None:
        self.hastened_seconds.append(timeout_seconds)
        self.on_hasten()

    def force(self, claims: Iterable[Claim], reason: str) -> None:
        settled = []
        for claim in claims:
            self.forced.append((claim, reason))
            if claim.bill is None:
                claim.bill = self._forced_bill(reason)
                settled.append(claim)
        self._tell(settled)

    def _forced_bill(self, reason: str) -> Bill:
        if self.forced_joules is None:
            return unavailable(reason)
        return bill_of(self.forced_joules, Quality.DEGRADED, reason)

    def _tell(self, claims: list[Claim]) -> None:
        for listener in self.listeners:
            listener.settled(claims)


class Collecting(SpanProcessor):
    """Keeps what reaches it, in order."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []
        self.shutdowns = 0
        self.flushes = 0

    def on_end(self, span: ReadableSpan) -> None:
        self.spans.append(span)

    def shutdown(self) -> None:
        self.shutdowns += 1

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        self.flushes += 1
        return True

    @property
    def names(self) -> list[str]:
        return [span.name for span in self.spans]

    def attributes(self, name: str) -> dict[str, object]:
        (span,) = [span for span in self.spans if span.name == name]
        return dict(span.attributes or {})


class Pipeline:
    """A real SDK provider, a gate joined to it, a fake desk and clock, and what comes out at the end."""

    def __init__(
        self,
        *,
        max_hold_seconds: float = 30.0,
        max_held: int = 4096,
        provider: TracerProvider | None = None,
        forced_joules: float | None = None,
        clock: ManualClock | None = None,
    ) -> None:
        self.clock = clock or ManualClock()
        self.desk = FakeDesk(forced_joules)
        self.out = Collecting()
        self.provider = provider or TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(self.out)
        self.tracer = self.provider.get_tracer("app")
        self.max_hold_seconds = max_hold_seconds
        self.max_held = max_held
        self.joint = Joint(self.provider, self._make_gate)
        self.gate = self.joint.gate
        self.desk.listeners.append(self.gate)

    def _make_gate(self, downstream: Downstream) -> Gate:
        return Gate(
            downstream,
            self.desk,
            max_hold_seconds=self.max_hold_seconds,
            max_held=self.max_held,
            clock_ns=self.clock,
        )

    def call(self, span: Span) -> Claim:
        """A call starts that ``span`` displays."""
        claim = Claim(span.get_span_context())
        self.gate.bind(span, claim)
        return claim

    def sent(self) -> list[str]:
        """Names of the spans that have come out, once all that was noted is entered and the forwarder has sent it."""
        self.gate._mailbox.wait()
        self.gate.tick()
        assert self.gate._forwarder.flush(10.0)
        return self.out.names

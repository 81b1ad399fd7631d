"""Metrics of every call, sampled or not, and of our own health."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from opentelemetry import metrics, trace
from opentelemetry.context import Context
from opentelemetry.metrics import CallbackOptions, Counter, Histogram, Meter, MeterProvider, Observation
from opentelemetry.trace import NonRecordingSpan, SpanContext

from otel_llm_energy import conventions
from otel_llm_energy.conventions import CHANNEL, COMPONENT, HOST, THREAD, Metric
from otel_llm_energy.ledger.bill import Bill
from otel_llm_energy.quantities import NJ_PER_JOULE, Channel
from otel_llm_energy.tracing.claims import Claim, Whole
from otel_llm_energy.tracing.health import Health

_Pairs = tuple[tuple[str, str | int], ...]  # attributes, as a key
_OBSERVED: Final = "_otel_llm_energy_observed"


class MeterPlace(NamedTuple):
    """A meter and whose counters it reads; ``host`` is empty for this machine's."""

    meter: str
    host: str


class EnergyMetrics:
    """Records what is settled, metered and left over; a `ClaimListener`.

    Without an SDK's meter provider it costs next to nothing; one that is set later is found.

    Args:
        meter_provider: ``None`` for the global one.
        health: the gates' health, asked for at each collection.
        lag_seconds: age of each meter's newest reading, asked for at each collection.
    """

    def __init__(
        self,
        meter_provider: MeterProvider | None = None,
        *,
        health: Callable[[], Iterable[Health]] = tuple,
        lag_seconds: Callable[[], Mapping[MeterPlace, float]] = dict,
    ) -> None:
        self._provider = meter_provider
        self._source = _Source(health, lag_seconds)
        self._made: _Instruments | None = None
        self._left = False
        self._ended: deque[Whole] = deque()  # and not recorded yet

    @property
    def provider(self) -> MeterProvider:
        """The one that is given, or the global one of now."""
        return self._provider or metrics.get_meter_provider()

    def settled(self, claims: Iterable[Claim]) -> None:
        """Count the bills of these calls, once each."""
        instruments = self._instruments()
        if instruments is not None:
            instruments.record(claim for claim in claims if not claim.withdrawn)

    def ended(self, whole: Whole) -> None:
        """An operation has ended of which all claims were settled before; it is recorded when `catch_up` is called.

        A garbage collection may end it: in any thread, also in one that holds a lock of the SDK, which is not taken
        twice.
        """
        self._ended.append(whole)

    def catch_up(self) -> None:
        """Record the operations that have ended. Not to be called where a collection may be the caller."""
        while True:
            try:
                whole = self._ended.popleft()
            except IndexError:
                return
            instruments = self._instruments()
            if instruments is not None:
                instruments.record_whole(whole)

    def metered(self, channel: Channel, joules: float) -> None:
        """A meter read so much more on ``channel``, J."""
        instruments = self._instruments()
        if instruments is not None:
            instruments.metered.add(joules, _channel_attributes(channel))

    def unattributed(self, channel: Channel, reason: str, joules: float) -> None:
        """So much of what was metered on ``channel`` is no call's, J: ``idle``, ``other``, ``outside``..."""
        instruments = self._instruments()
        if instruments is not None:
            instruments.unattributed.add(joules, {**_channel_attributes(channel), conventions.REASON: reason})

    def leave(self) -> None:
        """Be asked no more at collections; what was recorded in until now takes the last bills, if there are any."""
        self._left = True
        if self._made is not None:
            self._made.observed.leave(self._source)

    def _instruments(self) -> _Instruments | None:
        if self._made is None and not self._left:
            provider = self.provider
            if records(provider):
                observed = _observed_of(provider)
                observed.source = self._source
                self._made = _Instruments(provider.get_meter("otel_llm_energy"), observed)
        return self._made


def records(provider: MeterProvider) -> bool:
    """Whether a meter provider is one: the API's own record nothing, or pass on to one that is not there yet."""
    return not type(provider).__module__.startswith("opentelemetry.metrics")


def is_shut_down(provider: MeterProvider) -> bool:
    """Whether it is, as far as it says; the SDK complains of whatever is asked of it then."""
    return bool(getattr(provider, "_shutdown", False))


class _Source(NamedTuple):
    """Whom the observable instruments ask at a collection."""

    health: Callable[[], Iterable[Health]] = tuple
    lag_seconds: Callable[[], Mapping[MeterPlace, float]] = dict


class _Observed:
    """What stands behind the observable instruments of one meter provider, whoever measures just then.

    An SDK keeps the callbacks that it was given first, for good, and heeds no others of these names.

    Attributes:
        source: who measures now.
    """

    def __init__(self) -> None:
        self.source = _Source()
        self._past = Health()  # of those who have left: what is counted never goes down

    def health(self) -> Iterable[Health]:
        return [self._past, *self.source.health()]

    def lag_seconds(self) -> Mapping[MeterPlace, float]:
        return self.source.lag_seconds()

    def leave(self, source: _Source) -> None:
        """It measures no more, and is let go."""
        if self.source is source:
            for each in source.health():
                self._past.add(each)
            self._past.held = 0
            self.source = _Source()


def _observed_of(provider: MeterProvider) -> _Observed:
    """The one of this provider, kept on it."""
    observed = getattr(provider, _OBSERVED, None)
    if not isinstance(observed, _Observed):
        observed = _Observed()
        with suppress(AttributeError):  # it has no room for it
            setattr(provider, _OBSERVED, observed)
    return observed


class _Instruments:
    """The instruments of `conventions` on one meter."""

    def __init__(self, meter: Meter, observed: _Observed) -> None:
        self.observed = observed
        self.consumption = _counter(meter, conventions.CONSUMPTION)
        self.metered = _counter(meter, conventions.METERED)
        self.unattributed = _counter(meter, conventions.UNATTRIBUTED)
        self.operation = _histogram(meter, conventions.OPERATION)
        self.per_output_token = _histogram(meter, conventions.PER_OUTPUT_TOKEN)
        _observe_health(meter, observed.health)
        _observe_lag(meter, observed.lag_seconds)

    def record(self, claims: Iterable[Claim]) -> None:
        """Calls that are billed: each one in the histograms, in the context of its span so that exemplars link.

        Counters are added to once for all calls that are alike, since an addition costs as much as the rest of a bill.
        """
        consumed_nj: dict[_Pairs, int] = {}
        context = Context()
        for claim in claims:
            bill = claim.bill
            if bill is None:
                continue
            if bill.energy_nj is not None:
                context, attributes = _context_of(claim.span_context), _attributes(claim, bill)
                for component, part_nj in _parts_nj(bill, bill.energy_nj):
                    alike = (*attributes.items(), *component)
                    consumed_nj[alike] = consumed_nj.get(alike, 0) + part_nj
                if claim.whole is None:
                    self._record_operation(bill.energy_nj, claim.output_tokens, attributes, context)
            if claim.whole is not None and claim.whole.take(claim):
                self.record_whole(claim.whole)
        for alike, energy_nj in consumed_nj.items():
            self.consumption.add(energy_nj / NJ_PER_JOULE, dict(alike), context=context)

    def record_whole(self, whole: Whole) -> None:
        """An operation in several parts, as one in the histograms."""
        claim, bill = whole.last, whole.bill
        if claim is not None and bill is not None and bill.energy_nj is not None:
            context = _context_of(claim.span_context)
            self._record_operation(bill.energy_nj, whole.output_tokens, _attributes(claim, bill), context)

    def _record_operation(
        self, energy_nj: int, output_tokens: int | None, attributes: dict[str, str | int], context: Context
    ) -> None:
        joules = energy_nj / NJ_PER_JOULE
        self.operation.record(joules, attributes, context=context)
        if output_tokens:
            self.per_output_token.record(joules / output_tokens, attributes, context=context)


def _attributes(claim: Claim, bill: Bill) -> dict[str, str | int]:
    return {**claim.attributes, conventions.QUALITY: bill.quality.value, conventions.METER: bill.meter}


def _parts_nj(bill: Bill, energy_nj: int) -> Iterator[tuple[_Pairs, int]]:
    if not bill.components_nj:
        yield (), energy_nj
    for component, part_nj in bill.components_nj.items():
        yield ((COMPONENT, component),), part_nj


def _context_of(span_context: SpanContext) -> Context:
    if not span_context.is_valid:
        return Context()
    return trace.set_span_in_context(NonRecordingSpan(span_context), Context())


def _channel_attributes(channel: Channel) -> dict[str, str]:
    return {CHANNEL: channel.id, COMPONENT: channel.component, **_place_attributes(channel.meter, channel.host)}


def _place_attributes(meter: str, host: str) -> dict[str, str]:
    return {conventions.METER: meter, HOST: host} if host else {conventions.METER: meter}


def _counter(meter: Meter, metric: Metric) -> Counter:
    return meter.create_counter(metric.name, metric.unit, metric.meaning)


def _histogram(meter: Meter, metric: Metric) -> Histogram:
    return meter.create_histogram(
        metric.name,
        metric.unit,
        metric.meaning,
        explicit_bucket_boundaries_advisory=metric.boundaries,
    )


def _observe_health(meter: Meter, health: Callable[[], Iterable[Health]]) -> None:
    """Read at collection, so that a span costs no more than an addition."""

    def held(_: CallbackOptions) -> Sequence[Observation]:
        return [Observation(sum(each.held for each in health()))]

    def forwarded(_: CallbackOptions) -> Sequence[Observation]:
        every = list(health())
        return [
            Observation(sum(each.forwarded for each in every), {THREAD: "forwarder"}),
            Observation(sum(each.passed for each in every), {THREAD: "application"}),
        ]

    def dropped(_: CallbackOptions) -> Sequence[Observation]:
        return [Observation(sum(each.dropped for each in health()))]

    def degraded(_: CallbackOptions) -> Sequence[Observation]:
        total: dict[str, int] = {}
        for each in health():
            for reason, count in each.degraded.copy().items():
                total[reason] = total.get(reason, 0) + count
        return [Observation(count, {conventions.REASON: reason}) for reason, count in total.items()]

    held_spans = conventions.HELD_SPANS
    meter.create_observable_up_down_counter(held_spans.name, [held], held_spans.unit, held_spans.meaning)
    for metric, callback in (
        (conventions.FORWARDED_SPANS, forwarded),
        (conventions.DROPPED_SPANS, dropped),
        (conventions.DEGRADED_SPANS, degraded),
    ):
        meter.create_observable_counter(metric.name, [callback], metric.unit, metric.meaning)


def _observe_lag(meter: Meter, lag_seconds: Callable[[], Mapping[MeterPlace, float]]) -> None:
    def lag(_: CallbackOptions) -> Sequence[Observation]:
        return [Observation(seconds, _place_attributes(*place)) for place, seconds in lag_seconds().items()]

    metric = conventions.METER_LAG
    meter.create_observable_gauge(metric.name, [lag], metric.unit, metric.meaning)

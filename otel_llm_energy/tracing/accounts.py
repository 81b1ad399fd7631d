"""What the books enter events in: the interface that three kinds of ledger have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from otel_llm_energy.ledger.bill import Window
from otel_llm_energy.ledger.entry import Entry
from otel_llm_energy.ledger.idle import Baseline
from otel_llm_energy.ledger.ledger import Balance
from otel_llm_energy.quantities import ActivitySample, Channel, IdlePower, Reading


class Accounts(Protocol):
    """Where events are entered and settled: this process's own ledger, one that it shares, or that of another process.

    See `otel_llm_energy.ledger.ledger.Ledger`, `otel_llm_energy.host.shared.SharedLedger` and
    `otel_llm_energy.host.remote.RemoteLedger`.
    """

    caution: str | None

    @property
    def busy_elsewhere(self) -> bool: ...

    @property
    def by_weight(self) -> bool: ...

    @property
    def channels(self) -> list[Channel]: ...

    def add_channel(self, channel: Channel, remembered: Sequence[IdlePower] = ()) -> None: ...

    def read(self, reading: Reading) -> None: ...

    def interrupt(self, reason: str) -> None: ...

    def sample(self, sample: ActivitySample, *, final: bool = False) -> None: ...

    def add_server(
        self, server: str, *, slots: int | None = None, reports: bool | None = None, caution: str | None = None
    ) -> None: ...

    def open(self, server: str, at_ns: int, route: str = "") -> Entry: ...

    def close(self, entry: Entry, windows: Sequence[Window], *, reported: bool) -> None: ...

    def settle(self, now_ns: int, breathe: Callable[[], None]) -> list[Entry]: ...

    def force(self, entries: Iterable[Entry], reason: str) -> list[Entry]: ...

    def disown(self, entry: Entry) -> None: ...

    def balance(self) -> dict[str, Balance]: ...

    def baselines(self) -> dict[str, Baseline]: ...

    def learned_idle(self, least_seconds: float) -> dict[str, list[IdlePower]]: ...

    def forget_idle(self) -> None: ...

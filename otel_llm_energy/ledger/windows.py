"""The work windows of a call: its span is not its work, it also holds the queue and a slow reader."""

from __future__ import annotations

from dataclasses import dataclass

from otel_llm_energy.ledger.bill import Window
from otel_llm_energy.quantities import NS_PER_SECOND

# Ollama reports some ms of load_duration for a model that is loaded already.
_LOADED_ALREADY_NS = 100_000_000
# Weights are integers; decode may be as slow as some tokens a second.
_WEIGHTS_PER_TOKEN = 10


@dataclass(slots=True)  # not frozen, as `Bill`
class CallTimes:
    """When a call began, gave its first chunk and ended, and how long the server says it worked, all in ns.

    Attributes:
        start_ns, end_ns: the call by the client's monotonic clock.
        first_chunk_ns: ``None`` if it was not streamed.
        prefill_ns, decode_ns, load_ns: from the server's own timings.
        server_end_ns: the server's own end time on the client's monotonic clock; only from the same host.
        prefill_tokens, decode_tokens: tokens of the prompt that no cache held, and of the answer; ``None`` where they
            are not known or not to count.
    """

    start_ns: int
    end_ns: int
    first_chunk_ns: int | None = None
    prefill_ns: int | None = None
    decode_ns: int | None = None
    load_ns: int | None = None
    server_end_ns: int | None = None
    prefill_tokens: int | None = None
    decode_tokens: int | None = None

    @property
    def reported(self) -> bool:
        """The server said how long it was at work on the call."""
        return bool(self.prefill_ns or self.decode_ns)


def work_windows(times: CallTimes) -> tuple[Window, ...]:
    """The windows in which the call was at work, in order, without overlap.

    With the server's timings, [e - prefill - decode, e], where e is the earliest of the call's end, the first
    chunk + decode (a stream may be read slower than it was written) and the server's own end time. Loading lies
    at the start of the call, before the queue. Without timings the window is the call; a first chunk parts
    prefill from decode.
    """
    if times.end_ns <= times.start_ns:
        return ()
    if times.reported:
        return _reported(times)
    first_ns = times.first_chunk_ns
    if first_ns is None or not times.start_ns < first_ns < times.end_ns:
        return (Window(times.start_ns, times.end_ns),)
    return (
        Window(times.start_ns, first_ns, "prefill", _weight(times.prefill_tokens, first_ns - times.start_ns)),
        Window(first_ns, times.end_ns, "decode", _weight(times.decode_tokens, times.end_ns - first_ns)),
    )


def _reported(times: CallTimes) -> tuple[Window, ...]:
    prefill_ns, decode_ns = times.prefill_ns or 0, times.decode_ns or 0
    load_end_ns = _load_end_ns(times)
    end_ns = _end_ns(times, prefill_ns, decode_ns)
    turn_ns = max(end_ns - decode_ns, times.start_ns)
    start_ns = max(turn_ns - prefill_ns, load_end_ns)
    windows = (
        Window(times.start_ns, load_end_ns, "load"),
        Window(start_ns, turn_ns, "prefill", _weight(times.prefill_tokens, prefill_ns)),
        Window(max(turn_ns, start_ns), end_ns, "decode", _weight(times.decode_tokens, decode_ns)),
    )
    return tuple([window for window in windows if window.end_ns > window.start_ns])


def _weight(tokens: int | None, length_ns: int) -> int:
    """The mean rate of a phase; 0 where it is not known."""
    if not tokens or not length_ns:
        return 0
    return max(tokens * _WEIGHTS_PER_TOKEN * NS_PER_SECOND // length_ns, 1)


def _end_ns(times: CallTimes, prefill_ns: int, decode_ns: int) -> int:
    """The earliest end that is known of the work; one that leaves the work no room is not believed."""
    end_ns = times.end_ns
    if times.first_chunk_ns is not None:
        end_ns = min(end_ns, max(times.first_chunk_ns, times.start_ns) + decode_ns)
    if times.server_end_ns is not None and times.server_end_ns >= times.start_ns + prefill_ns + decode_ns:
        end_ns = min(end_ns, times.server_end_ns)
    return end_ns


def _load_end_ns(times: CallTimes) -> int:
    load_ns = times.load_ns or 0
    return min(times.start_ns + (load_ns if load_ns >= _LOADED_ALREADY_NS else 0), times.end_ns)

"""When something was so of a server: that it drew nothing from a channel, rested while it was called, or was hidden."""

from __future__ import annotations

from otel_llm_energy.ledger.counter import Bucket
from otel_llm_energy.ledger.tracks import Track


class ServerTimes:
    """Of each server the buckets in which it was so; they come in order."""

    def __init__(self) -> None:
        self._lengths: dict[str, Track] = {}

    def add(self, server: str, bucket: Bucket) -> None:
        """It was so in the whole bucket."""
        self._lengths.setdefault(server, Track()).grow(bucket.start_ns, bucket.end_ns, bucket.length_ns)

    def ever(self, server: str) -> bool:
        """It was so at some time."""
        return server in self._lengths

    def throughout(self, server: str, start_ns: int, end_ns: int) -> bool:
        """It was so in all of [start_ns, end_ns]."""
        lengths = self._lengths.get(server)
        return lengths is not None and lengths.between(start_ns, end_ns) >= end_ns - start_ns

    def during(self, server: str, start_ns: int, end_ns: int) -> bool:
        """It was so in some of [start_ns, end_ns]."""
        lengths = self._lengths.get(server)
        return lengths is not None and lengths.between(start_ns, end_ns) > 0

    def until(self, server: str, end_ns: int) -> bool:
        """It was so in the bucket that ended at ``end_ns``, and none came after."""
        lengths = self._lengths.get(server)
        return lengths is not None and lengths.end_ns >= end_ns

    def forget(self, server: str) -> None:
        """It will not be asked for any more."""
        self._lengths.pop(server, None)

    def forget_before(self, time_ns: int) -> None:
        """Nothing before ``time_ns`` will be asked for."""
        for lengths in self._lengths.values():
            lengths.forget_before(time_ns)

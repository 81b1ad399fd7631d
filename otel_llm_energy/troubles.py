"""Say what is wrong, but at most once a minute for each kind of trouble."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from otel_llm_energy.quantities import NS_PER_SECOND

_PERIOD_NS = 60 * NS_PER_SECOND


class Troubles:
    """A logger for what may go wrong thousands of times a second.

    Args:
        logger: where the lines go.
        clock_ns: monotonic, nanoseconds.
    """

    def __init__(
        self,
        logger: logging.Logger,
        *,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._logger = logger
        self._clock_ns = clock_ns
        self._quiet_until_ns: dict[str, int] = {}

    def warn(self, kind: str, message: str, *args: object, exc_info: bool = False) -> None:
        """Log ``message``, unless a line of this ``kind`` was logged within the last minute."""
        now_ns = self._clock_ns()
        if now_ns < self._quiet_until_ns.get(kind, now_ns):
            return
        self._quiet_until_ns[kind] = now_ns + _PERIOD_NS
        self._logger.warning(message, *args, exc_info=exc_info)

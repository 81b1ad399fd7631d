"""What an exception says of how far a request came, whichever library raised it."""

from __future__ import annotations

from typing import Final

# Of httpx and httpcore, requests and urllib3, and aiohttp, with what is derived from them. Told by name, since none of
# these libraries may be imported for it.
_NO_CONNECTION: Final = frozenset(
    {
        *("ConnectError", "ConnectTimeout", "ConnectTimeoutError", "NewConnectionError"),
        *("ClientConnectorError", "ConnectionTimeoutError"),
    }
)
# Of the kernel; the last two where a Unix socket's file is not there or not for this user.
_NO_CONNECTION_ERRORS: Final = (ConnectionRefusedError, FileNotFoundError, PermissionError)
_LONGEST_CHAIN: Final = 16


def is_no_connection(error: BaseException | None, outer: BaseException | None = None) -> bool:
    """Whether a request failed because no connection to its server was made, and so nobody worked on it.

    Args:
        error: what it failed with.
        outer: what was being handled when it began, which ends up at the end of the chain: the failure of another.
    """
    for _ in range(_LONGEST_CHAIN):
        if error is None or error is outer:
            return False
        if isinstance(error, _NO_CONNECTION_ERRORS):
            return True
        if any(kind.__name__ in _NO_CONNECTION for kind in type(error).__mro__):
            return True
        error = error.__cause__ or error.__context__
    return False

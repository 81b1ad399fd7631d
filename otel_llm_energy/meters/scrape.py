"""One bounded HTTP GET of a Prometheus exporter: in time, in size, and silent to tracing."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Hashable, Iterator
from functools import partial
from http.client import HTTPException
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote, urlsplit, urlunsplit

from otel_llm_energy.meters.base import MeterError
from otel_llm_energy.meters.exposition import Sample, parse
from otel_llm_energy.quantities import NS_PER_SECOND

if TYPE_CHECKING:
    import requests

MAX_BODY_BYTES = 16 << 20  # 30 times what a host with 200 processes sends
MAX_SAMPLES = 50_000  # of wanted ones: one for each process and counter of a very large host
_CHUNK_BYTES = 1 << 16
_CONNECT_SECONDS = 1.0
_LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")


class Scrape(NamedTuple):
    """The wanted samples, and when the exporter made them up: after we asked, before its answer began."""

    asked_ns: int
    answered_ns: int
    samples: list[Sample]


class Exporter:
    """An exporter's address. Credentials in the URL are sent, but never shown.

    Args:
        url: of the metrics page, http or https.
        timeout_seconds: for the whole request; twice that where the body drips.
        clock: the monotonic clock, ns.
    """

    def __init__(self, url: str, timeout_seconds: float = 3.0, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._url, self._credentials = _split_credentials(url)
        self.shown_url = self._url.partition("?")[0]  # a query may hold a token
        self._timeout_seconds = timeout_seconds
        self._clock = clock

    @property
    def source(self) -> Hashable:
        """Equal for exporters of the same address and credentials; not to be shown."""
        return self._url, self._credentials

    def scrape(self, wanted: Collection[str]) -> Scrape:
        """Fetch and parse the page, in a context that no instrumentation traces.

        Raises:
            MeterError: ``meter-refused``, ``-timeout``, ``-http-error``, ``-truncated``, ``-too-large`` or ``-garbage``
                (the answer is not HTTP).
        """
        import urllib3
        from opentelemetry.instrumentation.utils import suppress_instrumentation

        try:
            with suppress_instrumentation():
                return self._scrape(wanted)
        except (OSError, HTTPException, urllib3.exceptions.HTTPError) as error:  # requests' own are OSErrors
            reason, kind = _reason(error), type(error).__name__
        # Raised out here, the error holds no reference to the request and its credentials.
        raise self._error(reason, f"{_EXPLANATIONS[reason].format(seconds=self._timeout_seconds)} ({kind})")

    def _scrape(self, wanted: Collection[str]) -> Scrape:
        asked_ns = self._clock()
        timeouts = (min(_CONNECT_SECONDS, self._timeout_seconds), self._timeout_seconds)
        with (
            self._new_session() as session,
            session.get(
                self._url, auth=self._credentials, timeout=timeouts, stream=True, allow_redirects=False
            ) as response,
        ):
            answered_ns = self._clock()
            if response.status_code != 200:
                raise self._error("meter-http-error", f"answered HTTP {response.status_code}")
            deadline_ns = asked_ns + int(2 * self._timeout_seconds * NS_PER_SECOND)
            samples = parse(self._chunks(response, deadline_ns), wanted)
            return Scrape(asked_ns, answered_ns, list(islice(samples, MAX_SAMPLES)))

    def _chunks(self, response: requests.Response, deadline_ns: int) -> Iterator[bytes]:
        # Not iter_content: it waits for whole chunks, however slowly they drip, and unpacks without bound.
        read1 = _read1(response)
        received = 0
        while chunk := read1(_CHUNK_BYTES):
            received += len(chunk)
            if received > MAX_BODY_BYTES:
                raise self._error("meter-too-large", f"more than {MAX_BODY_BYTES >> 20} MiB: no exporter's page")
            if self._clock() > deadline_ns:
                raise self._error("meter-timeout", f"still answering after {2 * self._timeout_seconds:g} s")
            yield chunk
        promised = response.headers.get("content-length", "")
        if promised.isdecimal() and received < int(promised):
            raise self._error("meter-truncated", _EXPLANATIONS["meter-truncated"])

    def _new_session(self) -> requests.Session:
        """A session for one request: a connection kept over seconds would often be found dead."""
        import requests

        session = requests.Session()
        # A proxy of the environment does not know this machine's loopback.
        session.trust_env = urlsplit(self._url).hostname not in _LOOPBACK_HOSTS
        session.headers.update({"Accept-Encoding": "identity", "Connection": "close"})
        return session

    def _error(self, reason: str, what: str) -> MeterError:
        return MeterError(reason, f"{self.shown_url}: {what}.")


_EXPLANATIONS = {
    "meter-refused": "no connection; is the exporter running, and is this its address?",
    "meter-timeout": "no answer within {seconds:g} s",
    "meter-truncated": "the answer broke off",
    "meter-garbage": "the answer is not HTTP",
}


def _read1(response: requests.Response) -> Callable[[int], bytes]:
    """What gives as much of the body as is there, at most so many bytes."""
    raw: Any = response.raw
    if hasattr(raw, "read1"):
        return partial(raw.read1, decode_content=False)
    read1: Callable[[int], bytes] = raw._original_response.read1  # urllib3 < 2.1: the standard library's own
    return read1


def _reason(error: Exception) -> str:
    import requests
    import urllib3

    if isinstance(error, (requests.Timeout, urllib3.exceptions.TimeoutError, TimeoutError)):
        return "meter-timeout"
    cause = error.args[0] if error.args else None
    if isinstance(error, requests.ConnectionError) and isinstance(cause, urllib3.exceptions.ProtocolError):
        return "meter-garbage"
    return "meter-refused" if isinstance(error, OSError) else "meter-truncated"


def _split_credentials(url: str) -> tuple[str, tuple[str, str] | None]:
    """The URL without user and password, and these."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host, parts = None, None
    if parts is None or host is None or parts.scheme not in ("http", "https"):
        raise ValueError("The exporter's url must look like http://host:8080/metrics; what was given does not.")
    bare = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    if parts.username is None:
        return bare, None
    return bare, (unquote(parts.username), unquote(parts.password or ""))

"""One bounded HTTP GET of an exporter, or of a Prometheus: in time, in size, and silent to tracing."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

from otel_llm_energy.meters.base import MeterError
from otel_llm_energy.meters.exposition import Sample, parse
from otel_llm_energy.quantities import NS_PER_SECOND

if TYPE_CHECKING:
    import requests

T = TypeVar("T")

MAX_BODY_BYTES = 16 << 20  # 30 times what a host with 200 processes sends
MAX_SAMPLES = 50_000  # of wanted ones: one for each process and counter of a very large host
_CHUNK_BYTES = 1 << 16
_CONNECT_SECONDS = 1.0
LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Answer(Generic[T]):
    """What was made of an answer, and when that was made up: after we asked, before the answer began."""

    asked_ns: int
    answered_ns: int
    content: T


class HttpSource:
    """An address that is asked with one GET at a time. Credentials are sent, but never shown.

    Args:
        url: http or https; a user and password in it are sent as basic authentication.
        program: what should answer there, for messages.
        headers: sent with each request, e.g. ``{"Authorization": "Bearer ..."}``.
        ca_file: of the authority that signed the certificate of an https address; ``None`` for the usual ones.
        timeout_seconds: for the whole request; twice that where the body drips.
        clock_ns: the monotonic clock.
    """

    def __init__(
        self,
        url: str,
        *,
        program: str = "exporter",
        headers: Mapping[str, str] | None = None,
        ca_file: str | None = None,
        timeout_seconds: float = 3.0,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._url, self._credentials = _split_credentials(url)
        self.shown_url = self._url.partition("?")[0]  # a query may hold a token
        self._program = program
        self._headers = dict(headers or {})
        self._ca_file = ca_file
        self._timeout_seconds = timeout_seconds
        self._clock_ns = clock_ns

    @property
    def source(self) -> Hashable:
        """Equal for the same address and credentials; not to be shown."""
        return self._url, self._credentials, tuple(sorted(self._headers.items()))

    def get(self, consume: Callable[[Iterator[bytes]], T], query: Mapping[str, str] | None = None) -> Answer[T]:
        """Ask, and give the body to ``consume`` as it comes, in a context that no instrumentation traces.

        Raises:
            MeterError: ``meter-refused``, ``-tls``, ``-timeout``, ``-http-error``, ``-truncated``, ``-too-large`` or
                ``-garbage`` (the answer is not HTTP).
        """
        import urllib3
        from opentelemetry.instrumentation.utils import suppress_instrumentation

        try:
            with suppress_instrumentation():
                return self._get(consume, query)
        except (OSError, HTTPException, urllib3.exceptions.HTTPError) as error:  # requests' own are OSErrors
            reason, detail = _reason(error), _tls_problem(error) or type(error).__name__
        # Raised out here, the error holds no reference to the request and its credentials.
        explanation = _EXPLANATIONS[reason].format(seconds=self._timeout_seconds, program=self._program)
        raise self.error(reason, f"{explanation} ({detail})")

    def error(self, reason: str, what: str) -> MeterError:
        """An error that names the address."""
        return MeterError(reason, f"{self.shown_url}: {what}.")

    def _get(self, consume: Callable[[Iterator[bytes]], T], query: Mapping[str, str] | None) -> Answer[T]:
        asked_ns = self._clock_ns()
        timeouts = (min(_CONNECT_SECONDS, self._timeout_seconds), self._timeout_seconds)
        with (
            self._new_session() as session,
            session.get(
                self._url,
                params=query,
                auth=self._auth(),
                timeout=timeouts,
                stream=True,
                allow_redirects=False,
                verify=self._ca_file or True,  # the session's own would give way to REQUESTS_CA_BUNDLE
            ) as response,
        ):
            answered_ns = self._clock_ns()
            if response.status_code != 200:
                raise self.error("meter-http-error", f"answered HTTP {response.status_code}{_hint(response)}")
            deadline_ns = asked_ns + int(2 * self._timeout_seconds * NS_PER_SECOND)
            return Answer(asked_ns, answered_ns, consume(self._chunks(response, deadline_ns)))

    def _auth(self) -> Callable[[requests.PreparedRequest], requests.PreparedRequest] | None:
        """``None`` where none was given: then requests looks into the user's .netrc, and would so past a header."""
        from requests.auth import HTTPBasicAuth

        if self._credentials is not None:
            return HTTPBasicAuth(*self._credentials)
        if any(name.lower() == "authorization" for name in self._headers):
            return lambda request: request
        return None

    def _chunks(self, response: requests.Response, deadline_ns: int) -> Iterator[bytes]:
        # Not iter_content: it waits for whole chunks, however slowly they drip, and unpacks without bound.
        read1 = _read1(response)
        received = 0
        while chunk := read1(_CHUNK_BYTES):
            received += len(chunk)
            if received > MAX_BODY_BYTES:
                raise self.error(
                    "meter-too-large", f"more than {MAX_BODY_BYTES >> 20} MiB: no {self._program}'s answer"
                )
            if self._clock_ns() > deadline_ns:
                raise self.error("meter-timeout", f"still answering after {2 * self._timeout_seconds:g} s")
            yield chunk
        promised = response.headers.get("content-length", "")
        if promised.isdecimal() and received < int(promised):
            raise self.error("meter-truncated", _EXPLANATIONS["meter-truncated"])

    def _new_session(self) -> requests.Session:
        """A session for one request: a connection kept over seconds would often be found dead."""
        import requests

        session = requests.Session()
        # A proxy of the environment does not know this machine's loopback.
        session.trust_env = urlsplit(self._url).hostname not in LOOPBACK_HOSTS
        session.headers.update({"Accept-Encoding": "identity", "Connection": "close", **self._headers})
        return session


class Exporter(HttpSource):
    """A page of metrics in Prometheus' text format."""

    def scrape(self, wanted: Collection[str]) -> Answer[list[Sample]]:
        """Fetch the wanted samples. Raises `MeterError` as `get` does."""
        return self.get(lambda chunks: list(islice(parse(chunks, wanted), MAX_SAMPLES)))


_EXPLANATIONS = {
    "meter-refused": "no connection; is the {program} running, and is this its address?",
    "meter-tls": "no secure connection; who signed its certificate is named by ca_file=",
    "meter-timeout": "no answer within {seconds:g} s",
    "meter-truncated": "the answer broke off",
    "meter-garbage": "the answer is not HTTP",
}


def _hint(refusal: requests.Response) -> str:
    """What to do about an answer that is no page."""
    if refusal.status_code in (401, 403):
        return "; check the credentials"
    if refusal.status_code == 404:
        return "; check the path of its URL"
    return "; name the address that it leads to" if refusal.is_redirect else ""


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
    if _tls_problem(error) is not None:
        return "meter-tls"
    cause = error.args[0] if error.args else None
    if isinstance(error, requests.ConnectionError) and isinstance(cause, urllib3.exceptions.ProtocolError):
        return "meter-garbage"
    return "meter-refused" if isinstance(error, OSError) else "meter-truncated"


def _tls_problem(error: BaseException) -> str | None:
    """What TLS found wrong; ``None`` if it is something else that failed."""
    import requests

    cause = error
    while not isinstance(cause, ssl.SSLError) and (earlier := cause.__cause__ or cause.__context__):
        cause = earlier
    if isinstance(cause, ssl.SSLCertVerificationError):
        return cause.verify_message
    if isinstance(cause, ssl.SSLError):
        return cause.reason
    # urllib3 < 2 compares the host's name itself, by an error of its own.
    return str(cause) if isinstance(error, requests.exceptions.SSLError) else None


def insist_on_certificates(meter: str, ca_file: str | None) -> None:
    """Raises `ValueError` if a meter of this name is given none."""
    if ca_file is not None and not Path(ca_file).exists():
        raise ValueError(f"{meter}(ca_file={ca_file!r}): there is no such file or folder of certificates.")


def _split_credentials(url: str) -> tuple[str, tuple[bytes, bytes] | None]:
    """The URL without user and password, and these, in UTF-8 (RFC 7617)."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host, parts = None, None
    if parts is None or host is None or parts.scheme not in ("http", "https"):
        raise ValueError("The url must look like http://host:8080/metrics; what was given does not.")
    bare = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    if parts.username is None:
        return bare, None
    return bare, (unquote(parts.username).encode(), unquote(parts.password or "").encode())

"""Answers that no server should give, byte by byte: bodies, and the protocol around them."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import Any

from tests.instrumentation import payloads
from tests.instrumentation.replay import Reply

_JSON = "application/json"
_HTML = b"<html><body>502 Bad Gateway</body></html>"
_LONG = 10 << 20
_DEEP = 20_000  # brackets; more than any parser of Python follows


def _message(body: bytes, kind: str, *headers: str, status: str = "200 OK") -> bytes:
    """A whole answer, its length in a header unless one of ``headers`` says otherwise."""
    given = " ".join(headers).lower()
    framing = [] if "content-length" in given or "transfer-encoding" in given else [f"Content-Length: {len(body)}"]
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", *headers, *framing, "Connection: close", "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def _chunked(pieces: list[bytes], end: bytes = b"0\r\n\r\n") -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + end


class Dialect:
    """How one API writes: whole answers, and streams of lines or events."""

    def __init__(self, kind: str, whole: dict[str, Any], stream: list[dict[str, Any]], *, events: bool) -> None:
        self.kind = kind
        self.whole = json.dumps(whole).encode()
        self.stream = stream
        self._events = events

    def line(self, payload: object) -> bytes:
        """One payload of a stream."""
        return self.raw_line(json.dumps(payload).encode())

    def raw_line(self, text: bytes) -> bytes:
        """The same, of any text."""
        return b"data: " + text + b"\n\n" if self._events else text + b"\n"

    @property
    def end(self) -> bytes:
        return b"data: [DONE]\n\n" if self._events else b""

    @property
    def pieces(self) -> list[bytes]:
        return [*(self.line(payload) for payload in self.stream), self.end]


SSE = Dialect("text/event-stream", payloads.CHAT, payloads.chunks(), events=True)
NDJSON = Dialect("application/x-ndjson", payloads.ollama_chat(), payloads.ollama_chunks(), events=False)


def streamed(dialect: Dialect) -> dict[str, Reply]:
    """Streams with something wrong in them, by name."""
    return {**_odd_lines(dialect), **_odd_framing(dialect, b"".join(dialect.pieces), dialect.kind)}


def whole(dialect: Dialect) -> dict[str, Reply]:
    """Whole answers with something wrong in them, by name."""
    body = dialect.whole
    bodies = {
        "NaN": body.replace(b"8", b"NaN"),
        "Infinity": body.replace(b"8", b"Infinity"),
        "a number beyond doubles": body.replace(b"38", b"1e400"),
        "a number beyond integers": body.replace(b"38", b"9" * 400),
        "a lone surrogate": body.replace(b"Paris", b"\\ud800"),
        "invalid UTF-8": body.replace(b"Paris", b"\xff\xfe"),
        "a NUL": body.replace(b"Paris", b"\\u0000"),
        "UTF-16": body.decode().encode("utf-16"),
        "a BOM": b"\xef\xbb\xbf" + body,
        "a key twice": body[:-1] + b', "model": 5}',
        "nested without end": b"[" * _DEEP + b"]" * _DEEP,
        "cut off JSON": body[: len(body) // 2],
        "two answers": body + body,
        "white space around": b"\n \t" + body + b"\n\n",
        "10 MB of text": body.replace(b"Paris", b"x" * _LONG),
        "empty": b"",
        "a page of HTML": _HTML,
    }
    odd = {name: Reply([], raw=_message(text, _JSON)) for name, text in bodies.items()}
    return {**odd, **_odd_framing(dialect, body, _JSON)}


def _odd_lines(dialect: Dialect) -> dict[str, Reply]:
    first, *rest = dialect.stream
    lines = dialect.pieces
    text = b"".join(lines)
    between = {
        "null": b"null",
        "a number": b"7",
        "a list": b"[1]",
        "an empty object": b"{}",
        "no JSON": b"{no json",
        "NaN": dialect.line({**first, "usage": 1}).strip().removeprefix(b"data: ").replace(b": 1}", b": NaN}"),
        "an error": b'{"error": {"message": "out of memory", "type": "server_error"}}',
        "an error as text": b'{"error": "out of memory"}',
        "nested without end": b"[" * _DEEP + b"]" * _DEEP,
    }
    odd = {f"{name} in a line": [lines[0], dialect.raw_line(inner), *lines[1:]] for name, inner in between.items()}
    odd |= {
        "no space": [text.replace(b"data: ", b"data:")],
        "CRLF": [text.replace(b"\n", b"\r\n")],
        "comments and other fields": [b": ping\n\n", b"event: message\nid: 7\nretry: 3\n", *lines],
        "empty lines": [b"\n\n\n", *lines, b"\n\n"],
        "no end mark": [dialect.line(payload) for payload in dialect.stream],
        "no last line end": [text.rstrip(b"\n")],
        "the end mark twice": [*lines, dialect.end],
        "more after the end mark": [*lines, dialect.line(first)],
        "one byte at a time": [bytes([byte]) for byte in text],
        "a character cut in two": _cut(text),
        "invalid UTF-8": [text.replace(b"capital", b"\xff\xfe").replace(b"Pa", b"\xff")],
        "a BOM": [b"\xef\xbb\xbf" + text],
        "a NUL": [text.replace(b"capital", b"\\u0000")],
        "a lone surrogate": [text.replace(b"capital", b"\\ud800")],
        "10 MB in a line": [dialect.line({**first, "x": "x" * _LONG}), *(dialect.line(payload) for payload in rest)],
        "all in one piece": [text],
    }
    # An empty piece would be the end of a chunked body.
    return {name: Reply([*filter(None, pieces)], content_type=dialect.kind) for name, pieces in odd.items()}


def _cut(text: bytes) -> list[bytes]:
    """A stream that is cut within a character of two bytes."""
    accented = text.replace(b"capital", "é".encode()).replace(b'"Pa"', '"é"'.encode())
    at = accented.index("é".encode()) + 1
    return [accented[:at], accented[at:]]


def _odd_framing(dialect: Dialect, body: bytes, kind: str) -> dict[str, Reply]:
    """The same body, in a protocol with something wrong."""
    half = body[: len(body) // 2]
    packed = gzip.compress(body)
    chunked, coded = "Transfer-Encoding: chunked", "Content-Encoding: gzip"
    messages = {
        "chunked, without its end": _message(_chunked([half], b""), kind, chunked),
        "chunked, cut within a chunk": _message(b"fff\r\n" + half[:99], kind, chunked),
        "chunked, sizes that are none": _message(b"zz\r\n" + body + b"\r\n0\r\n\r\n", kind, chunked),
        "chunked, with trailers": _message(_chunked([body], b"0\r\nX-Late: 1\r\n\r\n"), kind, chunked),
        "chunked, with extensions": _message(b"%x;a=b\r\n%s\r\n0\r\n\r\n" % (len(body), body), kind, chunked),
        "longer than its length": _message(body, kind, f"Content-Length: {len(half)}"),
        "shorter than its length": _message(half, kind, f"Content-Length: {len(body)}"),
        "until the connection closes": _message(body, kind).replace(b"Content-Length", b"X-Length"),
        "gzip": _message(packed, kind, coded),
        "gzip, chunked": _message(_chunked([packed[:40], packed[40:]]), kind, coded, chunked),
        "gzip, cut off": _message(packed[: len(packed) // 2], kind, coded),
        "gzip, broken": _message(packed[:30] + b"\x00\xff" * 20 + packed[70:], kind, coded),
        "gzip, by its header only": _message(body, kind, coded),
        "deflate": _message(zlib.compress(body), kind, "Content-Encoding: deflate"),
        "an unknown coding": _message(body, kind, "Content-Encoding: made-up"),
        "two codings": _message(gzip.compress(packed), kind, "Content-Encoding: gzip, gzip"),
        "no type": _message(body, kind).replace(b"Content-Type", b"X-Type"),
        "another type": _message(body, "text/plain; charset=klingon"),
        "odd headers": _message(body, kind, "X-Odd: \xe9\xff", "X-Odd: again", "Server: "),
        "204": _message(b"", kind, status="204 No Content"),
        "200, a page of HTML": _message(_HTML, "text/html"),
        "502, a page of HTML": _message(_HTML, "text/html", status="502 Bad Gateway"),
        "500, empty": _message(b"", kind, status="500 Internal Server Error"),
        "429, JSON": _message(b'{"error": {"message": "slow down"}}', _JSON, status="429 Too Many Requests"),
        "418, JSON that is a list": _message(b"[1]", _JSON, status="418 Teapot"),
        "a redirect to nowhere": _message(b"", kind, status="302 Found"),
        "100 first": b"HTTP/1.1 100 Continue\r\n\r\n" + _message(body, kind),
        "no status line": b"hello\r\n\r\n",
        "nothing at all": b"",
        "half of the headers": _message(body, kind)[:30],
    }
    return {name: Reply([], raw=message) for name, message in messages.items()}

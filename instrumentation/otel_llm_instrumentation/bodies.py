"""An answer, looked at as the app reads it: not a byte ahead, and not a byte changed.

aiohttp reads ahead by itself, up to a bound: its answers are looked at as they arrive. That is nearer to what the
server did, and the answer says all that it has to say though the app may leave before its end.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final

from otel_llm_instrumentation import semconv
from otel_llm_instrumentation.call import Call
from otel_llm_instrumentation.facts import fields
from otel_llm_instrumentation.tail import Tail

_IDENTITY: Final = "identity"
# With which aiohttp refuses a read once the app has let go of the response; what fails has names of its own.
_RELEASED: Final = "ClientConnectionError"


def tail_of(call: Call, headers: Mapping[str, str]) -> Tail:
    """What to keep of an answer: its last payloads, or the one that it is."""
    kind = headers.get("content-type") or ""
    by_line = call.streaming or "event-stream" in kind or "ndjson" in kind
    return Tail(call.payloads_kept if by_line else None)


def see_payloads(call: Call, payloads: list[object]) -> None:
    """Note what an answer says; an error that it tells of in its last words is the call's."""
    for payload in payloads:
        call.see(payload)
    if payloads and call.error_type is None and fields(payloads[-1]).get("error"):
        call.error_type = semconv.OTHER_ERROR


class Answer:
    """Ends its call at the last byte, at a close, at a failure or when it is collected, whichever is first.

    Held by the body that the app reads, or in its stead by its class, and by nothing else.
    """

    __slots__ = ("_call", "_decode", "_ended", "_reading", "_released", "_tail", "_waiting")

    def __init__(self, call: Call, headers: Mapping[str, str]) -> None:
        self._call = call
        self._tail = tail_of(call, headers)
        self._decode = _decoder(headers.get("content-encoding") or _IDENTITY)
        self._waiting = call.streaming  # for the first chunk
        self._reading = False
        self._released = False
        self._ended = False
        call.end_by_the_exit()

    def read(
        self, method: Callable[..., bytes], amt: int | None, decoded: bool, *more: object, whole: bool = False
    ) -> bytes:
        """Let the app read up to ``amt`` bytes, or, where ``whole``, all that there are."""
        self._reading = True
        try:
            data = method(amt, decoded, *more)
        except BaseException as error:
            self.end(error)
            raise
        self._reading = False
        self.see(data, decoded)
        # Where bytes are decoded some may be left when the connection is released; an empty read comes after them.
        if whole or (not data and amt) or (self._released and self._decode is bytes):
            self.end()
        return data

    def chunks(self, chunks: Iterator[bytes], decoded: bool | None = False) -> Iterator[bytes]:
        """Hand on what the app iterates over; ``decoded`` is ``None`` where `read` sees it already."""
        try:
            self._reading = True
            for chunk in chunks:
                self._reading = False
                if decoded is not None:
                    self.see(chunk, decoded)
                yield chunk
                self._reading = True
        except BaseException as error:
            self.end(error)
            raise
        self.end()

    async def chunks_async(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The same, awaited."""
        try:
            self._reading = True
            async for chunk in chunks:
                self._reading = False
                self.see(chunk)
                yield chunk
                self._reading = True
        except BaseException as error:
            self.end(error)
            raise
        self.end()

    def see(self, data: bytes, decoded: bool = False) -> None:
        """Bytes that the app is about to get."""
        if self._ended or not data:
            return
        if self._waiting:
            self._waiting = False
            self._call.see_first_chunk()
        try:
            self._tail.feed(data if decoded else self._decode(data))
        except zlib.error:
            self._decode = _nothing  # what the app gets says what is wrong

    def close(self) -> None:
        """The connection is let go of. Within a read that is the read's to judge: it knows whether it failed."""
        self._released = True
        if not (self._reading or self._ended):
            self._read_facts()
            self._call.end_with_error_in_flight()

    def end(self, error: BaseException | None = None, *, collected: bool = False) -> None:
        """The answer is over, whole or not. A repeat does nothing."""
        if not self._ended:
            self._read_facts()
            self._call.end(error, collected=collected)

    def let_go(self) -> None:
        """Leave the call to something else that has come to look at the answer."""
        self._ended = True

    def __del__(self) -> None:
        self.end(collected=True)

    def _read_facts(self) -> None:
        self._ended = True
        see_payloads(self._call, self._tail.payloads())
        self._tail = Tail(0)


def _decoder(encoding: str) -> Callable[[bytes], bytes]:
    if encoding == _IDENTITY:
        return bytes
    if encoding in ("gzip", "deflate"):
        return zlib.decompressobj(zlib.MAX_WBITS | 32).decompress  # tells the two apart by itself
    return _nothing


def _nothing(_data: bytes) -> bytes:
    return b""


if TYPE_CHECKING:
    from aiohttp import StreamReader
    from httpx import AsyncByteStream, SyncByteStream
    from urllib3 import HTTPResponse
else:  # the classes of bodies are those of objects that are there
    AsyncByteStream = SyncByteStream = HTTPResponse = StreamReader = object


class WatchedRaw(HTTPResponse):
    """The ``raw`` of an answer of requests: urllib3's response."""

    _otel_llm_answer: Answer

    def read(self, amt: int | None = None, decode_content: bool | None = None, cache_content: bool = False) -> bytes:
        decoded = self.decode_content if decode_content is None else decode_content
        return self._otel_llm_answer.read(super().read, amt, decoded, cache_content, whole=amt is None or amt < 0)

    def read_chunked(self, amt: int | None = None, decode_content: bool | None = None) -> Any:
        decoded = self.decode_content if decode_content is None else decode_content
        return self._otel_llm_answer.chunks(super().read_chunked(amt, decode_content), decoded)

    def stream(self, amt: int | None = 2**16, decode_content: bool | None = None) -> Any:
        return self._otel_llm_answer.chunks(super().stream(amt, decode_content), None)

    def release_conn(self) -> None:
        try:
            super().release_conn()
        finally:
            self._otel_llm_answer.close()

    def close(self) -> None:
        if getattr(self, "_finalizing", False):  # by io.IOBase: nobody closes, it is being collected
            self._otel_llm_answer.end(collected=True)
        try:
            super().close()
        finally:
            self._otel_llm_answer.close()


class WatchedRead1(HTTPResponse):
    """What urllib3 2 adds to it."""

    _otel_llm_answer: Answer

    def read1(self, amt: int | None = None, decode_content: bool | None = None) -> bytes:
        decoded = self.decode_content if decode_content is None else decode_content
        return self._otel_llm_answer.read(super().read1, amt, decoded)


class WatchedStream(SyncByteStream):
    """The ``stream`` of an answer of httpx."""

    _otel_llm_answer: Answer

    def __iter__(self) -> Iterator[bytes]:
        return self._otel_llm_answer.chunks(super().__iter__())

    def close(self) -> None:
        try:
            super().close()
        finally:
            self._otel_llm_answer.close()


class WatchedAsyncStream(AsyncByteStream):
    """The same, asynchronous."""

    _otel_llm_answer: Answer

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._otel_llm_answer.chunks_async(super().__aiter__())

    async def aclose(self) -> None:
        try:
            await super().aclose()
        finally:
            self._otel_llm_answer.close()


class WatchedReader(StreamReader):
    """The ``content`` of an answer of aiohttp, which receives whether the app reads or not: seen as it arrives."""

    __slots__ = ()
    _otel_llm_answers: ClassVar[dict[int, Answer]]  # by the reader's id: its slots have no room

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls._otel_llm_answers = {}

    @property
    def _otel_llm_answer(self) -> Answer:
        return self._otel_llm_answers[id(self)]

    @_otel_llm_answer.setter
    def _otel_llm_answer(self, answer: Answer) -> None:
        self._otel_llm_answers[id(self)] = answer

    def feed_data(self, data: bytes, *args: Any, **kwargs: Any) -> bool:
        self._otel_llm_answer.see(data, decoded=True)
        return super().feed_data(data, *args, **kwargs)

    def feed_eof(self) -> None:
        self._otel_llm_answer.end()
        super().feed_eof()

    def set_exception(self, exc: BaseException, *args: Any, **kwargs: Any) -> None:
        _end_by(exc, self._otel_llm_answer)
        super().set_exception(exc, *args, **kwargs)

    async def _wait(self, func_name: str) -> None:
        try:
            await super()._wait(func_name)
        except asyncio.TimeoutError as error:  # of the whole request; the app's own is a cancellation here
            self._otel_llm_answer.end(error)
            raise

    def __del__(self) -> None:
        self._otel_llm_answers.pop(id(self), None)


class _HasDict:
    """Comes first where readers have a ``__dict__``, as in the older aiohttp, for the layout to be theirs."""


def _end_by(error: BaseException, answer: Answer) -> None:
    if type(error).__name__ == _RELEASED:
        answer.close()
    else:
        answer.end(error)


class Bodies:
    """Makes a body watched: it stays the object that it is, of a subclass of the class that it had.

    So no reference cycle is made, nobody else's object is changed, and ``isinstance`` holds.
    """

    def __init__(self) -> None:
        self._watched: dict[type, type] = {}

    def watch(self, body: Any, answer: Answer) -> None:
        """From now on ``body`` shows ``answer`` what the app reads."""
        own = type(body)
        if own not in self._watched:
            self._watched[own] = _watched_class(own)
        body.__class__ = self._watched[own]
        body._otel_llm_answer = answer

    def watch_arrival(self, reader: Any, answer: Answer) -> None:
        """The same for a reader of aiohttp, of which some, or all, may have arrived along with the headers."""
        for data in getattr(reader, "_buffer", ()):  # what is empty has none
            answer.see(data, decoded=True)
        if reader.is_eof():
            answer.end()
        elif reader.exception() is not None:
            _end_by(reader.exception(), answer)
        else:
            self.watch(reader, answer)


def _watched_class(own: type) -> type:
    if hasattr(own, "read_chunked"):
        mixins: tuple[type, ...] = (WatchedRead1, WatchedRaw) if hasattr(own, "read1") else (WatchedRaw,)
    elif hasattr(own, "feed_eof"):
        mixins = (_HasDict, WatchedReader) if own.__dictoffset__ else (WatchedReader,)
    else:
        mixins = (WatchedAsyncStream,) if hasattr(own, "__aiter__") else (WatchedStream,)
    names: dict[str, object] = {"__module__": own.__module__, "__qualname__": own.__qualname__}
    if not own.__dictoffset__:
        names["__slots__"] = ()  # no object's class can be changed to one of another layout
    return type(own.__name__, (*mixins, own), names)

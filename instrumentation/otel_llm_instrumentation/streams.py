"""Streams of chunks, watched as they pass: what the app reads is what it would have read."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from typing import TypeVar

from otel_llm_instrumentation.call import Lease

_T = TypeVar("_T")


def watched(lease: Lease, chunks: Generator[_T, None, None]) -> Generator[_T, None, None]:
    """Hand on ``chunks`` and end the call when they end, fail, are closed, or are collected.

    The call's context is current only while the first chunk is awaited: then a lazy client sends its request.
    The lease is an argument so that a generator that was never started lets go of it when it is collected.
    """
    call = lease.call
    see = call.see
    try:
        for chunk in call.run(_first, chunks):
            call.see_first_chunk()
            see(chunk)
            yield chunk
        for chunk in chunks:
            see(chunk)
            yield chunk
    except BaseException as error:
        call.end(error)
        raise
    else:
        call.end()
    finally:
        chunks.close()


async def watched_async(
    lease: Lease, chunks: AsyncGenerator[_T, None], *, closes_chunks: bool
) -> AsyncGenerator[_T, None]:
    """`watched`, for asynchronous clients.

    Args:
        closes_chunks: nobody but us holds ``chunks``. Where the library's stream holds them in a cycle, both
            generators are collected together, the event loop closes each of them, and ours must not close the other.
    """
    call = lease.call
    see = call.see
    try:
        for chunk in await call.run_async(_first_async, chunks):
            call.see_first_chunk()
            see(chunk)
            yield chunk
        async for chunk in chunks:
            see(chunk)
            yield chunk
    except BaseException as error:
        call.end(error)
        raise
    else:
        call.end()
    finally:
        if closes_chunks:
            await chunks.aclose()


def _first(chunks: Generator[_T, None, None]) -> list[_T]:
    for chunk in chunks:
        return [chunk]
    return []


async def _first_async(chunks: AsyncGenerator[_T, None]) -> list[_T]:
    async for chunk in chunks:
        return [chunk]
    return []


def is_running(chunks: object) -> bool:
    """Whether someone is inside this generator, waiting for its next chunk."""
    return bool(getattr(chunks, "gi_running", False) or getattr(chunks, "ag_running", False))

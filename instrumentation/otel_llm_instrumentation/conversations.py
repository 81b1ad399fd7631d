"""Which conversation a call belongs to, carried in OpenTelemetry's context."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from opentelemetry.context import Context, attach, get_current, set_value

_KEY: Final = "otel_llm_instrumentation.conversation"
# Where opentelemetry-util-genai keeps it: LangGraph's thread_id comes from there, and its spans read it there.
_UTIL_GENAI: Final = "opentelemetry.util.genai._conversation_context"


@contextmanager
def conversation(conversation_id: str) -> Iterator[None]:
    """Put ``gen_ai.conversation.id`` on every LLM span that starts within.

    It is carried by OpenTelemetry's context: into asyncio tasks always, into threads where the app or
    ``opentelemetry-instrumentation-threading`` carries the context. An id that an API itself gives is used instead.
    A plain generator has it only up to its first ``yield`` where a framework runs each step in a context of its own, as
    Starlette does; an async one has it throughout.
    """
    context = set_value(_KEY, conversation_id)
    shared_key = _shared_key()
    if shared_key is not None:
        context = set_value(shared_key, conversation_id, context)
    token = attach(context)
    try:
        yield
    finally:
        # Where each step of a generator runs in a context of its own there is nothing to undo, and OpenTelemetry's
        # `detach` would log an error.
        with suppress(ValueError):
            token.var.reset(token)


def conversation_in(context: Context | None = None) -> str | None:
    """The conversation of a context, by default the current one."""
    context = get_current() if context is None else context
    if not context:
        return None
    shared_key = _shared_key()
    shared = context.get(shared_key) if shared_key is not None else None
    found = shared if shared is not None else context.get(_KEY)
    return found if isinstance(found, str) else None


def _shared_key() -> str | None:
    key = getattr(sys.modules.get(_UTIL_GENAI), "CONVERSATION_ID_KEY", None)
    return key if isinstance(key, str) else None

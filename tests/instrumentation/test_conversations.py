"""Which conversation a call belongs to."""

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
from typing import Any

import openai
import pytest

from otel_llm_instrumentation import conversation
from tests.instrumentation import payloads
from tests.instrumentation.conftest import Watched
from tests.instrumentation.replay import ReplayServer, json_reply

_ASK: dict[str, Any] = {"model": "m", "messages": payloads.MESSAGES}
_ID = "gen_ai.conversation.id"


@pytest.fixture
def client(server: ReplayServer) -> openai.OpenAI:
    server.reply = json_reply(payloads.chat())
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="k", max_retries=0)


def ids(watched: Watched) -> list[object]:
    return [(span.attributes or {}).get(_ID) for span in watched.spans]


def test_calls_within_carry_the_conversation_and_others_do_not(client: openai.OpenAI, watched: Watched) -> None:
    """The innermost one, and none before or after."""
    client.chat.completions.create(**_ASK)
    with conversation("outer"):
        client.chat.completions.create(**_ASK)
        with conversation("inner"):
            client.chat.completions.create(**_ASK)
        client.chat.completions.create(**_ASK)
    client.chat.completions.create(**_ASK)
    assert ids(watched) == [None, "outer", "inner", "outer", None]


async def test_tasks_carry_the_conversation_that_they_were_started_in(server: ReplayServer, watched: Watched) -> None:
    """Two at once do not meet."""
    server.reply = json_reply(payloads.chat())

    async def talk(name: str) -> None:
        with conversation(name):
            await asyncio.gather(*[client.chat.completions.create(**_ASK) for _ in range(2)])

    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="k", max_retries=0) as client:
        await asyncio.gather(talk("one"), talk("two"))
    assert sorted(map(str, ids(watched))) == ["one", "one", "two", "two"]


def test_threads_carry_the_conversation_where_the_context_is_carried_into_them(
    client: openai.OpenAI, watched: Watched
) -> None:
    """A bare thread begins with an empty context, except in Python without the interpreter's lock."""

    def ask() -> None:
        client.chat.completions.create(**_ASK)

    with conversation("carried"):
        for target in (contextvars.copy_context().run, lambda function: function()):
            thread = threading.Thread(target=target, args=(ask,))
            thread.start()
            thread.join()
    bare = "carried" if getattr(sys.flags, "thread_inherit_context", False) else None
    assert ids(watched) == ["carried", bare]


@pytest.mark.parametrize("given", ["conv_1", {"id": "conv_1"}])
def test_id_of_the_api_itself_is_used_when_there_is_one(given: Any, server: ReplayServer, watched: Watched) -> None:
    """The Responses API's."""
    server.reply = json_reply(payloads.RESPONSE)
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="k", max_retries=0)
    with conversation("ours"):
        client.post("/responses", body={"model": "m", "input": "Hello", "conversation": given}, cast_to=object)
    assert ids(watched) == ["conv_1"]

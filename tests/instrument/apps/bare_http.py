"""An app that posts to its model by hand, with three libraries, and the one line."""

import asyncio
import os

import aiohttp
import httpx
import requests
from app import QUESTION, set_up_tracing

import otel_llm_energy

set_up_tracing()
otel_llm_energy.instrument()
url = os.environ["OPENAI_BASE_URL"] + "/chat/completions"
requests.post(url, json=QUESTION, timeout=60).raise_for_status()
with httpx.stream("POST", url, json={**QUESTION, "stream": True}, timeout=60) as response:
    list(response.iter_lines())


async def stream() -> None:
    body = {**QUESTION, "stream": True}
    async with aiohttp.ClientSession() as session, session.post(url, json=body) as response:
        async for _ in response.content:
            pass


asyncio.run(stream())

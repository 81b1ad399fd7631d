"""An app that posts to its model by hand, with two libraries, and the one line."""

import os

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

"""An OpenAI script as it was, and the one line. No tracing is set up here: the standard ``OTEL_*`` variables do."""

import os

from openai import OpenAI

import otel_llm_energy

otel_llm_energy.instrument()

client = OpenAI()  # OPENAI_BASE_URL and OPENAI_API_KEY say where
for question in ("What is a joule?", "Describe the ocean."):
    answer = client.chat.completions.create(
        model=os.environ.get("MODEL", "smollm2-135m"),
        messages=[{"role": "user", "content": question}],
        max_tokens=100,
    )
    print(f"{question}\n  {answer.choices[0].message.content}")

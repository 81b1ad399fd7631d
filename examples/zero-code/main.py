"""A script that knows nothing of tracing or energy."""

import os

from openai import OpenAI

client = OpenAI()
model = os.environ.get("MODEL", "smollm2-135m")
for topic in ("the ocean", "a fox"):
    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": f"Write two sentences about {topic}."}],
        max_tokens=60,
        stream=True,
    )
    print("".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices))

"""A user's service with many short calls, each a trace of its own, and a long one now and then.

``APP_CALLS`` is how many; every eighth is long. The last line is what the ledger billed, J.
"""

import os

from openai import OpenAI

import otel_llm_energy

energy = otel_llm_energy.instrument()
client = OpenAI()

for number in range(int(os.environ["APP_CALLS"])):
    client.chat.completions.create(
        model="smollm2-135m",
        messages=[{"role": "user", "content": "Count."}],
        max_tokens=80 if number % 8 == 7 else 2,
        temperature=0,
        extra_body={"ignore_eos": True},
    )

energy.force_flush()
print(sum(channel.balance.billed_nj for channel in energy.status().channels) / 1e9)

"""A user's script that knows nothing of tracing: Ollama's client, and the one line. ``OTEL_*`` says where spans go."""

import os

import ollama

import otel_llm_energy

energy = otel_llm_energy.instrument()

MODEL = os.environ["APP_MODEL"]
OPTIONS = {"num_predict": 60, "temperature": 0}

ollama.chat(MODEL, messages=[{"role": "user", "content": "Write one sentence about the ocean."}], options=OPTIONS)
ollama.generate(MODEL, "Tell a short story about a fox.", options=OPTIONS)
for _ in ollama.chat(MODEL, messages=[{"role": "user", "content": "Name colours."}], options=OPTIONS, stream=True):
    pass

energy.force_flush()

"""An app that asks an Ollama that is not a process of its own machine, or not one that it can look into."""

import os

import ollama

import otel_llm_energy

energy = otel_llm_energy.instrument()  # OTEL_LLM_ENERGY_SERVERS says whose exporter meters the server

model = os.environ.get("MODEL", "smollm2:135m")
for question in ("Describe the ocean in three sentences.", "Tell a tale of a fox."):
    answer = ollama.generate(model, question, options={"num_predict": 80, "temperature": 0})
    print(answer.response)

energy.force_flush()
print(energy.status())

"""An app that never heard of tracing, and the one line."""

from app import ask

import otel_llm_energy

otel_llm_energy.instrument()
ask()
